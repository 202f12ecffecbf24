/* Energies, forces and virials of many structures, some atoms at a time. */
#include "lanes.h"

#include "network.h"

#include "invariants.h"

#include "basis.h"

#include "neighborhood.h"

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
    Place *places = aligned(n_elements * width * sizeof *places);
    Found *found = aligned(LANES * width * sizeof *found);
    int *counts = aligned(n_elements * LANES * sizeof *counts), *ends = aligned(n_elements * sizeof *ends);
    *failed = !(s && places && found && counts && ends);
    for (int64_t first = 0, n; !*failed && first < n_atoms; first += n) {
        const int64_t *atoms = order + first, element = in->species[*atoms];
        for (n = 1; n < LANES && first + n < n_atoms && in->species[atoms[n]] == element;) n++;
        V members[MEMBERS], repulsion;
        gather(in, model, atoms, (int)n, found, counts, ends, places, &repulsion);
        density(model, places, ends, s->raw);
        contract(s, model);
        network(model, (int)element, s->features, members, s->by_features);
        contract_back(s, model);
        density_back(in, model, atoms, (int)n, places, ends, s->raw, forces, virial);
        for (int a = 0; a < n; a++)
            for (int m = 0; m < MEMBERS; m++) energies[MEMBERS * atoms[a] + m] = members[m][a] + repulsion[a];
    }
    free(s), free(places), free(found), free(counts), free(ends);
}
