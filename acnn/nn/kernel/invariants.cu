/*
 * The invariants of atoms on a GPU, and back from derivatives by them to forces: a warp has one atom and works in shared
 * memory; a lane has one neighbour, or one of the numbers to be summed. The network between the two is PyTorch's.
 */
#include "shape.h"

typedef REAL V;
#define SPLAT(number) ((V)(number))

#include "basis.h"

#define LANES 32
#define ALL 0xffffffffu
#define STRIDE (LANES + 1) /* of the rows of a neighbour's numbers: each lane has a bank of its own */
#define PAIRS (CHANNELS * (CHANNELS + 1) / 2)
#define N_DENSITY (N_HARM * CHANNELS)
#define N_MIXED (N_DEEP * MIXED)
#define N_STATE (N_DENSITY + (FACTORS > 2 ? 2 * N_MIXED : 0))

/* To sum the density, the columns of the basis lie side by side, in as many groups of monomials as find room. */
#define TILES ((N_BASIS + LANES - 1) / LANES)
#define COLUMNS ((N_BASIS + TILES - 1) / TILES)
#define GROUPS (LANES / COLUMNS)
#define SHARE ((N_MONO + GROUPS - 1) / GROUPS)
#define MONO_ROWS (SHARE * GROUPS + 1) /* idle lanes read one row too many */

typedef struct {
    int64_t n_elements;
    const REAL *table;       /* element channels [n_elements][N_SPECIES] */
    const REAL *mixing;      /* [L_MAX + 1][N_BASIS][CHANNELS] */
    const REAL *turns;       /* from monomials to harmonics [N_MONO][N_HARM] */
    const REAL *deep;        /* [DEEP_L + 1][CHANNELS][MIXED] */
    const int32_t *terms;    /* couplings [n_terms][2]: factors; sorted by product */
    const REAL *term_values; /* [n_terms] */
    const int32_t *starts;   /* of the terms of each product [N_DEEP + 1] */
    const REAL *onset, *charge, *length; /* of the repulsion [n_elements][n_elements] */
    REAL cutoff;
} Weights;

/* A neighbour as its lane knows it. */
typedef struct {
    REAL unit[3], distance, felt, stretch, push, repulsion;
    int64_t atom, species;
} Neighbor;

/* Numbers of an atom between the density and the features; what the way back starts from. */
typedef struct {
    REAL density[N_HARM][CHANNELS];
#if FACTORS > 2
    REAL deep[N_DEEP][MIXED], square[N_DEEP][MIXED];
#endif
} State;

typedef struct {
    State state;
    REAL raw[N_MONO][N_BASIS], mixed[N_MONO][CHANNELS];
    REAL basis[TILES * COLUMNS][STRIDE], mono[MONO_ROWS][STRIDE];
} Forward;

typedef struct {
    State state, by_state;
    REAL by_features[N_FEATURES], by_mixed[N_MONO][CHANNELS], by_raw[N_MONO][N_BASIS];
} Backward;

