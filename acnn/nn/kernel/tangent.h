/*
 * How the invariants change while the neighbours move, and what both the invariants and their change say of the weights.
 *
 * t holds the changes of what s holds. The way back starts from derivatives by the features (s->by_features) and by their
 * changes (t->by_features), and ends with those by the weights; without `dual` nothing moves and t is not used.
 */

/* Derivatives by the weights of the embedding, not yet summed over the lanes. */
typedef struct {
    V mixing[L_MAX + 1][N_BASIS][CHANNELS], deep[DEEP_L + 1][CHANNELS][MIXED];
} Learned;

/* Changes of the monomials while the unit vector changes by `turn`. */
INLINE void monomials_along(const V *unit, const V *turn, const V *m, V *d)
{
    d[0] = (V){0};
    int before = 0, n = 1, next = 1;
    UNROLL for (int degree = 1; degree <= L_MAX; degree++) {
        UNROLL for (int k = 0; k < n; k++) d[next + k] = turn[0] * m[before + k] + unit[0] * d[before + k];
        UNROLL for (int k = 0; k < degree; k++) {
            int from = before + n - degree + k;
            d[next + n + k] = turn[1] * m[from] + unit[1] * d[from];
        }
        d[next + n + degree] = turn[2] * m[before + n - 1] + unit[2] * d[before + n - 1];
        before = next;
        n += degree + 1;
        next += n;
    }
}

/* As add_up, of the changes; moves[k] is that of the vector to neighbour k. */
static void add_up_along(const Model *model, const Place *places, const V moves[][3], int n_places, V sum[N_MONO][N_RADIAL])
{
    V radials[2][N_RADIAL], monos[2][N_MONO];
    memset(sum, 0, N_MONO * sizeof *sum);
    for (int k = 0; k < n_places; k++) {
        const Place *place = places + k;
        V turn[3], along = {0};
        for (int c = 0; c < 3; c++) along += moves[k][c] * place->unit[c];
        for (int c = 0; c < 3; c++) turn[c] = (moves[k][c] - along * place->unit[c]) / place->distance;
        radial(place->felt, radials[0], radials[1]);
        along *= place->stretch / model->cutoff;
        UNROLL for (int i = 0; i < N_RADIAL; i++) radials[1][i] *= along;
        monomials(place->unit, monos[0]);
        monomials_along(place->unit, turn, monos[0], monos[1]);
        for (int m = 0; m < N_MONO; m++)
            UNROLL for (int i = 0; i < N_RADIAL; i++)
                sum[m][i] += radials[0][i] * monos[1][m] + radials[1][i] * monos[0][m];
    }
}

/* Pairs of channels of equal degree. */
static void pairs_along(const Invariants *s, Invariants *t)
{
    V *out = t->features + N_BASIS;
    for (int l = 0; l <= L_MAX; l++)
        for (int c = 0; c < CHANNELS; c++)
            for (int d = c; d < CHANNELS; d++) {
                V sum = {0};
                for (int q = l * l; q < (l + 1) * (l + 1); q++)
                    sum += t->density[q][c] * s->density[q][d] + s->density[q][c] * t->density[q][d];
                *out++ = sum;
            }
}

INLINE void pairs_learn(const int dual, Invariants *s, Invariants *t)
{
    const V *g = s->by_features + N_BASIS, *h = t->by_features + N_BASIS;
    for (int l = 0; l <= L_MAX; l++) {
        V still[CHANNELS][CHANNELS], moving[CHANNELS][CHANNELS];
        g = spread_out(g, still);
        if (dual) h = spread_out(h, moving);
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int c = 0; c < CHANNELS; c++) {
                V sum = {0}, along = {0};
                UNROLL for (int d = 0; d < CHANNELS; d++) {
                    sum += still[c][d] * s->density[q][d];
                    if (!dual) continue;
                    sum += moving[c][d] * t->density[q][d];
                    along += moving[c][d] * s->density[q][d];
                }
                s->by_density[q][c] = sum;
                if (dual) t->by_density[q][c] = along;
            }
    }
}

#if FACTORS > 2
static void couple_along(const Invariants *s, Invariants *t, const Model *w)
{
    int64_t k = 0;
    for (int q = 0, l = 0; q < N_DEEP; q++) {
        if (q == (l + 1) * (l + 1)) l++;
        dense(CHANNELS, MIXED, w->deep + l * CHANNELS * MIXED, t->density[q], t->deep[q]);
    }
    for (int q = 0; q < N_DEEP; q++) {
        V sum[MIXED] = {{0}};
        for (; k < w->n_terms && w->terms[3 * k + 2] == q; k++) {
            int x = w->terms[3 * k], y = w->terms[3 * k + 1];
            REAL v = w->term_values[k];
            UNROLL for (int e = 0; e < MIXED; e++)
                sum[e] += v * (t->deep[x][e] * s->deep[y][e] + s->deep[x][e] * t->deep[y][e]);
        }
        memcpy(t->square[q], sum, sizeof sum);
    }
    V *out = t->features + N_BASIS + N_TWO;
    memset(out, 0, (FACTORS - 2) * (DEEP_L + 1) * MIXED * sizeof(V));
    for (int l = 0; l <= DEEP_L; l++)
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int e = 0; e < MIXED; e++) {
                out[l * MIXED + e] += t->square[q][e] * s->deep[q][e] + s->square[q][e] * t->deep[q][e];
#if FACTORS > 3
                out[(DEEP_L + 1 + l) * MIXED + e] += 2 * s->square[q][e] * t->square[q][e];
#endif
            }
}

