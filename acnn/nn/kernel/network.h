/* The fitting network of all members, and the gradient of their mean. */

#define TILE 16 /* sums kept in the registers */
#define N_FIRST (MEMBERS * (1 + WIDTH))

/* `count` sums of y = bias + W^T x from column h on. */
INLINE void columns(const int count, int n_in, int n_out, int h, const REAL *weight, const REAL *bias, const V *x, V *y)
{
    V sum[TILE];
    UNROLL for (int q = 0; q < count; q++) sum[q] = (bias ? bias[h + q] : 0) - (V){0};
    for (int k = 0; k < n_in; k++) {
        const REAL *row = weight + (int64_t)k * n_out + h;
        V in = x[k];
        UNROLL for (int q = 0; q < count; q++) sum[q] += row[q] * in;
    }
    UNROLL for (int q = 0; q < count; q++) y[h + q] = sum[q];
}

INLINE void dense(int n_in, int n_out, const REAL *weight, const REAL *bias, const V *x, V *y)
{
    int h = 0;
    for (; h + TILE <= n_out; h += TILE) columns(TILE, n_in, n_out, h, weight, bias, x, y);
    for (; h + 4 <= n_out; h += 4) columns(4, n_in, n_out, h, weight, bias, x, y);
    for (; h < n_out; h++) columns(1, n_in, n_out, h, weight, bias, x, y);
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

#if N_HIDDEN
static const int sizes[] = {SIZES, 1};

/* 1 / (1 + exp(-x)): a power of two times the series of what is left. */
INLINE V logistic(V x)
{
    typedef __typeof__((V){0} < (V){0}) Whole;
    const int order = sizeof(REAL) == 4 ? 7 : 14, bias = sizeof(REAL) == 4 ? 127 : 1023, bits = sizeof(REAL) == 4 ? 23 : 52;
    const REAL most = sizeof(REAL) == 4 ? 86 : 700, log2 = (REAL)0.69314718055994530942;
    x = -x;
    Whole high = x > most, low = x < -most;
    x = (V)(((Whole)x & ~(high | low)) | ((Whole)(most - (V){0}) & high) | ((Whole)(-most - (V){0}) & low));
    Whole whole = __builtin_convertvector(x / log2 + (REAL)(bias + 0.5), Whole);
    V rest = x - __builtin_convertvector(whole - bias, V) * log2, series = 1 - (V){0};
    UNROLL for (int k = order; k > 0; k--) series = 1 + series * rest * (1 / (REAL)k);
    return 1 / (1 + series * (V)(whole << bits));
}

/* The later layers of one member, from the sums of its first: its energy; `sum` becomes the derivative times `share`. */
static V member(int m, const REAL *layer, V *sum, REAL share)
{
    V in[WIDEST], out[WIDEST], slopes[N_HIDDEN][WIDEST];
    const REAL *weights[N_HIDDEN];
    memcpy(out, sum, sizes[0] * sizeof(V));
    for (int l = 0; l < N_HIDDEN; l++) {
        int n_in = sizes[l], n_out = sizes[l + 1];
        for (int k = 0; k < n_in; k++) {
            V s = logistic(out[k]);
            in[k] = out[k] * s;
            slopes[l][k] = s + in[k] * (1 - s);
        }
        weights[l] = layer + (int64_t)m * n_in * n_out;
        layer += (int64_t)MEMBERS * n_in * n_out;
        dense(n_in, n_out, weights[l], layer + m * n_out, in, out);
        layer += MEMBERS * n_out;
    }
    V energy = out[0];
    out[0] = share - (V){0};
    for (int l = N_HIDDEN - 1; l >= 0; l--) {
        dense_back(sizes[l], sizes[l + 1], weights[l], out, in);
        for (int k = 0; k < sizes[l]; k++) out[k] = in[k] * slopes[l][k];
    }
    memcpy(sum, out, sizes[0] * sizeof(V));
    return energy;
}
#endif

/* Energies of all members, and the derivative of their mean times the scale by the features. */
static void network(const Model *model, int element, const V *features, V *energies, V *by_features)
{
    V sum[N_FIRST];
    const REAL *first = model->first + (int64_t)element * N_FEATURES * N_FIRST, share = model->scale / MEMBERS;
    dense(N_FEATURES, N_FIRST, first, model->offset + (int64_t)element * N_FIRST, features, sum);
    for (int m = 0; m < MEMBERS; m++) {
        energies[m] = sum[m];
#if N_HIDDEN
        energies[m] += member(m, model->layers, sum + MEMBERS + m * WIDTH, share);
#endif
        sum[m] = share - (V){0};
    }
    for (int m = 0; m < MEMBERS; m++) energies[m] *= model->scale;
    dense_back(N_FEATURES, N_FIRST, first, sum, by_features);
}
