/* Energies, forces and virials of many structures, some atoms at a time. */
#include "atoms.h"

static void *aligned(size_t size)
{
    return aligned_alloc(BYTES, (size + BYTES - 1) / BYTES * BYTES);
}

/*
 * Adds to forces and virial. `order` holds the atoms, those of an element together, so that all that are done at a time
 * share their weights. Sets *failed if the memory does not suffice.
 */
void evaluate(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, REAL *energies, REAL *forces,
              REAL *virial, int32_t *failed)
{
    int64_t n_elements = model->n_elements, width = in->width;
    Invariants *s = aligned(sizeof *s);
    Room room = {
        .places = aligned(n_elements * width * sizeof(Place)),
        .found = aligned(LANES * width * sizeof(Found)),
        .counts = aligned(n_elements * LANES * sizeof(int)),
        .ends = aligned(n_elements * sizeof(int)),
    };
    *failed = !(s && room.places && room.found && room.counts && room.ends);
    for (int64_t first = 0, n; !*failed && first < n_atoms; first += n) {
        const int64_t *atoms = order + first, element = in->species[*atoms];
        for (n = 1; n < LANES && first + n < n_atoms && in->species[atoms[n]] == element;) n++;
        evaluate_atoms(model, in, atoms, (int)n, &room, s, energies, forces, virial);
    }
    free(s), free(room.places), free(room.found), free(room.counts), free(room.ends);
}
