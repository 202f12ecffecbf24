/* Functions of the vector to a neighbour, of as many at a time as V holds numbers. */

typedef struct {
    REAL energy;  /* half the repulsion */
    REAL felt;    /* what the network sees of the distance */
    REAL stretch; /* derivative of what it sees by the distance */
    REAL push;    /* derivative of the energy by the distance */
} Repelled;

/* A pair closer than its onset; see repulsion.py. */
static Repelled repel(REAL onset, REAL charge, REAL length, REAL r)
{
    const REAL weights[] = {ZBL_WEIGHTS}, rates[] = {ZBL_RATES};
    REAL x = r / onset, rest = 1 - x, screen = 0, fall = 0;
    for (int k = 0; k < (int)(sizeof rates / sizeof *rates); k++) {
        REAL part = weights[k] * EXP(-rates[k] * r / length);
        screen += part;
        fall -= rates[k] / length * part;
    }
    REAL value = charge / r * screen + (REAL)WALL / x;
    REAL slope = charge / r * (fall - screen / r) - (REAL)WALL / (x * r);
    REAL width = (1 - (REAL)CLAMP) * 2 * onset, t = (r - onset) / width;
    if (t < -1) t = -1;
    Repelled out;
    out.energy = value * rest * rest * rest / 2;
    out.felt = onset + width * (t - t * t * t - t * t * t * t / 2);
    out.stretch = 1 - 3 * t * t - 2 * t * t * t;
    out.push = (slope * rest - 3 * value / onset) * rest * rest / 2;
    return out;
}

/* Radial functions cos(k pi x) (1 - x^2)^3 and their derivatives by x; sine and cosine by their series. */
INLINE void radial(V x, V *value, V *slope)
{
    const REAL pi = (REAL)3.14159265358979323846;
    const int order = sizeof(REAL) == 4 ? 14 : 22;
    V rest = 1 - x * x, fall = rest * rest * rest, fall_slope = -6 * x * rest * rest;
    V u = pi * (x - (REAL)0.5), square = u * u, c = SPLAT(1), s = c;
    UNROLL for (int k = order; k > 0; k -= 2) {
        s = 1 - s * square * (1 / (REAL)(k * (k + 1)));
        c = 1 - c * square * (1 / (REAL)(k * (k - 1)));
    }
    V sine = c, cosine = -s * u, ck = SPLAT(1), sk = SPLAT(0);
    for (int k = 0; k < N_RADIAL; k++) {
        value[k] = ck * fall;
        slope[k] = ck * fall_slope - (pi * k) * sk * fall;
        V next = ck * cosine - sk * sine;
        sk = sk * cosine + ck * sine;
        ck = next;
    }
}

/* Monomials x^a y^b z^c by degree: x times all of the degree before, y times those without x, z times the last. */
INLINE void monomials(const V *unit, V *m)
{
    m[0] = SPLAT(1);
    int before = 0, n = 1, next = 1;
    UNROLL for (int degree = 1; degree <= L_MAX; degree++) {
        UNROLL for (int k = 0; k < n; k++) m[next + k] = unit[0] * m[before + k];
        UNROLL for (int k = 0; k < degree; k++) m[next + n + k] = unit[1] * m[before + n - degree + k];
        m[next + n + degree] = unit[2] * m[before + n - 1];
        before = next;
        n += degree + 1;
        next += n;
    }
}

/* The reverse of the above: derivatives by the monomials (overwritten) become those by x, y, z. */
INLINE void monomials_back(const V *unit, const V *m, V *g, V *out)
{
    V gx = {0}, gy = {0}, gz = {0};
    int n = (L_MAX + 1) * (L_MAX + 2) / 2, next = N_MONO - n;
    UNROLL for (int degree = L_MAX; degree >= 1; degree--) {
        n -= degree + 1;
        int before = next - n;
        UNROLL for (int k = 0; k < n; k++) {
            gx += g[next + k] * m[before + k];
            g[before + k] += unit[0] * g[next + k];
        }
        UNROLL for (int k = 0; k < degree; k++) {
            gy += g[next + n + k] * m[before + n - degree + k];
            g[before + n - degree + k] += unit[1] * g[next + n + k];
        }
        gz += g[next + n + degree] * m[before + n - 1];
        g[before + n - 1] += unit[2] * g[next + n + degree];
        next = before;
    }
    out[0] = gx;
    out[1] = gy;
    out[2] = gz;
}