/* From derivatives by the couplings to those by the mixed density, and by its weights; adds to by_density. */
INLINE void couple_learn(const int dual, Invariants *s, Invariants *t, const Model *w, Learned *out)
{
    const V *g = s->by_features + N_BASIS + N_TWO, *h = t->by_features + N_BASIS + N_TWO;
    for (int l = 0; l <= DEEP_L; l++)
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int e = 0; e < MIXED; e++) {
                V three = g[l * MIXED + e], four = FACTORS > 3 ? 2 * g[(DEEP_L + 1 + l) * MIXED + e] : (V){0};
                s->by_deep[q][e] = three * s->square[q][e];
                s->by_square[q][e] = three * s->deep[q][e] + four * s->square[q][e];
                if (!dual) continue;
                three = h[l * MIXED + e], four = FACTORS > 3 ? 2 * h[(DEEP_L + 1 + l) * MIXED + e] : (V){0};
                s->by_deep[q][e] += three * t->square[q][e];
                s->by_square[q][e] += three * t->deep[q][e] + four * t->square[q][e];
                t->by_deep[q][e] = three * s->square[q][e];
                t->by_square[q][e] = three * s->deep[q][e] + four * s->square[q][e];
            }
    for (int64_t k = 0; k < w->n_terms; k++) {
        int x = w->terms[3 * k], y = w->terms[3 * k + 1], z = w->terms[3 * k + 2];
        UNROLL for (int e = 0; e < MIXED; e++) {
            V by = w->term_values[k] * s->by_square[z][e];
            s->by_deep[x][e] += by * s->deep[y][e];
            s->by_deep[y][e] += by * s->deep[x][e];
            if (!dual) continue;
            V along = w->term_values[k] * t->by_square[z][e];
            s->by_deep[x][e] += along * t->deep[y][e];
            s->by_deep[y][e] += along * t->deep[x][e];
            t->by_deep[x][e] += along * s->deep[y][e];
            t->by_deep[y][e] += along * s->deep[x][e];
        }
    }
    for (int q = 0, l = 0; q < N_DEEP; q++) {
        V sum[CHANNELS];
        if (q == (l + 1) * (l + 1)) l++;
        const REAL *weight = w->deep + l * CHANNELS * MIXED;
        dense_back(CHANNELS, MIXED, weight, s->by_deep[q], sum);
        for (int c = 0; c < CHANNELS; c++) s->by_density[q][c] += sum[c];
        if (dual) {
            dense_back(CHANNELS, MIXED, weight, t->by_deep[q], sum);
            for (int c = 0; c < CHANNELS; c++) t->by_density[q][c] += sum[c];
        }
        for (int c = 0; c < CHANNELS; c++)
            UNROLL for (int e = 0; e < MIXED; e++) {
                out->deep[l][c][e] += s->density[q][c] * s->by_deep[q][e];
                if (dual) out->deep[l][c][e] += t->density[q][c] * t->by_deep[q][e];
            }
    }
}
#endif

/* From derivatives by the density to those by the mixing weights; raw becomes the derivative by itself. */
static void mix_learn(Invariants *s, const Model *w, Learned *out)
{
    int64_t k = 0;
    for (int l = 0, m = 0; l <= L_MAX; l++) {
        const REAL *weight = w->mixing + l * N_BASIS * CHANNELS;
        for (int end = m + (l + 1) * (l + 2) / 2; m < end; m++) {
            V sum[CHANNELS] = {{0}};
            for (; k < w->n_turns && w->turns[2 * k + 1] == m; k++)
                for (int c = 0; c < CHANNELS; c++) sum[c] += w->turn_values[k] * s->by_density[w->turns[2 * k]][c];
            for (int b = 0; b < N_BASIS; b++)
                UNROLL for (int c = 0; c < CHANNELS; c++) out->mixing[l][b][c] += s->raw[m][b] * sum[c];
            if (w->n_elements > 1) dense_back(N_BASIS, CHANNELS, weight, sum, s->raw[m]);
        }
    }
    for (int t = 0; t < N_BASIS; t++) s->raw[0][t] += s->by_features[t];
}

/* Derivatives by the channels of the elements, from those by raw, which are the sums of the elements times them. */
static void table_learn(const Invariants *s, const Model *w, V sums[][N_MONO][N_RADIAL], V *table)
{
    for (int e = 0; e < w->n_elements; e++)
        for (int m = 0; m < N_MONO; m++)
            for (int i = 0; i < N_RADIAL; i++)
                for (int t = 0; t < N_SPECIES; t++)
                    table[e * N_SPECIES + t] += sums[e][m][i] * s->raw[m][i * N_SPECIES + t];
}

static void contract_along(const Invariants *s, Invariants *t, const Model *w)
{
    memcpy(t->features, t->raw[0], sizeof t->raw[0]);
    mix(t, w);
    pairs_along(s, t);
#if FACTORS > 2
    couple_along(s, t, w);
#endif
}

static void contract_learn(const int dual, Invariants *s, Invariants *t, const Model *w, Learned *out)
{
    if (dual) pairs_learn(1, s, t);
    else pairs_learn(0, s, t);
#if FACTORS > 2
    if (dual) couple_learn(1, s, t, w, out);
    else couple_learn(0, s, t, w, out);
#endif
    mix_learn(s, w, out);
    if (dual) mix_learn(t, w, out);
}
