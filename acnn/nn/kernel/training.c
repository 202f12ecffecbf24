/*
 * The embedding and its derivatives of first and second order, for training.
 *
 * `order` holds the atoms, those of an element together. `sums` holds what add_up finds, by element, of all that are done at a
 * time; it is written by `describe` and read by the others. Each function sets *failed if the memory does not suffice.
 */
#include "lanes.h"

#include "dense.h"

#include "invariants.h"

#include "basis.h"

#include "neighborhood.h"

#include "tangent.h"

typedef V Sums[N_MONO][N_RADIAL];

/* Numbers of some atoms, one in each lane, from or to rows by atom. */
static void load(const REAL *rows, int width, const int64_t *atoms, int n, V *out)
{
    for (int k = 0; k < width; k++) out[k] = (V){0};
    for (int a = 0; a < n; a++)
        for (int k = 0; k < width; k++) out[k][a] = rows[width * atoms[a] + k];
}

static void store(const V *in, int width, const int64_t *atoms, int n, REAL *rows)
{
    for (int a = 0; a < n; a++)
        for (int k = 0; k < width; k++) rows[width * atoms[a] + k] = in[k][a];
}

static void add_over_lanes(const V *in, int64_t n, REAL *out)
{
    for (int64_t k = 0; k < n; k++)
        for (int a = 0; a < LANES; a++) out[k] += in[k][a];
}

static void weigh_all(const Model *model, Sums *sums, V raw[N_MONO][N_BASIS])
{
    memset(raw, 0, N_MONO * sizeof *raw);
    for (int e = 0; e < model->n_elements; e++) weigh(model, e, sums[e], raw);
}

/* Invariants, and the repulsion of each atom. */
void describe(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, Sums *sums, REAL *features,
              REAL *repulsion, int32_t *failed)
{
    Room room;
    Invariants *s = aligned(sizeof *s);
    *failed = !open_room(&room, model, in) || !s;
    for (int64_t first = 0, n; !*failed && first < n_atoms; first += n, sums += model->n_elements) {
        const int64_t *atoms = order + first;
        V pushed;
        n = together(in, atoms, n_atoms - first);
        gather(in, model, atoms, (int)n, &room, &pushed);
        for (int e = 0, k = 0; e < model->n_elements; k = room.ends[e++]) add_up(room.places + k, room.ends[e] - k, sums[e]);
        weigh_all(model, sums, s->raw);
        contract(s, model);
        store(s->features, N_FEATURES, atoms, (int)n, features);
        store(&pushed, 1, atoms, (int)n, repulsion);
    }
    free(s), close_room(&room);
}

/* Adds to forces and virial those of the repulsion and of an energy with some derivatives by the features. */
void push(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, Sums *sums,
          const REAL *by_features, REAL *forces, REAL *virial, int32_t *failed)
{
    Room room;
    Invariants *s = aligned(sizeof *s);
    *failed = !open_room(&room, model, in) || !s;
    for (int64_t first = 0, n; !*failed && first < n_atoms; first += n, sums += model->n_elements) {
        const int64_t *atoms = order + first;
        V pushed;
        n = together(in, atoms, n_atoms - first);
        gather(in, model, atoms, (int)n, &room, &pushed);
        weigh_all(model, sums, s->raw);
        contract(s, model);
        load(by_features, N_FEATURES, atoms, (int)n, s->by_features);
        contract_back(s, model);
        density_back(in, model, atoms, (int)n, &room, s->raw, forces, virial);
    }
    free(s), close_room(&room);
}

/*
 * Changes of the invariants, and those of the sums, while the vectors change as `by_forces` and the symmetric `by_virial`,
 * derivatives of anything by forces and virials, ask for: their product with what `push` gives is that of these changes
 * with `by_features`.
 */
void follow(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, Sums *sums,
            const REAL *by_forces, const REAL *by_virial, Sums *changes, REAL *features, int32_t *failed)
{
    Room room;
    Invariants *s = aligned(2 * sizeof *s), *t = s + 1;
    V(*moves)[3] = aligned(model->n_elements * in->width * sizeof *moves);
    *failed = !open_room(&room, model, in) || !s || !moves;
    for (int64_t first = 0, n; !*failed && first < n_atoms;
         first += n, sums += model->n_elements, changes += model->n_elements) {
        const int64_t *atoms = order + first;
        V pushed, own[3], strain[9] = {{0}};
        n = together(in, atoms, n_atoms - first);
        gather(in, model, atoms, (int)n, &room, &pushed);
        load(by_forces, 3, atoms, (int)n, own);
        for (int a = 0; a < n; a++)
            for (int c = 0; c < 9; c++) strain[c][a] = by_virial[9 * in->system[atoms[a]] + c];
        for (int k = 0; k < room.ends[model->n_elements - 1]; k++) {
            const Place *place = room.places + k;
            for (int c = 0; c < 3; c++) {
                V other = {0}, stretched = {0};
                for (int a = 0; a < n; a++) other[a] = by_forces[3 * place->neighbor[a] + c];
                for (int d = 0; d < 3; d++) stretched += strain[3 * c + d] * place->unit[d];
                moves[k][c] = own[c] - other + stretched * place->distance;
            }
        }
        for (int e = 0, k = 0; e < model->n_elements; k = room.ends[e++])
            add_up_along(model, room.places + k, moves + k, room.ends[e] - k, changes[e]);
        weigh_all(model, sums, s->raw);
        weigh_all(model, changes, t->raw);
        contract(s, model);
        contract_along(s, t, model);
        store(t->features, N_FEATURES, atoms, (int)n, features);
    }
    free(s), free(moves), close_room(&room);
}

/*
 * Adds to derivatives by the weights: mixing, deep and table, laid out as in Model. They follow from those by the features
 * and, unless `changes` is null (an empty tensor), by the changes that `follow` gives.
 */
void learn(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, Sums *sums, Sums *changes,
           const REAL *by_features, const REAL *by_changes, REAL *mixing, REAL *deep, REAL *table, int32_t *failed)
{
    int64_t n_table = model->n_elements * N_SPECIES;
    Invariants *s = aligned(2 * sizeof *s), *t = s + 1;
    Learned *learned = aligned(sizeof *learned);
    V *channels = aligned(n_table * sizeof *channels);
    *failed = !s || !learned || !channels;
    if (!*failed) memset(learned, 0, sizeof *learned), memset(channels, 0, n_table * sizeof *channels);
    for (int64_t first = 0, n; !*failed && first < n_atoms; first += n, sums += model->n_elements) {
        const int64_t *atoms = order + first;
        n = together(in, atoms, n_atoms - first);
        weigh_all(model, sums, s->raw);
        contract(s, model);
        load(by_features, N_FEATURES, atoms, (int)n, s->by_features);
        if (changes) {
            weigh_all(model, changes, t->raw);
            contract_along(s, t, model);
            load(by_changes, N_FEATURES, atoms, (int)n, t->by_features);
        }
        contract_learn(changes != 0, s, t, model, learned);
        if (model->n_elements > 1) table_learn(s, model, sums, channels);
        if (!changes) continue;
        if (model->n_elements > 1) table_learn(t, model, changes, channels);
        changes += model->n_elements;
    }
    if (!*failed) {
        add_over_lanes(learned->mixing[0][0], sizeof learned->mixing / sizeof(V), mixing);
        add_over_lanes(learned->deep[0][0], FACTORS > 2 ? sizeof learned->deep / sizeof(V) : 0, deep);
        add_over_lanes(channels, n_table, table);
    }
    free(s), free(learned), free(channels);
}