/* The neighbour in place k of an atom's row; false if there is none within the cutoff. */
static bool look(const Weights *w, const Structures *in, int64_t atom, int64_t k, Neighbor *out)
{
    if (k >= in->width || !in->mask[in->width * atom + k]) return false;
    const double *cell = in->cells + 9 * in->system[atom], *own = in->positions + 3 * atom;
    const float *s = in->shift + 3 * (in->width * atom + k);
    out->atom = in->index[in->width * atom + k];
    const double *other = in->positions + 3 * out->atom;
    double v[3];
    for (int a = 0; a < 3; a++) v[a] = other[a] - own[a] + s[0] * cell[a] + s[1] * cell[3 + a] + s[2] * cell[6 + a];
    REAL square = (REAL)(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    if (square >= w->cutoff * w->cutoff) return false;
    REAL r = SQRT(square > (REAL)CLOSEST * (REAL)CLOSEST ? square : (REAL)CLOSEST * (REAL)CLOSEST);
    for (int a = 0; a < 3; a++) out->unit[a] = (REAL)v[a] / r;
    out->species = in->species[out->atom];
    out->distance = r;
    out->felt = r / w->cutoff;
    out->stretch = 1;
    out->push = out->repulsion = 0;
    int64_t pair = in->species[atom] * w->n_elements + out->species;
    if (r < w->onset[pair]) {
        Repelled near = repel(w->onset[pair], w->charge[pair], w->length[pair], r);
        out->felt = near.felt / w->cutoff;
        out->stretch = near.stretch;
        out->push = near.push;
        out->repulsion = near.energy;
    }
    return true;
}

/* The degree of a harmonic, of a monomial; the first of a degree. */
static int degree(int harmonic)
{
    int l = 0;
    while ((l + 1) * (l + 1) <= harmonic) l++;
    return l;
}

static int first_monomial(int l)
{
    return l * (l + 1) * (l + 2) / 6;
}

static int monomial_degree(int m)
{
    int l = 0;
    while (first_monomial(l + 1) <= m) l++;
    return l;
}

static REAL warp_sum(REAL x)
{
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

/* raw[monomial][basis]: the sum over the neighbours of monomial times basis; returns the repulsion of the atom. */
static REAL density(const Weights *w, const Structures *in, int64_t atom, int lane, Forward *f)
{
    int column = lane % COLUMNS, group = lane / COLUMNS;
    REAL sum[TILES][SHARE], half = 0;
    UNROLL for (int t = 0; t < TILES; t++) UNROLL for (int j = 0; j < SHARE; j++) sum[t][j] = 0;
    for (int64_t first = 0; first < in->width; first += LANES) {
        Neighbor n;
        bool near = look(w, in, atom, first + lane, &n);
        if (near) {
            REAL value[N_RADIAL], slope[N_RADIAL], mono[N_MONO];
            radial(n.felt, value, slope);
            monomials(n.unit, mono);
            UNROLL for (int i = 0; i < N_RADIAL; i++)
                UNROLL for (int t = 0; t < N_SPECIES; t++)
                    f->basis[i * N_SPECIES + t][lane] = value[i] * w->table[n.species * N_SPECIES + t];
            UNROLL for (int m = 0; m < N_MONO; m++) f->mono[m][lane] = mono[m];
            half += n.repulsion;
        }
        unsigned left = __ballot_sync(ALL, near);
        __syncwarp();
        for (; left; left &= left - 1) {
            int k = __ffs(left) - 1;
            UNROLL for (int t = 0; t < TILES; t++) {
                REAL b = f->basis[t * COLUMNS + column][k];
                UNROLL for (int j = 0; j < SHARE; j++) sum[t][j] += b * f->mono[group + j * GROUPS][k];
            }
        }
        __syncwarp();
    }
    UNROLL for (int t = 0; t < TILES; t++)
        UNROLL for (int j = 0; j < SHARE; j++) {
            int b = t * COLUMNS + column, m = group + j * GROUPS;
            if (group < GROUPS && b < N_BASIS && m < N_MONO) f->raw[m][b] = sum[t][j];
        }
    __syncwarp();
    return warp_sum(half);
}

/* Mix the channels of each monomial, then turn monomials into harmonics. */
static void mix(const Weights *w, int lane, Forward *f)
{
    for (int k = lane; k < N_MONO * CHANNELS; k += LANES) {
        int m = k / CHANNELS, c = k % CHANNELS;
        const REAL *weight = w->mixing + monomial_degree(m) * N_BASIS * CHANNELS + c;
        REAL sum = 0;
        for (int b = 0; b < N_BASIS; b++) sum += weight[b * CHANNELS] * f->raw[m][b];
        f->mixed[m][c] = sum;
    }
    __syncwarp();
    for (int k = lane; k < N_DENSITY; k += LANES) {
        int q = k / CHANNELS, c = k % CHANNELS, l = degree(q);
        REAL sum = 0;
        for (int m = first_monomial(l); m < first_monomial(l + 1); m++) sum += w->turns[m * N_HARM + q] * f->mixed[m][c];
        f->state.density[q][c] = sum;
    }
    __syncwarp();
}

static void mix_back(const Weights *w, int lane, Backward *g)
{
    for (int k = lane; k < N_MONO * CHANNELS; k += LANES) {
        int m = k / CHANNELS, c = k % CHANNELS, l = monomial_degree(m);
        REAL sum = 0;
        for (int q = l * l; q < (l + 1) * (l + 1); q++) sum += w->turns[m * N_HARM + q] * g->by_state.density[q][c];
        g->by_mixed[m][c] = sum;
    }
    __syncwarp();
    for (int k = lane; k < N_MONO * N_BASIS; k += LANES) {
        int m = k / N_BASIS, b = k % N_BASIS;
        const REAL *weight = w->mixing + (monomial_degree(m) * N_BASIS + b) * CHANNELS;
        REAL sum = m == 0 ? g->by_features[b] : 0;
        for (int c = 0; c < CHANNELS; c++) sum += weight[c] * g->by_mixed[m][c];
        g->by_raw[m][b] = sum;
    }
    __syncwarp();
}

/* Pairs of channels of equal degree. */
static void pairs(const State *s, int lane, REAL *out)
{
    for (int k = lane; k < N_TWO; k += LANES) {
        int l = k / PAIRS, d = k % PAIRS, c = 0;
        for (; d >= CHANNELS - c; c++) d -= CHANNELS - c;
        REAL sum = 0;
        for (int q = l * l; q < (l + 1) * (l + 1); q++) sum += s->density[q][c] * s->density[q][c + d];
        out[k] = sum;
    }
}

static void pairs_back(const State *s, int lane, const REAL *by_features, State *by)
{
    for (int k = lane; k < N_DENSITY; k += LANES) {
        int q = k / CHANNELS, c = k % CHANNELS;
        const REAL *g = by_features + degree(q) * PAIRS;
        REAL sum = 0;
        for (int d = 0; d < CHANNELS; d++) {
            int low = c < d ? c : d, high = c < d ? d : c;
            REAL both = g[low * CHANNELS - low * (low - 1) / 2 + high - low];
            sum += (c == d ? 2 * both : both) * s->density[q][d];
        }
        by->density[q][c] = sum;
    }
}

#if FACTORS > 2
/* Couple the mixed density with itself, and contract with itself or the square. */
static void couple(const Weights *w, State *s, int lane, REAL *out)
{
    for (int k = lane; k < N_MIXED; k += LANES) {
        int q = k / MIXED, e = k % MIXED;
        const REAL *weight = w->deep + degree(q) * CHANNELS * MIXED + e;
        REAL sum = 0;
        for (int c = 0; c < CHANNELS; c++) sum += weight[c * MIXED] * s->density[q][c];
        s->deep[q][e] = sum;
    }
    __syncwarp();
    for (int k = lane; k < N_MIXED; k += LANES) {
        int q = k / MIXED, e = k % MIXED;
        REAL sum = 0;
        for (int t = w->starts[q]; t < w->starts[q + 1]; t++)
            sum += w->term_values[t] * s->deep[w->terms[2 * t]][e] * s->deep[w->terms[2 * t + 1]][e];
        s->square[q][e] = sum;
    }
    __syncwarp();
    for (int k = lane; k < (FACTORS - 2) * (DEEP_L + 1) * MIXED; k += LANES) {
        int e = k % MIXED, l = k / MIXED % (DEEP_L + 1);
        REAL sum = 0;
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            sum += s->square[q][e] * (k < (DEEP_L + 1) * MIXED ? s->deep : s->square)[q][e];
        out[k] = sum;
    }
}

/* Adds to the derivatives by the density. */
static void couple_back(const Weights *w, const State *s, int lane, const REAL *g, State *by)
{
    for (int k = lane; k < N_MIXED; k += LANES) {
        int q = k / MIXED, e = k % MIXED, l = degree(q);
        REAL three = g[l * MIXED + e];
        by->deep[q][e] = three * s->square[q][e];
        by->square[q][e] = three * s->deep[q][e];
        if (FACTORS > 3) by->square[q][e] += 2 * g[(DEEP_L + 1 + l) * MIXED + e] * s->square[q][e];
    }
    __syncwarp();
    for (int e = lane; e < MIXED; e += LANES)
        for (int q = 0; q < N_DEEP; q++)
            for (int t = w->starts[q]; t < w->starts[q + 1]; t++) {
                int one = w->terms[2 * t], other = w->terms[2 * t + 1];
                REAL part = w->term_values[t] * by->square[q][e];
                by->deep[one][e] += part * s->deep[other][e];
                by->deep[other][e] += part * s->deep[one][e];
            }
    __syncwarp();
    for (int k = lane; k < N_DEEP * CHANNELS; k += LANES) {
        int q = k / CHANNELS, c = k % CHANNELS;
        const REAL *weight = w->deep + (degree(q) * CHANNELS + c) * MIXED;
        REAL sum = 0;
        for (int e = 0; e < MIXED; e++) sum += weight[e] * by->deep[q][e];
        by->density[q][c] += sum;
    }
}
#endif

/* The derivative of the energy by the vector to a neighbour. */
static void gradient(const Weights *w, const Neighbor *n, const Backward *g, REAL *out)
{
    REAL value[N_RADIAL], slope[N_RADIAL], mono[N_MONO], by_mono[N_MONO], by_radial[N_RADIAL], by_unit[3], along = 0, dot = 0;
    REAL channel[N_SPECIES];
    radial(n->felt, value, slope);
    monomials(n->unit, mono);
    UNROLL for (int t = 0; t < N_SPECIES; t++) channel[t] = w->table[n->species * N_SPECIES + t];
    UNROLL for (int i = 0; i < N_RADIAL; i++) by_radial[i] = 0;
    UNROLL for (int m = 0; m < N_MONO; m++) {
        by_mono[m] = 0;
        UNROLL for (int i = 0; i < N_RADIAL; i++) {
            REAL by_sum = 0;
            UNROLL for (int t = 0; t < N_SPECIES; t++) by_sum += channel[t] * g->by_raw[m][i * N_SPECIES + t];
            by_mono[m] += value[i] * by_sum;
            by_radial[i] += mono[m] * by_sum;
        }
    }
    UNROLL for (int i = 0; i < N_RADIAL; i++) along += by_radial[i] * slope[i];
    along = along * n->stretch / w->cutoff + n->push;
    monomials_back(n->unit, mono, by_mono, by_unit);
    UNROLL for (int a = 0; a < 3; a++) dot += by_unit[a] * n->unit[a];
    UNROLL for (int a = 0; a < 3; a++) out[a] = (by_unit[a] - dot * n->unit[a]) / n->distance + along * n->unit[a];
}

/* Derivatives by the density become forces, and derivatives by strain (not yet made symmetric). */
static void density_back(const Weights *w, const Structures *in, int64_t atom, int lane, const Backward *g, REAL *forces,
                         REAL *virial)
{
    REAL own[3] = {0, 0, 0}, local[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int64_t first = 0; first < in->width; first += LANES) {
        Neighbor n;
        if (!look(w, in, atom, first + lane, &n)) continue;
        REAL by_vector[3];
        gradient(w, &n, g, by_vector);
        UNROLL for (int c = 0; c < 3; c++) {
            own[c] += by_vector[c];
            UNROLL for (int d = 0; d < 3; d++) local[3 * c + d] += n.unit[c] * n.distance * by_vector[d];
            atomicAdd(forces + 3 * n.atom + c, -by_vector[c]);
        }
    }
    UNROLL for (int c = 0; c < 3; c++) own[c] = warp_sum(own[c]);
    UNROLL for (int c = 0; c < 9; c++) local[c] = warp_sum(local[c]);
    if (lane) return;
    UNROLL for (int c = 0; c < 3; c++) atomicAdd(forces + 3 * atom + c, own[c]);
    UNROLL for (int c = 0; c < 9; c++) atomicAdd(virial + 9 * in->system[atom] + c, local[c]);
}

#define WARPS (blockDim.x / LANES)
#define EACH_ATOM(row, n) \
    for (int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES; row < (n); row += (int64_t)gridDim.x * WARPS)

/* How much shared memory a warp needs, bytes. */
KERNEL measure(int64_t n, int64_t *bytes)
{
    EACH(k, n) bytes[k] = sizeof(Forward) > sizeof(Backward) ? sizeof(Forward) : sizeof(Backward);
}

/* Features [n_atoms][N_FEATURES], states and repulsion of the atoms in the given order. */
KERNEL forward(int64_t n_atoms, const Weights *w, const Structures *in, const int64_t *order, REAL *features, State *states,
               REAL *repulsion)
{
    extern __shared__ double shared[];
    Forward *f = (Forward *)shared + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    EACH_ATOM(row, n_atoms) {
        REAL half = density(w, in, order[row], lane, f), *out = features + row * N_FEATURES;
        if (lane == 0) repulsion[row] = half;
        mix(w, lane, f);
        for (int k = lane; k < N_BASIS; k += LANES) out[k] = f->raw[0][k];
        pairs(&f->state, lane, out + N_BASIS);
#if FACTORS > 2
        couple(w, &f->state, lane, out + N_BASIS + N_TWO);
#endif
        __syncwarp();
        for (int k = lane; k < N_STATE; k += LANES) ((REAL *)(states + row))[k] = ((REAL *)&f->state)[k];
        __syncwarp();
    }
}

/* Adds to forces and virial. */
KERNEL backward(int64_t n_atoms, const Weights *w, const Structures *in, const int64_t *order, const REAL *by_features,
                const State *states, REAL *forces, REAL *virial)
{
    extern __shared__ double shared[];
    Backward *g = (Backward *)shared + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    EACH_ATOM(row, n_atoms) {
        for (int k = lane; k < N_FEATURES; k += LANES) g->by_features[k] = by_features[row * N_FEATURES + k];
        for (int k = lane; k < N_STATE; k += LANES) ((REAL *)&g->state)[k] = ((const REAL *)(states + row))[k];
        __syncwarp();
        pairs_back(&g->state, lane, g->by_features + N_BASIS, &g->by_state);
#if FACTORS > 2
        couple_back(w, &g->state, lane, g->by_features + N_BASIS + N_TWO, &g->by_state);
#endif
        __syncwarp();
        mix_back(w, lane, g);
        density_back(w, in, order[row], lane, g, forces, virial);
        __syncwarp();
    }
}
