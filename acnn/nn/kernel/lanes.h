/*
 * Vectors with one number of each of LANES atoms: everything here is done for so many atoms at a time, all in the cache.
 *
 * Compiled for one shape of model: REAL, N_RADIAL (functions), N_SPECIES (channels), L_MAX, CHANNELS, MIXED, FACTORS,
 * MEMBERS, N_HIDDEN (layers), SIZES (their widths), WIDTH (that of the first, or 0) and WIDEST. Layouts of the weights are
 * those of the PyTorch code.
 */
#include "loop.h"

#ifdef __CUDACC__ /* a thread has one atom */
#define LANES 1
typedef REAL V;
#define LANE(vector, a) (vector)
#define SPLAT(number) ((V)(number))
#else
#if defined __AVX512F__
#define BYTES 64
#elif defined __AVX__
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / (int)sizeof(REAL))
typedef REAL V __attribute__((vector_size(BYTES)));
#define LANE(vector, a) ((vector)[a])
#define SPLAT(number) ((number) - (V){0})
#endif

#define N_BASIS (N_RADIAL * N_SPECIES)
#define N_MONO ((L_MAX + 1) * (L_MAX + 2) * (L_MAX + 3) / 6)
#define N_HARM ((L_MAX + 1) * (L_MAX + 1))
#define DEEP_L (L_MAX < 3 ? L_MAX : 3)
#define N_DEEP ((DEEP_L + 1) * (DEEP_L + 1))
#define N_TWO ((L_MAX + 1) * CHANNELS * (CHANNELS + 1) / 2)
#define N_FEATURES (N_BASIS + N_TWO + (FACTORS - 2) * (DEEP_L + 1) * MIXED)

/* The weights of a model. */
typedef struct {
    int64_t n_elements, n_turns, n_terms;
    const REAL *table;          /* element channels [n_elements][N_SPECIES] */
    const REAL *mixing;         /* [L_MAX + 1][N_BASIS][CHANNELS] */
    const int32_t *turns;       /* from monomials to harmonics [n_turns][2]: harmonic, monomial; sorted by the latter */
    const REAL *turn_values;    /* [n_turns] */
    const REAL *deep;           /* [DEEP_L + 1][CHANNELS][MIXED] */
    const int32_t *terms;       /* couplings [n_terms][3]: factor, factor, product; sorted by the latter */
    const REAL *term_values;    /* [n_terms] */
    const REAL *offset, *first; /* the linear terms and first layers of all members, by element */
    const REAL *layers;         /* weights and biases of the later layers, [member] each */
    const REAL *onset, *charge, *length; /* of the repulsion [n_elements][n_elements] */
    REAL cutoff, scale;
} Model;
