/*
 * Numbers that follow from the shape of a model, for which all is compiled: REAL, N_RADIAL (functions), N_SPECIES
 * (channels), L_MAX, CHANNELS, MIXED, FACTORS, MEMBERS, N_HIDDEN (layers), SIZES (their widths), WIDTH (that of the first,
 * or 0) and WIDEST. Layouts of the weights are those of the PyTorch code.
 */
#include "loop.h"

#define N_BASIS (N_RADIAL * N_SPECIES)
#define N_MONO ((L_MAX + 1) * (L_MAX + 2) * (L_MAX + 3) / 6)
#define N_HARM ((L_MAX + 1) * (L_MAX + 1))
#define DEEP_L (L_MAX < 3 ? L_MAX : 3)
#define N_DEEP ((DEEP_L + 1) * (DEEP_L + 1))
#define N_TWO ((L_MAX + 1) * CHANNELS * (CHANNELS + 1) / 2)
#define N_FEATURES (N_BASIS + N_TWO + (FACTORS - 2) * (DEEP_L + 1) * MIXED)

/* Structures and their padded neighbours: by positions, cells, shift and mask, or by vectors, beyond the cutoff for none. */
typedef struct {
    int64_t width;
    const double *positions, *cells;
    const int64_t *system, *species, *index; /* index, shift, mask, vectors: [n_atoms][width] */
    const float *shift;
    const uint8_t *mask;
    const REAL *vectors;
} Structures;
