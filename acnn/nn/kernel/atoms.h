/* Energies, forces and virials of at most LANES atoms of one element. */
#include "lanes.h"

#include "network.h"

#include "invariants.h"

#include "neighborhood.h"

/* Where the neighbours of the atoms are put: `places` for LANES atoms at once, the rest for each. */
typedef struct {
    Place *places;
    Found *found;
    int *counts, *ends;
} Room;

static void evaluate_atoms(const Model *model, const Structures *in, const int64_t *atoms, int n, const Room *room, Invariants *s,
                           REAL *energies, REAL *forces, REAL *virial)
{
    V members[MEMBERS], repulsion;
    gather(in, model, atoms, n, room->found, room->counts, room->ends, room->places, &repulsion);
    density(model, room->places, room->ends, s->raw);
    contract(s, model);
    network(model, (int)in->species[*atoms], s->features, members, s->by_features);
    contract_back(s, model);
    density_back(in, model, atoms, n, room->places, room->ends, s->raw, forces, virial);
    for (int a = 0; a < n; a++)
        for (int m = 0; m < MEMBERS; m++) energies[MEMBERS * atoms[a] + m] = LANE(members[m], a) + LANE(repulsion, a);
}
