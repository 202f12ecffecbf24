/* Energies, forces and virials of many structures, some atoms at a time. */
#include "lanes.h"

#include "network.h"

#include "invariants.h"

#include "basis.h"

#include "neighborhood.h"

/*
 * Adds to forces and virial. `order` holds the atoms, those of an element together, so that all that are done at a time
 * share their weights. Sets *failed if the memory does not suffice.
 */
void evaluate(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, REAL *energies, REAL *forces,
              REAL *virial, int32_t *failed)
{
    Room room;
    Invariants *s = aligned(sizeof *s);
    *failed = !open_room(&room, model, in) || !s;
    for (int64_t first = 0, n; !*failed && first < n_atoms; first += n) {
        const int64_t *atoms = order + first, element = in->species[*atoms];
        V members[MEMBERS], repulsion;
        n = together(in, atoms, n_atoms - first);
        gather(in, model, atoms, (int)n, &room, &repulsion);
        density(model, &room, s->raw);
        contract(s, model);
        network(model, (int)element, s->features, members, s->by_features);
        contract_back(s, model);
        density_back(in, model, atoms, (int)n, &room, s->raw, forces, virial);
        for (int a = 0; a < n; a++)
            for (int m = 0; m < MEMBERS; m++) energies[MEMBERS * atoms[a] + m] = members[m][a] + repulsion[a];
    }
    free(s), close_room(&room);
}
