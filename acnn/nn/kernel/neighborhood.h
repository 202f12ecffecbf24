/* From neighbours to their density, and back to forces. */

#define CHUNK 8 /* places handled together */

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

/* Find the neighbours of one atom within the cutoff; returns how many. */
static int look(const Structures *in, const Model *model, int64_t atom, Found *found)
{
    const double *cell = in->cells + 9 * in->system[atom], *own = in->positions + 3 * atom;
    int n = 0;
    for (int64_t k = in->width * atom; k < in->width * (atom + 1) && (in->vectors || in->mask[k]); k++) {
        double v[3];
        if (in->vectors)
            for (int a = 0; a < 3; a++) v[a] = in->vectors[3 * k + a];
        else {
            const double *other = in->positions + 3 * in->index[k];
            const float *s = in->shift + 3 * k;
            for (int a = 0; a < 3; a++)
                v[a] = other[a] - own[a] + s[0] * cell[a] + s[1] * cell[3 + a] + s[2] * cell[6 + a];
        }
        REAL square = (REAL)(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
        if (square >= model->cutoff * model->cutoff) continue;
        REAL r = SQRT(square > (REAL)CLOSEST * (REAL)CLOSEST ? square : (REAL)CLOSEST * (REAL)CLOSEST);
        for (int a = 0; a < 3; a++) found[n].unit[a] = (REAL)v[a] / r;
        found[n].distance = r;
        found[n++].neighbor = in->index[k];
    }
    return n;
}

/* The places of some atoms, and what is needed to fill them. */
typedef struct {
    Place *places;
    Found *found;
    int *counts, *ends; /* those of element e end at ends[e] */
} Room;

static void *aligned(size_t size)
{
    return aligned_alloc(BYTES, (size + BYTES - 1) / BYTES * BYTES);
}

/* Say whether the memory suffices; the room must be closed in any case. */
static int open_room(Room *room, const Model *model, const Structures *in)
{
    room->places = aligned(model->n_elements * in->width * sizeof(Place));
    room->found = aligned(LANES * in->width * sizeof(Found));
    room->counts = aligned(model->n_elements * LANES * sizeof(int));
    room->ends = aligned(model->n_elements * sizeof(int));
    return room->places && room->found && room->counts && room->ends;
}

static void close_room(Room *room)
{
    free(room->places), free(room->found), free(room->counts), free(room->ends);
}

/* Of sorted atoms, count those that can be done together: of one element, no more than there are lanes. */
static int together(const Structures *in, const int64_t *atoms, int64_t left)
{
    int n = 1;
    while (n < LANES && n < left && in->species[atoms[n]] == in->species[*atoms]) n++;
    return n;
}

/* Put the neighbours of some atoms of one element into places. */
static void gather(const Structures *in, const Model *model, const int64_t *atoms, int n, Room *room, V *repulsion)
{
    Place *places = room->places;
    Found *found = room->found;
    int *counts = room->counts, *ends = room->ends;
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
    Place nobody = {.distance = 1 - (V){0}, .felt = 1 - (V){0}};
    for (int a = 0; a < LANES; a++) nobody.neighbor[a] = atoms[a < n ? a : 0];
    for (int k = 0; k < ends[n_elements - 1]; k++) places[k] = nobody;
    *repulsion = (V){0};
    for (int a = 0; a < n; a++)
        for (int k = 0; k < n_found[a]; k++) {
            Found *f = found + in->width * a + k;
            int64_t other = in->species[f->neighbor];
            Place *place = places + counts[other * LANES + a]++;
            for (int c = 0; c < 3; c++) place->unit[c][a] = f->unit[c];
            place->distance[a] = f->distance;
            place->neighbor[a] = f->neighbor;
            place->felt[a] = f->distance / model->cutoff;
            place->stretch[a] = 1;
            int pair = (int)(element * n_elements + other);
            if (f->distance >= model->onset[pair]) continue;
            Repelled r = repel(model->onset[pair], model->charge[pair], model->length[pair], f->distance);
            place->felt[a] = r.felt / model->cutoff;
            place->stretch[a] = r.stretch;
            place->push[a] = r.push;
            (*repulsion)[a] += r.energy;
        }
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

/* sum[monomial][function]: the sum over some neighbours, all of one element, of monomial times radial function. */
static void add_up(const Place *places, int n_places, V sum[N_MONO][N_RADIAL])
{
    Basis b;
    memset(sum, 0, N_MONO * sizeof *sum);
    for (int k = 0; k < n_places; k += CHUNK) {
        int n = n_places - k < CHUNK ? n_places - k : CHUNK, m = 0;
        fill(places + k, n, &b);
        for (; m + 2 <= N_MONO; m += 2) accumulate(2, n, &b, m, sum);
        for (; m < N_MONO; m++) accumulate(1, n, &b, m, sum);
    }
}

/* Add the sum of an element times its channels to raw[monomial][basis]. */
static void weigh(const Model *model, int e, V sum[N_MONO][N_RADIAL], V raw[N_MONO][N_BASIS])
{
    const REAL *weight = model->table + e * N_SPECIES;
    for (int m = 0; m < N_MONO; m++)
        for (int i = 0; i < N_RADIAL; i++)
            for (int t = 0; t < N_SPECIES; t++) raw[m][i * N_SPECIES + t] += weight[t] * sum[m][i];
}

/* raw[monomial][basis]: the sum over the neighbours of monomial times basis. */
static void density(const Model *model, const Room *room, V raw[N_MONO][N_BASIS])
{
    memset(raw, 0, N_MONO * sizeof *raw);
    for (int e = 0, k = 0; e < model->n_elements; k = room->ends[e++]) {
        V sum[N_MONO][N_RADIAL];
        if (k == room->ends[e]) continue;
        add_up(room->places + k, room->ends[e] - k, sum);
        weigh(model, e, sum, raw);
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
static void density_back(const Structures *in, const Model *model, const int64_t *atoms, int n, const Room *room,
                         V by_raw[N_MONO][N_BASIS], REAL *forces, REAL *virial)
{
    const Place *places = room->places;
    const int *ends = room->ends;
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
                    for (int c = 0; c < 3; c++) forces[3 * place->neighbor[a] + c] -= g[c][a];
            }
        }
    }
    for (int a = 0; a < n; a++) {
        for (int c = 0; c < 3; c++) forces[3 * atoms[a] + c] += own[c][a];
        for (int c = 0; c < 9; c++) virial[9 * in->system[atoms[a]] + c] += local[c][a];
    }
}
