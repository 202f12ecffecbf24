/* From neighbours to their density, and back to forces. */

#define CHUNK 8 /* places handled together */

/* Structures and their padded neighbours. */
typedef struct {
    int64_t width;
    const double *positions, *cells;
    const int64_t *system, *species, *index; /* index, shift, mask: [n_atoms][width] */
    const float *shift;
    const uint8_t *mask;
} Structures;

/* One neighbour of each of LANES atoms, all of the same element; where an atom has none, one that is not felt. */
typedef struct {
    V unit[3], distance;
    V felt;    /* what the radial functions see, in units of the cutoff */
    V stretch; /* derivative of what they see by the distance */
    V push;    /* derivative of the repulsion by the distance */
    int64_t neighbor[LANES];
} Place;

typedef struct {
    REAL unit[3], distance;
    int64_t neighbor;
} Found;

typedef struct {
    V radial[CHUNK][N_RADIAL], slope[CHUNK][N_RADIAL], mono[CHUNK][N_MONO];
} Basis;

/* Half the repulsion of a pair closer than its onset, and what the network sees of the distance; see repulsion.py. */
static REAL repel(const Model *model, int pair, Place *place, int a)
{
    const REAL weights[] = {ZBL_WEIGHTS}, rates[] = {ZBL_RATES};
    REAL onset = model->onset[pair], r = LANE(place->distance, a), x = r / onset, rest = 1 - x, screen = 0, fall = 0;
    for (int k = 0; k < (int)(sizeof rates / sizeof *rates); k++) {
        REAL part = weights[k] * EXP(-rates[k] * r / model->length[pair]);
        screen += part;
        fall -= rates[k] / model->length[pair] * part;
    }
    REAL charge = model->charge[pair] / r, value = charge * screen + (REAL)WALL / x;
    REAL slope = charge * (fall - screen / r) - (REAL)WALL / (x * r);
    REAL width = (1 - (REAL)CLAMP) * 2 * onset, t = (r - onset) / width;
    if (t < -1) t = -1;
    LANE(place->felt, a) = (onset + width * (t - t * t * t - t * t * t * t / 2)) / model->cutoff;
    LANE(place->stretch, a) = 1 - 3 * t * t - 2 * t * t * t;
    LANE(place->push, a) = (slope * rest - 3 * value / onset) * rest * rest / 2;
    return value * rest * rest * rest / 2;
}

