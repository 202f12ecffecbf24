/*
 * The neighbour density of ACE, its invariants, and the gradients of both; a few atoms at a time, all in the cache.
 *
 * Compiled for one shape of model: REAL, N_RADIAL (functions), N_SPECIES (channels), L_MAX, CHANNELS, MIXED, FACTORS.
 * Neighbours beyond the cutoff are skipped, so padding costs nothing. Layouts are those of the PyTorch code beside this file.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define N_BASIS (N_RADIAL * N_SPECIES)
#define N_MONO ((L_MAX + 1) * (L_MAX + 2) * (L_MAX + 3) / 6)
#define PAD(n) (((n) + 15) / 16 * 16)
#define WIDE PAD(N_MONO)
#define BROAD PAD(N_BASIS)
#define BLOCK 64 /* neighbours handled together */

typedef struct {
    int64_t slot[BLOCK];
    REAL unit[3][BLOCK], inverse[BLOCK];
    REAL radial[BLOCK][N_RADIAL], slope[BLOCK][N_RADIAL];
    REAL basis[BLOCK][BROAD];
    REAL mono[BLOCK][WIDE];
    REAL by_basis[BLOCK][BROAD], by_mono[BLOCK][WIDE];
    const REAL *weight[BLOCK];
} Block;

/* Monomials x^a y^b z^c by degree: x times all of the degree before, y times those without x, z times the last. */
static void monomials(REAL x, REAL y, REAL z, REAL *m)
{
    m[0] = 1;
    int before = 0, n = 1, next = 1;
    for (int degree = 1; degree <= L_MAX; degree++) {
        for (int k = 0; k < n; k++) m[next + k] = x * m[before + k];
        for (int k = 0; k < degree; k++) m[next + n + k] = y * m[before + n - degree + k];
        m[next + n + degree] = z * m[before + n - 1];
        before = next;
        n += degree + 1;
        next += n;
    }
}

/* The reverse of the above: derivatives by the monomials (overwritten) become those by x, y, z. */
static void monomials_back(REAL x, REAL y, REAL z, const REAL *m, REAL *g, REAL *out)
{
    REAL gx = 0, gy = 0, gz = 0;
    int n = N_MONO - L_MAX * (L_MAX + 1) * (L_MAX + 2) / 6, next = N_MONO - n;
    for (int degree = L_MAX; degree >= 1; degree--) {
        n -= degree + 1;
        int before = next - n;
        for (int k = 0; k < n; k++) {
            gx += g[next + k] * m[before + k];
            g[before + k] += x * g[next + k];
        }
        for (int k = 0; k < degree; k++) {
            gy += g[next + n + k] * m[before + n - degree + k];
            g[before + n - degree + k] += y * g[next + n + k];
        }
        gz += g[next + n + degree] * m[before + n - 1];
        g[before + n - 1] += z * g[next + n + degree];
        next = before;
    }
    out[0] = gx;
    out[1] = gy;
    out[2] = gz;
}

/* Radial functions cos(k pi x) (1 - x^2)^3 and their derivatives by x; x = r / cutoff < 1. */
static void radial(REAL x, REAL *value, REAL *slope)
{
    const REAL pi = (REAL)3.14159265358979323846;
    REAL rest = 1 - x * x, fall = rest * rest * rest, fall_slope = -6 * x * rest * rest;
    REAL c = COS(pi * x), s = SIN(pi * x);
    REAL ck = 1, sk = 0;
    for (int k = 0; k < N_RADIAL; k++) {
        value[k] = ck * fall;
        slope[k] = ck * fall_slope - pi * k * sk * fall;
        REAL next = ck * c - sk * s;
        sk = sk * c + ck * s;
        ck = next;
    }
}

