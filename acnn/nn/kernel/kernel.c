/* Energies, forces and virials of many structures, some atoms at a time. */
#include "lanes.h"

#include "dense.h"

#include "network.h"

#include "invariants.h"

#include "basis.h"

#include "neighborhood.h"

/* Some atoms of one element, one in each lane. */
typedef struct {
    const int64_t *atoms;
    int n;
    Room room;
    V repulsion;
    Invariants *s;
} Group;

typedef struct {
    int64_t n_atoms, n_systems, n_pulls;
    REAL *energies; /* [n_atoms][MEMBERS] */
    REAL *forces;   /* [n_pulls][n_atoms][3]: of the members' mean, or of each */
    REAL *virial;   /* [n_pulls][n_systems][3][3] */
} Result;

static void describe(const Structures *in, const Model *model, const int64_t *atoms, int64_t left, Group *group)
{
    group->atoms = atoms;
    group->n = together(in, atoms, left);
    gather(in, model, atoms, group->n, &group->room, &group->repulsion);
    density(model, &group->room, group->s->raw);
    contract(group->s, model);
}

/* What follows from the invariants of some groups of one element; the last takes the places of those that are missing. */
static void respond(int n_groups, const Structures *in, const Model *model, Group *groups, const Result *out)
{
    const int64_t element = in->species[*groups->atoms];
    const int pulled = MEMBERS / (int)out->n_pulls; /* members at once */
    V features[N_FEATURES * GROUPS], sums[MEMBERS * N_FIRST * GROUPS], members[MEMBERS * GROUPS];
    for (int k = 0; k < N_FEATURES; k++)
        for (int g = 0; g < GROUPS; g++)
            features[k * GROUPS + g] = groups[g < n_groups ? g : n_groups - 1].s->features[k];
    network(model, element, model->scale / pulled, features, members, sums);
    for (int p = 0; p < out->n_pulls; p++) {
        REAL *forces = out->forces + 3 * out->n_atoms * p, *virial = out->virial + 9 * out->n_systems * p;
        network_back(model, element, p * pulled, pulled, sums, features);
        for (int g = 0; g < n_groups; g++) {
            Group *group = groups + g;
            for (int k = 0; k < N_FEATURES; k++) group->s->by_features[k] = features[k * GROUPS + g];
            contract_back(group->s, model);
            density_back(in, model, group->atoms, group->n, &group->room, group->s->raw, forces, virial);
        }
    }
    for (int g = 0; g < n_groups; g++)
        for (int a = 0; a < groups[g].n; a++)
            for (int m = 0; m < MEMBERS; m++)
                out->energies[MEMBERS * groups[g].atoms[a] + m] = members[m * GROUPS + g][a] + groups[g].repulsion[a];
}

/*
 * Adds to forces and virial, of which there is one, or one for each member. `order` holds the atoms, those of an element
 * together, so that all that are done at a time share their weights. Sets *failed if the memory does not suffice.
 */
void evaluate(int64_t n_atoms, const Model *model, const Structures *in, const int64_t *order, int64_t n_systems,
              int64_t n_pulls, REAL *energies, REAL *forces, REAL *virial, int32_t *failed)
{
    const Result out = {n_atoms, n_systems, n_pulls, energies, forces, virial};
    Group groups[GROUPS];
    *failed = 0;
    for (int g = 0; g < GROUPS; g++) {
        groups[g].s = aligned(sizeof *groups[g].s);
        *failed |= !open_room(&groups[g].room, model, in) || !groups[g].s;
    }
    for (int64_t first = 0; !*failed && first < n_atoms;) {
        int64_t element = in->species[order[first]];
        int n = 0;
        while (n < GROUPS && first < n_atoms && in->species[order[first]] == element) {
            describe(in, model, order + first, n_atoms - first, groups + n);
            first += groups[n].n;
            n++;
        }
        respond(n, in, model, groups, &out);
    }
    for (int g = 0; g < GROUPS; g++) free(groups[g].s), close_room(&groups[g].room);
}
