/*
 * The fitting network of all members, for GROUPS groups of lanes at a time, and its gradient. A weight that is loaded serves
 * all of them: for one group, loading takes longer than the sums. Vectors are x[n_in][GROUPS] and y[n_out][GROUPS].
 */

#define GROUPS 2
#define SIDE 6              /* columns or rows at a time: their sums fit into the registers */
#define N_FIRST (1 + WIDTH) /* of a member: its linear term and its first layer */

/* `count` sums of y = bias + W^T x from column h on. */
INLINE void wide_columns(const int count, int n_in, int n_out, int h, const REAL *weight, const REAL *bias, const V *x, V *y)
{
    V sum[SIDE * GROUPS];
    const REAL *row = weight + h;
    UNROLL for (int q = 0; q < count * GROUPS; q++) sum[q] = SPLAT(bias[h + q / GROUPS]);
    for (int k = 0; k < n_in; k++, row += n_out)
        UNROLL for (int q = 0; q < count * GROUPS; q++) sum[q] += row[q / GROUPS] * x[k * GROUPS + q % GROUPS];
    UNROLL for (int q = 0; q < count * GROUPS; q++) y[h * GROUPS + q] = sum[q];
}

INLINE void wide(int n_in, int n_out, const REAL *weight, const REAL *bias, const V *x, V *y)
{
    int h = 0;
    for (; h + SIDE <= n_out; h += SIDE) wide_columns(SIDE, n_in, n_out, h, weight, bias, x, y);
    for (; h + 2 <= n_out; h += 2) wide_columns(2, n_in, n_out, h, weight, bias, x, y);
    for (; h < n_out; h++) wide_columns(1, n_in, n_out, h, weight, bias, x, y);
}

/* `count` sums of x from row k on, where x is the sum of W y over `blocks` matrices and vectors. */
INLINE void wide_rows(const int count, int blocks, int n_in, int n_out, int k, const REAL *weight, const V *y, V *x)
{
    V sum[SIDE * GROUPS];
    const REAL *row = weight + (int64_t)k * n_out;
    UNROLL for (int q = 0; q < count * GROUPS; q++) sum[q] = (V){0};
    for (int b = 0; b < blocks; b++, row += (int64_t)n_in * n_out, y += n_out * GROUPS)
        for (int h = 0; h < n_out; h++)
            UNROLL for (int q = 0; q < count * GROUPS; q++)
                sum[q] += row[(int64_t)(q / GROUPS) * n_out + h] * y[h * GROUPS + q % GROUPS];
    UNROLL for (int q = 0; q < count * GROUPS; q++) x[k * GROUPS + q] = sum[q];
}

INLINE void wide_back(int blocks, int n_in, int n_out, const REAL *weight, const V *y, V *x)
{
    int k = 0;
    for (; k + SIDE <= n_in; k += SIDE) wide_rows(SIDE, blocks, n_in, n_out, k, weight, y, x);
    for (; k + 2 <= n_in; k += 2) wide_rows(2, blocks, n_in, n_out, k, weight, y, x);
    for (; k < n_in; k++) wide_rows(1, blocks, n_in, n_out, k, weight, y, x);
}

#if N_HIDDEN
static const int sizes[] = {SIZES, 1};

/* 1 / (1 + exp(-x)): a power of two times the series of what is left. */
INLINE V logistic(V x)
{
    typedef __typeof__((V){0} < (V){0}) Whole;
    static const REAL factors[] = {1,           1,             1. / 2,         1. / 6,           1. / 24,
                                   1. / 120,    1. / 720,      1. / 5040,      1. / 40320,       1. / 362880,
                                   1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200.};
    const int order = sizeof(REAL) == 4 ? 7 : 14, bias = sizeof(REAL) == 4 ? 127 : 1023, bits = sizeof(REAL) == 4 ? 23 : 52;
    const REAL most = sizeof(REAL) == 4 ? 86 : 700, log2 = (REAL)0.69314718055994530942;
    x = -x;
    Whole high = x > most, low = x < -most;
    x = (V)(((Whole)x & ~(high | low)) | ((Whole)(most - (V){0}) & high) | ((Whole)(-most - (V){0}) & low));
    Whole whole = __builtin_convertvector(x / log2 + (REAL)(bias + 0.5), Whole);
    V rest = x - __builtin_convertvector(whole - bias, V) * log2, series = SPLAT(factors[order]);
    UNROLL for (int k = order - 1; k >= 0; k--) series = factors[k] + series * rest;
    return 1 / (1 + series * (V)(whole << bits));
}

/*
 * The later layers of one member, from the sums of its first: adds its energy; `sums` become the derivatives by them, times
 * `share`.
 */
static void member(int m, const REAL *layer, V *sums, REAL share, V *energy)
{
    V in[WIDEST * GROUPS], out[WIDEST * GROUPS], slopes[N_HIDDEN][WIDEST * GROUPS];
    const REAL *weights[N_HIDDEN];
    memcpy(out, sums, sizes[0] * GROUPS * sizeof(V));
    for (int l = 0; l < N_HIDDEN; l++) {
        int n_in = sizes[l], n_out = sizes[l + 1];
        for (int k = 0; k < n_in * GROUPS; k++) {
            V s = logistic(out[k]);
            in[k] = out[k] * s;
            slopes[l][k] = s + in[k] * (1 - s);
        }
        weights[l] = layer + (int64_t)m * n_in * n_out;
        layer += (int64_t)MEMBERS * n_in * n_out;
        wide(n_in, n_out, weights[l], layer + m * n_out, in, out);
        layer += MEMBERS * n_out;
    }
    for (int g = 0; g < GROUPS; g++) {
        energy[g] += out[g];
        out[g] = SPLAT(share);
    }
    for (int l = N_HIDDEN - 1; l >= 0; l--) {
        wide_back(1, sizes[l], sizes[l + 1], weights[l], out, in);
        for (int k = 0; k < sizes[l] * GROUPS; k++) out[k] = in[k] * slopes[l][k];
    }
    memcpy(sums, out, sizes[0] * GROUPS * sizeof(V));
}
#endif

/* Energies of all members, and `sums`: the derivatives of each, times `share`, by its linear term and first layer. */
static void network(const Model *model, int64_t element, REAL share, const V *features, V *energies, V *sums)
{
    const REAL *first = model->first + element * MEMBERS * N_FEATURES * N_FIRST;
    const REAL *offset = model->offset + element * MEMBERS * N_FIRST;
    for (int m = 0; m < MEMBERS; m++) {
        V *own = sums + m * N_FIRST * GROUPS, *energy = energies + m * GROUPS;
        wide(N_FEATURES, N_FIRST, first + m * N_FEATURES * N_FIRST, offset + m * N_FIRST, features, own);
        memcpy(energy, own, GROUPS * sizeof(V));
#if N_HIDDEN
        member(m, model->layers, own + GROUPS, share, energy);
#endif
        for (int g = 0; g < GROUPS; g++) {
            energy[g] *= model->scale;
            own[g] = SPLAT(share);
        }
    }
}

/* Derivatives by the features, from those by the sums of `count` members from m on. */
static void network_back(const Model *model, int64_t element, int m, int count, const V *sums, V *by_features)
{
    const REAL *first = model->first + (element * MEMBERS + m) * N_FEATURES * N_FIRST;
    wide_back(count, N_FEATURES, N_FIRST, first, sums + m * N_FIRST * GROUPS, by_features);
}