/* Fill a block with the neighbours of one atom from column *k on; returns how many there are. */
static int fill(Block *b, int64_t width, int64_t *k, const REAL *vectors, const REAL *seen, const int64_t *index,
                const int64_t *species, const REAL *table, REAL cutoff)
{
    int n = 0;
    for (; *k < width && n < BLOCK; (*k)++) {
        const REAL *v = vectors + 3 * *k;
        REAL square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        if (square >= cutoff * cutoff) continue;
        REAL r = SQRT(square > (REAL)CLOSEST * (REAL)CLOSEST ? square : (REAL)CLOSEST * (REAL)CLOSEST);
        REAL felt = seen ? seen[*k] : r;
        if (felt >= cutoff) continue;
        b->slot[n] = *k;
        b->inverse[n] = 1 / r;
        for (int a = 0; a < 3; a++) b->unit[a][n] = v[a] / r;
        radial(felt / cutoff, b->radial[n], b->slope[n]);
        b->weight[n] = table + N_SPECIES * species[index[*k]];
        for (int i = 0; i < N_RADIAL; i++)
            for (int t = 0; t < N_SPECIES; t++) b->basis[n][i * N_SPECIES + t] = b->radial[n][i] * b->weight[n][t];
        monomials(b->unit[0][n], b->unit[1][n], b->unit[2][n], b->mono[n]);
        n++;
    }
    return n;
}

/* raw[monomial][atom][basis] = sum over neighbours of monomial times basis. */
void density(int64_t n_atoms, int64_t width, const REAL *vectors, const REAL *seen, const int64_t *index,
             const int64_t *species, const REAL *table, REAL cutoff, REAL *raw)
{
    static _Thread_local Block b __attribute__((aligned(64)));
    REAL sum[BROAD][WIDE] __attribute__((aligned(64)));
    for (int64_t i = 0; i < n_atoms; i++) {
        memset(sum, 0, sizeof sum);
        for (int64_t k = 0; k < width;) {
            int n = fill(&b, width, &k, vectors + 3 * width * i, seen ? seen + width * i : 0, index + width * i, species,
                         table, cutoff);
            for (int t = 0; t < N_BASIS; t += 4) {
                REAL part[4][WIDE];
                memcpy(part, sum[t], sizeof part);
                for (int j = 0; j < n; j++)
                    for (int q = 0; q < 4; q++)
                        for (int m = 0; m < WIDE; m++) part[q][m] += b.basis[j][t + q] * b.mono[j][m];
                memcpy(sum[t], part, sizeof part);
            }
        }
        for (int m = 0; m < N_MONO; m++)
            for (int t = 0; t < N_BASIS; t++) raw[(m * n_atoms + i) * N_BASIS + t] = sum[t][m];
    }
}

/* Derivatives by monomials and basis functions of a block, four neighbours at a time to stay in the registers. */
static void contract_block(Block *b, int n, REAL wide[BROAD][WIDE], REAL broad[N_MONO][BROAD])
{
    for (int j = 0; j < n; j += 4) {
        REAL mono[4][WIDE] = {{0}}, basis[4][BROAD] = {{0}};
        for (int t = 0; t < N_BASIS; t++)
            for (int q = 0; q < 4; q++)
                for (int m = 0; m < WIDE; m++) mono[q][m] += b->basis[j + q][t] * wide[t][m];
        for (int m = 0; m < N_MONO; m++)
            for (int q = 0; q < 4; q++)
                for (int t = 0; t < BROAD; t++) basis[q][t] += b->mono[j + q][m] * broad[m][t];
        memcpy(b->by_mono[j], mono, sizeof mono);
        memcpy(b->by_basis[j], basis, sizeof basis);
    }
}

/* Derivatives by raw become derivatives by the vectors; by_seen (may be null) takes those by the distances seen. */
void density_back(int64_t n_atoms, int64_t width, const REAL *vectors, const REAL *seen, const int64_t *index,
                  const int64_t *species, const REAL *table, REAL cutoff, const REAL *by_raw, REAL *by_vector, REAL *by_seen)
{
    static _Thread_local Block b __attribute__((aligned(64)));
    REAL wide[BROAD][WIDE] __attribute__((aligned(64))), broad[N_MONO][BROAD] __attribute__((aligned(64)));
    memset(wide, 0, sizeof wide);
    memset(broad, 0, sizeof broad);
    for (int64_t i = 0; i < n_atoms; i++) {
        for (int m = 0; m < N_MONO; m++)
            for (int t = 0; t < N_BASIS; t++) wide[t][m] = broad[m][t] = by_raw[(m * n_atoms + i) * N_BASIS + t];
        memset(by_vector + 3 * width * i, 0, 3 * width * sizeof(REAL));
        if (by_seen) memset(by_seen + width * i, 0, width * sizeof(REAL));
        for (int64_t k = 0; k < width;) {
            int n = fill(&b, width, &k, vectors + 3 * width * i, seen ? seen + width * i : 0, index + width * i, species,
                         table, cutoff);
            contract_block(&b, n, wide, broad);
            for (int j = 0; j < n; j++) {
                REAL *by_mono = b.by_mono[j], *by_basis = b.by_basis[j], by_unit[3];
                REAL along = 0;
                for (int q = 0; q < N_RADIAL; q++) {
                    REAL both = 0;
                    for (int t = 0; t < N_SPECIES; t++) both += by_basis[q * N_SPECIES + t] * b.weight[j][t];
                    along += both * b.slope[j][q];
                }
                along /= cutoff;
                monomials_back(b.unit[0][j], b.unit[1][j], b.unit[2][j], b.mono[j], by_mono, by_unit);
                REAL dot = 0;
                for (int a = 0; a < 3; a++) dot += by_unit[a] * b.unit[a][j];
                REAL *out = by_vector + 3 * (width * i + b.slot[j]);
                for (int a = 0; a < 3; a++) {
                    out[a] = (by_unit[a] - dot * b.unit[a][j]) * b.inverse[j];
                    if (!by_seen) out[a] += along * b.unit[a][j];
                }
                if (by_seen) by_seen[width * i + b.slot[j]] = along;
            }
        }
    }
}

