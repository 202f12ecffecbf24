/* The density of the neighbours becomes invariants of one to four factors, and back. */

typedef struct {
    V raw[N_MONO][N_BASIS]; /* the density by monomials; on the way back its derivative */
    V density[N_HARM][CHANNELS], by_density[N_HARM][CHANNELS];
    V deep[N_DEEP][MIXED], by_deep[N_DEEP][MIXED], square[N_DEEP][MIXED], by_square[N_DEEP][MIXED];
    V features[N_FEATURES], by_features[N_FEATURES];
} Invariants;

/* Mix the channels of each monomial, then turn monomials into harmonics. */
static void mix(Invariants *s, const Model *w)
{
    int64_t k = 0;
    memset(s->density, 0, sizeof s->density);
    for (int l = 0, m = 0; l <= L_MAX; l++) {
        const REAL *weight = w->mixing + l * N_BASIS * CHANNELS;
        for (int end = m + (l + 1) * (l + 2) / 2; m < end; m++) {
            V sum[CHANNELS];
            dense(N_BASIS, CHANNELS, weight, s->raw[m], sum);
            for (; k < w->n_turns && w->turns[2 * k + 1] == m; k++)
                for (int c = 0; c < CHANNELS; c++) s->density[w->turns[2 * k]][c] += w->turn_values[k] * sum[c];
        }
    }
}

static void mix_back(Invariants *s, const Model *w)
{
    int64_t k = 0;
    for (int l = 0, m = 0; l <= L_MAX; l++) {
        const REAL *weight = w->mixing + l * N_BASIS * CHANNELS;
        for (int end = m + (l + 1) * (l + 2) / 2; m < end; m++) {
            V sum[CHANNELS] = {{0}};
            for (; k < w->n_turns && w->turns[2 * k + 1] == m; k++)
                for (int c = 0; c < CHANNELS; c++) sum[c] += w->turn_values[k] * s->by_density[w->turns[2 * k]][c];
            dense_back(N_BASIS, CHANNELS, weight, sum, s->raw[m]);
        }
    }
    for (int t = 0; t < N_BASIS; t++) s->raw[0][t] += s->by_features[t];
}

/* Pairs of channels of equal degree. */
static void pairs(Invariants *s)
{
    V *out = s->features + N_BASIS;
    for (int l = 0; l <= L_MAX; l++)
        for (int c = 0; c < CHANNELS; c++)
            for (int d = c; d < CHANNELS; d++) {
                V sum = {0};
                for (int q = l * l; q < (l + 1) * (l + 1); q++) sum += s->density[q][c] * s->density[q][d];
                *out++ = sum;
            }
}

/* Derivatives by the features of one degree, as a symmetric matrix over the channels. */
static const V *spread_out(const V *g, V both[CHANNELS][CHANNELS])
{
    for (int c = 0; c < CHANNELS; c++) {
        both[c][c] = 2 * *g++;
        for (int d = c + 1; d < CHANNELS; d++) both[c][d] = both[d][c] = *g++;
    }
    return g;
}

static void pairs_back(Invariants *s)
{
    const V *g = s->by_features + N_BASIS;
    for (int l = 0; l <= L_MAX; l++) {
        V both[CHANNELS][CHANNELS];
        g = spread_out(g, both);
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int c = 0; c < CHANNELS; c++) {
                V sum = {0};
                UNROLL for (int d = 0; d < CHANNELS; d++) sum += both[c][d] * s->density[q][d];
                s->by_density[q][c] = sum;
            }
    }
}

#if FACTORS > 2
/* Couple the mixed density with itself, and contract with itself or the square. */
static void couple(Invariants *s, const Model *w)
{
    int64_t k = 0;
    for (int q = 0, l = 0; q < N_DEEP; q++) {
        if (q == (l + 1) * (l + 1)) l++;
        dense(CHANNELS, MIXED, w->deep + l * CHANNELS * MIXED, s->density[q], s->deep[q]);
    }
    for (int q = 0; q < N_DEEP; q++) {
        V sum[MIXED] = {{0}};
        for (; k < w->n_terms && w->terms[3 * k + 2] == q; k++) {
            const V *x = s->deep[w->terms[3 * k]], *y = s->deep[w->terms[3 * k + 1]];
            REAL v = w->term_values[k];
            UNROLL for (int e = 0; e < MIXED; e++) sum[e] += v * x[e] * y[e];
        }
        memcpy(s->square[q], sum, sizeof sum);
    }
    V *out = s->features + N_BASIS + N_TWO;
    memset(out, 0, (FACTORS - 2) * (DEEP_L + 1) * MIXED * sizeof(V));
    for (int factors = 3; factors <= FACTORS; factors++)
        for (int l = 0; l <= DEEP_L; l++, out += MIXED)
            for (int q = l * l; q < (l + 1) * (l + 1); q++)
                for (int e = 0; e < MIXED; e++) out[e] += s->square[q][e] * (factors == 3 ? s->deep : s->square)[q][e];
}

/* Adds to by_density. */
static void couple_back(Invariants *s, const Model *w)
{
    const V *g = s->by_features + N_BASIS + N_TWO;
    for (int l = 0; l <= DEEP_L; l++)
        for (int q = l * l; q < (l + 1) * (l + 1); q++)
            for (int e = 0; e < MIXED; e++) {
                V three = g[l * MIXED + e];
                s->by_deep[q][e] = three * s->square[q][e];
                s->by_square[q][e] = three * s->deep[q][e];
#if FACTORS > 3
                s->by_square[q][e] += 2 * g[(DEEP_L + 1 + l) * MIXED + e] * s->square[q][e];
#endif
            }
    for (int64_t k = 0; k < w->n_terms; k++) {
        const int32_t *term = w->terms + 3 * k;
        const V *x = s->deep[term[0]], *y = s->deep[term[1]], *gz = s->by_square[term[2]];
        V *gx = s->by_deep[term[0]], *gy = s->by_deep[term[1]];
        for (int e = 0; e < MIXED; e++) {
            V g = w->term_values[k] * gz[e];
            gx[e] += g * y[e];
            gy[e] += g * x[e];
        }
    }
    for (int q = 0, l = 0; q < N_DEEP; q++) {
        V sum[CHANNELS];
        if (q == (l + 1) * (l + 1)) l++;
        dense_back(CHANNELS, MIXED, w->deep + l * CHANNELS * MIXED, s->by_deep[q], sum);
        for (int c = 0; c < CHANNELS; c++) s->by_density[q][c] += sum[c];
    }
}
#endif

static void contract(Invariants *s, const Model *w)
{
    memcpy(s->features, s->raw[0], sizeof s->raw[0]);
    mix(s, w);
    pairs(s);
#if FACTORS > 2
    couple(s, w);
#endif
}

static void contract_back(Invariants *s, const Model *w)
{
    pairs_back(s);
#if FACTORS > 2
    couple_back(s, w);
#endif
    mix_back(s, w);
}
