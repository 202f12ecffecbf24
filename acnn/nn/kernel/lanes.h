/* Vectors with one number of each of LANES atoms: everything on a CPU is done for so many at a time, all in the cache. */
#include "shape.h"

#if defined __AVX512F__
#define BYTES 64
#elif defined __AVX__
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES (BYTES / (int)sizeof(REAL))
typedef REAL V __attribute__((vector_size(BYTES)));
#define SPLAT(number) ((number) - (V){0})

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
    const REAL *offset, *first; /* linear terms and first layers, by element and member */
    const REAL *layers;         /* weights and biases of the later layers, [member] each */
    const REAL *onset, *charge, *length; /* of the repulsion [n_elements][n_elements] */
    REAL cutoff, scale;
} Model;