/* Derivatives by the vectors become forces and derivatives by strain (not yet made symmetric). */
void assemble(int64_t n_atoms, int64_t width, const REAL *vectors, const int64_t *index, const int64_t *system,
              const REAL *by_vector, REAL *forces, REAL *virial)
{
    for (int64_t i = 0; i < n_atoms; i++) {
        REAL own[3] = {0}, local[9] = {0};
        for (int64_t k = width * i; k < width * (i + 1); k++) {
            const REAL *g = by_vector + 3 * k, *v = vectors + 3 * k;
            if (g[0] == 0 && g[1] == 0 && g[2] == 0) continue;
            REAL *other = forces + 3 * index[k];
            for (int a = 0; a < 3; a++) {
                own[a] += g[a];
                other[a] -= g[a];
                for (int c = 0; c < 3; c++) local[3 * a + c] += v[a] * g[c];
            }
        }
        for (int a = 0; a < 3; a++) forces[3 * i + a] += own[a];
        for (int a = 0; a < 9; a++) virial[9 * system[i] + a] += local[a];
    }
}

/* ---- invariants: LANES atoms at a time, one in each lane of a vector ---- */

#define LANES 16
#define N_HARM ((L_MAX + 1) * (L_MAX + 1))
#define DEEP_L (L_MAX < 3 ? L_MAX : 3)
#define N_DEEP ((DEEP_L + 1) * (DEEP_L + 1))
#define N_TWO ((L_MAX + 1) * CHANNELS * (CHANNELS + 1) / 2)
#define N_FEATURES (N_BASIS + N_TWO + (FACTORS - 2) * (DEEP_L + 1) * MIXED)
#define EACH _Pragma("GCC ivdep") for (int a = 0; a < LANES; a++)

typedef struct {
    REAL raw[N_MONO][N_BASIS][LANES], density[N_HARM][CHANNELS][LANES];
    REAL deep[N_DEEP][MIXED][LANES], square[N_DEEP][MIXED][LANES], by_deep[N_DEEP][MIXED][LANES];
    REAL by_square[N_DEEP][MIXED][LANES], by_density[N_HARM][CHANNELS][LANES];
    REAL by_features[N_FEATURES][LANES];
} Lanes;

typedef struct {
    const REAL *mixing;    /* [L_MAX + 1][N_BASIS][CHANNELS] */
    const REAL *harmonics; /* by degree [2l + 1][(l + 1)(l + 2) / 2] */
    const REAL *deep;      /* [DEEP_L + 1][CHANNELS][MIXED] */
    const int32_t *terms;  /* [n_terms][3]: factor, factor, product */
    const REAL *coefficients;
    int64_t n_terms;
} Tables;

static void load(Lanes *s, const REAL *raw, int64_t n_atoms, int64_t first, int n)
{
    for (int m = 0; m < N_MONO; m++)
        for (int a = 0; a < n; a++)
            for (int t = 0; t < N_BASIS; t++) s->raw[m][t][a] = raw[(m * n_atoms + first + a) * N_BASIS + t];
}

