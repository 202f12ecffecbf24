/*
 * The neighbour density of ACE and its gradient, one atom at a time, everything in the first-level cache.
 *
 * Compiled for one shape of model: REAL, N_RADIAL (functions), N_SPECIES (channels), L_MAX. Neighbours beyond the cutoff are
 * skipped, so padding costs nothing. Layouts are those of the PyTorch code beside this file.
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

/* raw[atom][monomial][basis] = sum over neighbours of monomial times basis. */
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
        REAL *out = raw + i * N_MONO * N_BASIS;
        for (int m = 0; m < N_MONO; m++)
            for (int t = 0; t < N_BASIS; t++) out[m * N_BASIS + t] = sum[t][m];
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
        const REAL *in = by_raw + i * N_MONO * N_BASIS;
        for (int m = 0; m < N_MONO; m++)
            for (int t = 0; t < N_BASIS; t++) wide[t][m] = broad[m][t] = in[m * N_BASIS + t];
        memset(by_vector + 3 * width * i, 0, 3 * width * sizeof(REAL));
        if (by_seen) memset(by_seen + width * i, 0, width * sizeof(REAL));
        for (int64_t k = 0; k < width;) {
            int n = fill(&b, width, &k, vectors + 3 * width * i, seen ? seen + width * i : 0, index + width * i, species,
                         table, cutoff);
            for (int j = 0; j < n; j++) {
                REAL by_mono[WIDE] = {0}, by_basis[BROAD] = {0}, by_unit[3];
                for (int t = 0; t < N_BASIS; t++)
                    for (int m = 0; m < WIDE; m++) by_mono[m] += b.basis[j][t] * wide[t][m];
                for (int m = 0; m < N_MONO; m++)
                    for (int t = 0; t < BROAD; t++) by_basis[t] += b.mono[j][m] * broad[m][t];
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
