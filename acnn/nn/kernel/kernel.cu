/* Energies, forces and virials of many structures, each atom in a thread of its own. */
#include "atoms.h"

/* Bytes of room for one thread. */
KERNEL measure(int64_t n, int64_t n_elements, int64_t width, int64_t *bytes)
{
    EACH(k, n) bytes[k] = width * (sizeof(Place) + sizeof(Found)) + 2 * n_elements * sizeof(int);
}

/*
 * Adds to forces and virial. `order` holds the atoms, those of an element together, so that neighbouring threads read the
 * same weights. `room` is for as many threads as there are, each what `measure` says.
 */
KERNEL evaluate(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, REAL *energies, REAL *forces,
                REAL *virial, char *room, int64_t bytes)
{
    char *own = room + THREAD * bytes;
    Room kept;
    kept.places = (Place *)own;
    kept.found = (Found *)(kept.places + in->width);
    kept.counts = (int *)(kept.found + in->width);
    kept.ends = kept.counts + model->n_elements;
    Invariants s;
    EACH(k, n_atoms) evaluate_atoms(model, in, order + k, 1, &kept, &s, energies, forces, virial);
}