static void forward(Lanes *s, const Tables *w)
{
    memset(s->density, 0, sizeof s->density);
    const REAL *harmonic = w->harmonics;
    for (int l = 0, m0 = 0, q0 = 0; l <= L_MAX; l++) {
        int n = (l + 1) * (l + 2) / 2;
        for (int m = m0; m < m0 + n; m++) {
            REAL sum[CHANNELS][LANES] = {{0}};
            for (int t = 0; t < N_BASIS; t++)
                for (int c = 0; c < CHANNELS; c++) {
                    REAL v = w->mixing[(l * N_BASIS + t) * CHANNELS + c];
                    EACH sum[c][a] += v * s->raw[m][t][a];
                }
            for (int q = 0; q <= 2 * l; q++) {
                REAL v = harmonic[q * n + m - m0];
                for (int c = 0; c < CHANNELS; c++) EACH s->density[q0 + q][c][a] += v * sum[c][a];
            }
        }
        harmonic += n * (2 * l + 1);
        m0 += n;
        q0 += 2 * l + 1;
    }
#if FACTORS > 2
    memset(s->square, 0, sizeof s->square);
    for (int l = 0; l <= DEEP_L; l++)
        for (int q = l * l; q < (l + 1) * (l + 1); q++) {
            REAL sum[MIXED][LANES] = {{0}};
            for (int c = 0; c < CHANNELS; c++)
                for (int e = 0; e < MIXED; e++) {
                    REAL v = w->deep[(l * CHANNELS + c) * MIXED + e];
                    EACH sum[e][a] += v * s->density[q][c][a];
                }
            memcpy(s->deep[q], sum, sizeof sum);
        }
    for (int64_t k = 0; k < w->n_terms; k++) {
        const int32_t *term = w->terms + 3 * k;
        REAL v = w->coefficients[k], (*x)[LANES] = s->deep[term[0]], (*y)[LANES] = s->deep[term[1]];
        REAL(*z)[LANES] = s->square[term[2]];
        for (int e = 0; e < MIXED; e++) EACH z[e][a] += v * x[e][a] * y[e][a];
    }
#endif
}

/* features[atom]: the plain densities, then invariants of two, three and four factors. */
void contract(int64_t n_atoms, const REAL *raw, const REAL *mixing, const REAL *harmonics, const REAL *deep, const int32_t *terms,
              const REAL *coefficients, int64_t n_terms, REAL *features)
{
    static _Thread_local Lanes s __attribute__((aligned(64)));
    Tables w = {mixing, harmonics, deep, terms, coefficients, n_terms};
    for (int64_t first = 0; first < n_atoms; first += LANES) {
        int n = n_atoms - first < LANES ? (int)(n_atoms - first) : LANES, f = 0;
        REAL(*out)[LANES] = s.by_features;
        load(&s, raw, n_atoms, first, n);
        forward(&s, &w);
        for (int t = 0; t < N_BASIS; t++, f++) EACH out[f][a] = s.raw[0][t][a];
        for (int l = 0; l <= L_MAX; l++)
            for (int c = 0; c < CHANNELS; c++)
                for (int d = c; d < CHANNELS; d++, f++) {
                    REAL sum[LANES] = {0};
                    for (int q = l * l; q < (l + 1) * (l + 1); q++) EACH sum[a] += s.density[q][c][a] * s.density[q][d][a];
                    EACH out[f][a] = sum[a];
                }
#if FACTORS > 2
        for (int factors = 3; factors <= FACTORS; factors++) {
            REAL(*other)[MIXED][LANES] = factors == 3 ? s.deep : s.square;
            for (int l = 0; l <= DEEP_L; l++)
                for (int e = 0; e < MIXED; e++, f++) {
                    REAL sum[LANES] = {0};
                    for (int q = l * l; q < (l + 1) * (l + 1); q++) EACH sum[a] += s.square[q][e][a] * other[q][e][a];
                    EACH out[f][a] = sum[a];
                }
        }
#endif
        for (int a = 0; a < n; a++)
            for (int k = 0; k < N_FEATURES; k++) features[(first + a) * N_FEATURES + k] = out[k][a];
    }
}