/* Find the neighbours of one atom within the cutoff; returns how many. */
static int look(const Structures *in, const Model *model, int64_t atom, Found *found)
{
    const double *cell = in->cells + 9 * in->system[atom], *own = in->positions + 3 * atom;
    int n = 0;
    for (int64_t k = in->width * atom; k < in->width * (atom + 1) && in->mask[k]; k++) {
        const double *other = in->positions + 3 * in->index[k];
        const float *s = in->shift + 3 * k;
        double v[3];
        for (int a = 0; a < 3; a++) v[a] = other[a] - own[a] + s[0] * cell[a] + s[1] * cell[3 + a] + s[2] * cell[6 + a];
        REAL square = (REAL)(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        if (square >= model->cutoff * model->cutoff) continue;
        REAL r = SQRT(square > (REAL)CLOSEST * (REAL)CLOSEST ? square : (REAL)CLOSEST * (REAL)CLOSEST);
        for (int a = 0; a < 3; a++) found[n].unit[a] = (REAL)v[a] / r;
        found[n].distance = r;
        found[n++].neighbor = in->index[k];
    }
    return n;
}

/* Put the neighbours of some atoms of one element into places; those of element e end at ends[e]. */
static void gather(const Structures *in, const Model *model, const int64_t *atoms, int n, Found *found, int *counts, int *ends,
                   Place *places, V *repulsion)
{
    int64_t element = in->species[atoms[0]];
    int n_elements = (int)model->n_elements, n_found[LANES];
    memset(counts, 0, n_elements * LANES * sizeof *counts);
    for (int a = 0; a < n; a++) {
        Found *own = found + in->width * a;
        n_found[a] = look(in, model, atoms[a], own);
        for (int k = 0; k < n_found[a]; k++) counts[in->species[own[k].neighbor] * LANES + a]++;
    }
    for (int e = 0, end = 0; e < n_elements; e++) {
        int most = 0;
        for (int a = 0; a < n; a++) {
            int count = counts[e * LANES + a];
            counts[e * LANES + a] = end;
            if (count > most) most = count;
        }
        end = ends[e] = end + most;
    }
    Place nobody;
    memset(&nobody, 0, sizeof nobody);
    nobody.distance = nobody.felt = SPLAT(1);
    for (int a = 0; a < LANES; a++) nobody.neighbor[a] = atoms[a < n ? a : 0];
    for (int k = 0; k < ends[n_elements - 1]; k++) places[k] = nobody;
    *repulsion = SPLAT(0);
    for (int a = 0; a < n; a++)
        for (int k = 0; k < n_found[a]; k++) {
            Found *f = found + in->width * a + k;
            int64_t other = in->species[f->neighbor];
            Place *place = places + counts[other * LANES + a]++;
            for (int c = 0; c < 3; c++) LANE(place->unit[c], a) = f->unit[c];
            LANE(place->distance, a) = f->distance;
            place->neighbor[a] = f->neighbor;
            LANE(place->felt, a) = f->distance / model->cutoff;
            LANE(place->stretch, a) = 1;
            int pair = (int)(element * n_elements + other);
            if (f->distance < model->onset[pair]) LANE(*repulsion, a) += repel(model, pair, place, a);
        }
}

/* Radial functions cos(k pi x) (1 - x^2)^3 and their derivatives by x; sine and cosine by their series. */
static void radial(V x, V *value, V *slope)
{
    const REAL pi = (REAL)3.14159265358979323846;
    const int order = sizeof(REAL) == 4 ? 14 : 22;
    V rest = 1 - x * x, fall = rest * rest * rest, fall_slope = -6 * x * rest * rest;
    V u = pi * (x - (REAL)0.5), square = u * u, c = SPLAT(1), s = c;
    UNROLL for (int k = order; k > 0; k -= 2) {
        s = 1 - s * square * (1 / (REAL)(k * (k + 1)));
        c = 1 - c * square * (1 / (REAL)(k * (k - 1)));
    }
    V sine = c, cosine = -s * u, ck = SPLAT(1), sk = SPLAT(0);
    for (int k = 0; k < N_RADIAL; k++) {
        value[k] = ck * fall;
        slope[k] = ck * fall_slope - (pi * k) * sk * fall;
        V next = ck * cosine - sk * sine;
        sk = sk * cosine + ck * sine;
        ck = next;
    }
}

/* Monomials x^a y^b z^c by degree: x times all of the degree before, y times those without x, z times the last. */
static void monomials(const V *unit, V *m)
{
    m[0] = SPLAT(1);
    int before = 0, n = 1, next = 1;
    UNROLL for (int degree = 1; degree <= L_MAX; degree++) {
        UNROLL for (int k = 0; k < n; k++) m[next + k] = unit[0] * m[before + k];
        UNROLL for (int k = 0; k < degree; k++) m[next + n + k] = unit[1] * m[before + n - degree + k];
        m[next + n + degree] = unit[2] * m[before + n - 1];
        before = next;
        n += degree + 1;
        next += n;
    }
}

/* The reverse of the above: derivatives by the monomials (overwritten) become those by x, y, z. */
static void monomials_back(const V *unit, const V *m, V *g, V *out)
{
    V gx = {0}, gy = {0}, gz = {0};
    int n = (L_MAX + 1) * (L_MAX + 2) / 2, next = N_MONO - n;
    UNROLL for (int degree = L_MAX; degree >= 1; degree--) {
        n -= degree + 1;
        int before = next - n;
        UNROLL for (int k = 0; k < n; k++) {
            gx += g[next + k] * m[before + k];
            g[before + k] += unit[0] * g[next + k];
        }
        UNROLL for (int k = 0; k < degree; k++) {
            gy += g[next + n + k] * m[before + n - degree + k];
            g[before + n - degree + k] += unit[1] * g[next + n + k];
        }
        gz += g[next + n + degree] * m[before + n - 1];
        g[before + n - 1] += unit[2] * g[next + n + degree];
        next = before;
    }
    out[0] = gx;
    out[1] = gy;
    out[2] = gz;
}

static void fill(const Place *places, int n, Basis *b)
{
    for (int k = 0; k < n; k++) {
        radial(places[k].felt, b->radial[k], b->slope[k]);
        monomials(places[k].unit, b->mono[k]);
    }
}

/* Add the products of the radial functions and `count` monomials of some neighbours. */
INLINE void accumulate(const int count, int n, const Basis *b, int m, V sum[][N_RADIAL])
{
    V part[2][N_RADIAL];
    UNROLL for (int q = 0; q < count; q++) UNROLL for (int i = 0; i < N_RADIAL; i++) part[q][i] = sum[m + q][i];
    for (int k = 0; k < n; k++)
        UNROLL for (int q = 0; q < count; q++)
            UNROLL for (int i = 0; i < N_RADIAL; i++) part[q][i] += b->radial[k][i] * b->mono[k][m + q];
    UNROLL for (int q = 0; q < count; q++) UNROLL for (int i = 0; i < N_RADIAL; i++) sum[m + q][i] = part[q][i];
}

/* raw[monomial][basis]: the sum over the neighbours of monomial times basis. */
static void density(const Model *model, const Place *places, const int *ends, V raw[N_MONO][N_BASIS])
{
    Basis b;
    memset(raw, 0, N_MONO * sizeof *raw);
    for (int e = 0, k = 0; e < model->n_elements; k = ends[e++]) {
        if (k == ends[e]) continue;
        V sum[N_MONO][N_RADIAL] = {{{0}}};
        for (; k < ends[e]; k += CHUNK) {
            int n = ends[e] - k < CHUNK ? ends[e] - k : CHUNK, m = 0;
            fill(places + k, n, &b);
            for (; m + 2 <= N_MONO; m += 2) accumulate(2, n, &b, m, sum);
            for (; m < N_MONO; m++) accumulate(1, n, &b, m, sum);
        }
        const REAL *weight = model->table + e * N_SPECIES;
        for (int m = 0; m < N_MONO; m++)
            for (int i = 0; i < N_RADIAL; i++)
                for (int t = 0; t < N_SPECIES; t++) raw[m][i * N_SPECIES + t] += weight[t] * sum[m][i];
    }
}

/* The derivative of the energy by the vector to a neighbour, from that by the density of its element. */
static void gradient(const Model *model, const Place *place, const Basis *b, int k, V by_sum[N_MONO][N_RADIAL], V *out)
{
    V by_mono[N_MONO], by_radial[N_RADIAL] = {{0}}, by_unit[3], along = {0}, dot = {0};
    for (int m = 0; m < N_MONO; m++) {
        V sum = {0};
        UNROLL for (int i = 0; i < N_RADIAL; i++) {
            sum += b->radial[k][i] * by_sum[m][i];
            by_radial[i] += b->mono[k][m] * by_sum[m][i];
        }
        by_mono[m] = sum;
    }
    for (int i = 0; i < N_RADIAL; i++) along += by_radial[i] * b->slope[k][i];
    along = along * place->stretch / model->cutoff + place->push;
    monomials_back(place->unit, b->mono[k], by_mono, by_unit);
    for (int a = 0; a < 3; a++) dot += by_unit[a] * place->unit[a];
    for (int a = 0; a < 3; a++) out[a] = (by_unit[a] - dot * place->unit[a]) / place->distance + along * place->unit[a];
}

/* Derivatives by the density become forces, and derivatives by strain (not yet made symmetric). */
static void density_back(const Structures *in, const Model *model, const int64_t *atoms, int n, const Place *places,
                         const int *ends, V by_raw[N_MONO][N_BASIS], REAL *forces, REAL *virial)
{
    Basis b;
    V own[3] = {{0}}, local[9] = {{0}};
    for (int e = 0, k = 0; e < model->n_elements; k = ends[e++]) {
        if (k == ends[e]) continue;
        V by_sum[N_MONO][N_RADIAL] = {{{0}}};
        const REAL *weight = model->table + e * N_SPECIES;
        for (int m = 0; m < N_MONO; m++)
            for (int i = 0; i < N_RADIAL; i++)
                for (int t = 0; t < N_SPECIES; t++) by_sum[m][i] += weight[t] * by_raw[m][i * N_SPECIES + t];
        for (; k < ends[e]; k += CHUNK) {
            int n_here = ends[e] - k < CHUNK ? ends[e] - k : CHUNK;
            fill(places + k, n_here, &b);
            for (int j = 0; j < n_here; j++) {
                const Place *place = places + k + j;
                V g[3];
                gradient(model, place, &b, j, by_sum, g);
                for (int c = 0; c < 3; c++) {
                    own[c] += g[c];
                    for (int d = 0; d < 3; d++) local[3 * c + d] += place->unit[c] * place->distance * g[d];
                }
                for (int a = 0; a < n; a++)
                    for (int c = 0; c < 3; c++) ADD(forces + 3 * place->neighbor[a] + c, -LANE(g[c], a));
            }
        }
    }
    for (int a = 0; a < n; a++) {
        for (int c = 0; c < 3; c++) ADD(forces + 3 * atoms[a] + c, LANE(own[c], a));
        for (int c = 0; c < 9; c++) ADD(virial + 9 * in->system[atoms[a]] + c, LANE(local[c], a));
    }
}
