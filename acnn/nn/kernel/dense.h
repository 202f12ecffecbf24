/* Products of the embedding's small matrices, W[n_in][n_out], with the vectors x[n_in] and y[n_out]. */

#define TILE 16 /* sums kept in the registers */

/* `count` sums of y = W^T x from column h on. */
INLINE void columns(const int count, int n_in, int n_out, int h, const REAL *weight, const V *x, V *y)
{
    V sum[TILE];
    UNROLL for (int q = 0; q < count; q++) sum[q] = (V){0};
    for (int k = 0; k < n_in; k++) {
        const REAL *row = weight + (int64_t)k * n_out + h;
        V in = x[k];
        UNROLL for (int q = 0; q < count; q++) sum[q] += row[q] * in;
    }
    UNROLL for (int q = 0; q < count; q++) y[h + q] = sum[q];
}

INLINE void dense(int n_in, int n_out, const REAL *weight, const V *x, V *y)
{
    int h = 0;
    for (; h + TILE <= n_out; h += TILE) columns(TILE, n_in, n_out, h, weight, x, y);
    for (; h + 4 <= n_out; h += 4) columns(4, n_in, n_out, h, weight, x, y);
    for (; h < n_out; h++) columns(1, n_in, n_out, h, weight, x, y);
}

/* `count` sums of x = W y from row k on. */
INLINE void rows(const int count, int n_out, int k, const REAL *weight, const V *y, V *x)
{
    V sum[TILE];
    const REAL *row = weight + (int64_t)k * n_out;
    UNROLL for (int q = 0; q < count; q++) sum[q] = (V){0};
    for (int h = 0; h < n_out; h++) {
        V in = y[h];
        UNROLL for (int q = 0; q < count; q++) sum[q] += row[(int64_t)q * n_out + h] * in;
    }
    UNROLL for (int q = 0; q < count; q++) x[k + q] = sum[q];
}

INLINE void dense_back(int n_in, int n_out, const REAL *weight, const V *y, V *x)
{
    int k = 0;
    for (; k + 8 <= n_in; k += 8) rows(8, n_out, k, weight, y, x);
    for (; k < n_in; k++) rows(1, n_out, k, weight, y, x);
}