static void backward(Lanes *s, const Tables *w)
{
    const REAL(*g)[LANES] = s->by_features;
    int f = N_BASIS;
    memset(s->by_density, 0, sizeof s->by_density);
    for (int l = 0; l <= L_MAX; l++)
        for (int c = 0; c < CHANNELS; c++)
            for (int d = c; d < CHANNELS; d++, f++)
                for (int q = l * l; q < (l + 1) * (l + 1); q++) {
                    EACH s->by_density[q][c][a] += g[f][a] * s->density[q][d][a];
                    EACH s->by_density[q][d][a] += g[f][a] * s->density[q][c][a];
                }
#if FACTORS > 2
    for (int l = 0; l <= DEEP_L; l++)
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int e = 0; e < MIXED; e++) {
                const REAL *g3 = g[f + l * MIXED + e];
                EACH s->by_deep[q][e][a] = g3[a] * s->square[q][e][a];
                EACH s->by_square[q][e][a] = g3[a] * s->deep[q][e][a];
#if FACTORS > 3
                const REAL *g4 = g[f + (DEEP_L + 1 + l) * MIXED + e];
                EACH s->by_square[q][e][a] += 2 * g4[a] * s->square[q][e][a];
#endif
            }
    for (int64_t k = 0; k < w->n_terms; k++) {
        const int32_t *term = w->terms + 3 * k;
        REAL v = w->coefficients[k], (*x)[LANES] = s->deep[term[0]], (*y)[LANES] = s->deep[term[1]];
        REAL(*gx)[LANES] = s->by_deep[term[0]], (*gy)[LANES] = s->by_deep[term[1]], (*gz)[LANES] = s->by_square[term[2]];
        for (int e = 0; e < MIXED; e++) {
            EACH gx[e][a] += v * gz[e][a] * y[e][a];
            EACH gy[e][a] += v * gz[e][a] * x[e][a];
        }
    }
    for (int l = 0; l <= DEEP_L; l++)
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int c = 0; c < CHANNELS; c++) {
                REAL sum[LANES] = {0};
                for (int e = 0; e < MIXED; e++) {
                    REAL v = w->deep[(l * CHANNELS + c) * MIXED + e];
                    EACH sum[a] += v * s->by_deep[q][e][a];
                }
                EACH s->by_density[q][c][a] += sum[a];
            }
#endif
    const REAL *harmonic = w->harmonics;
    for (int l = 0, m0 = 0, q0 = 0; l <= L_MAX; l++) {
        int n = (l + 1) * (l + 2) / 2;
        for (int m = m0; m < m0 + n; m++) {
            REAL sum[CHANNELS][LANES] = {{0}};
            for (int q = 0; q <= 2 * l; q++) {
                REAL v = harmonic[q * n + m - m0];
                for (int c = 0; c < CHANNELS; c++) EACH sum[c][a] += v * s->by_density[q0 + q][c][a];
            }
            for (int t = 0; t < N_BASIS; t++) {
                REAL back[LANES] = {0};
                for (int c = 0; c < CHANNELS; c++) {
                    REAL v = w->mixing[(l * N_BASIS + t) * CHANNELS + c];
                    EACH back[a] += v * sum[c][a];
                }
                if (m == 0) EACH back[a] += g[t][a];
                EACH s->raw[m][t][a] = back[a];
            }
        }
        harmonic += n * (2 * l + 1);
        m0 += n;
        q0 += 2 * l + 1;
    }
}

/* Derivatives by the features become derivatives by raw. */
void contract_back(int64_t n_atoms, const REAL *raw, const REAL *mixing, const REAL *harmonics, const REAL *deep,
                   const int32_t *terms, const REAL *coefficients, int64_t n_terms, const REAL *by_features, REAL *by_raw)
{
    static _Thread_local Lanes s __attribute__((aligned(64)));
    Tables w = {mixing, harmonics, deep, terms, coefficients, n_terms};
    for (int64_t first = 0; first < n_atoms; first += LANES) {
        int n = n_atoms - first < LANES ? (int)(n_atoms - first) : LANES;
        load(&s, raw, n_atoms, first, n);
        forward(&s, &w);
        for (int a = 0; a < n; a++)
            for (int k = 0; k < N_FEATURES; k++) s.by_features[k][a] = by_features[(first + a) * N_FEATURES + k];
        backward(&s, &w);
        for (int m = 0; m < N_MONO; m++)
            for (int a = 0; a < n; a++)
                for (int t = 0; t < N_BASIS; t++) by_raw[(m * n_atoms + first + a) * N_BASIS + t] = s.raw[m][t][a];
    }
}
