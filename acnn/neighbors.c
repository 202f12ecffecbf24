/* The neighbour search of neighbors.py, atom by atom, and the guard of the relaxation on distances. */
#include "loop.h"

/* The lower triangle of a cell whose vectors are sorted by length, and what gives fractional coordinates. */
typedef struct {
    int order[3];
    double l11, l21, l22, l31, l32, l33;
    double inverse[3][3];
} Frame;

static double dot(const double *a, const double *b)
{
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

static Frame frame_of(const double *cell)
{
    Frame f;
    for (int k = 0; k < 3; k++) f.order[k] = k;
    for (int i = 0; i < 3; i++)
        for (int j = i + 1; j < 3; j++) {
            const double *one = cell + 3 * f.order[i], *other = cell + 3 * f.order[j];
            int k = f.order[i];
            if (dot(other, other) < dot(one, one)) f.order[i] = f.order[j], f.order[j] = k;
        }
    const double *v[3] = {cell + 3 * f.order[0], cell + 3 * f.order[1], cell + 3 * f.order[2]};
    double e1[3], e2[3], e3[3];
    f.l11 = sqrt(dot(v[0], v[0]));
    for (int a = 0; a < 3; a++) e1[a] = v[0][a] / f.l11;
    f.l21 = dot(v[1], e1);
    for (int a = 0; a < 3; a++) e2[a] = v[1][a] - f.l21 * e1[a];
    f.l22 = sqrt(dot(e2, e2));
    for (int a = 0; a < 3; a++) e2[a] /= f.l22;
    f.l31 = dot(v[2], e1);
    f.l32 = dot(v[2], e2);
    for (int a = 0; a < 3; a++) e3[a] = v[2][a] - f.l31 * e1[a] - f.l32 * e2[a];
    f.l33 = sqrt(dot(e3, e3));
    for (int k = 0; k < 3; k++) {
        const double *b = v[(k + 1) % 3], *c = v[(k + 2) % 3];
        double cross[3] = {b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0]};
        for (int a = 0; a < 3; a++) f.inverse[k][a] = cross[a] / dot(v[k], cross);
    }
    return f;
}

/* Count the whole n with |middle + n| <= half; the lowest is *low. */
static inline int64_t interval(double middle, double half, double *low)
{
    *low = ceil(-half - middle);
    double count = floor(half - middle) - *low + 1;
    return count > 0 ? (int64_t)count : 0;
}

/*
 * Fill rows of `width` neighbours with index and lattice image, padded by the atom itself; counts may be larger than the
 * width, where a row is cut short. The atoms of structure s are those from starts[s] to starts[s + 1].
 */
KERNEL search(int64_t n_atoms, const double *positions, const double *cells, const int64_t *system, const int64_t *starts,
              double cutoff, double slack, int64_t width, int64_t *index, float *shift, int64_t *counts)
{
    EACH(i, n_atoms) {
        Frame f = frame_of(cells + 9 * system[i]);
        const double *own = positions + 3 * i;
        int64_t n = 0;
        for (int64_t j = starts[system[i]]; j < starts[system[i] + 1]; j++) {
            double v[3], d[3], largest = 0, n1, n2, n3;
            for (int a = 0; a < 3; a++) v[a] = positions[3 * j + a] - own[a];
            for (int k = 0; k < 3; k++) {
                d[k] = dot(v, f.inverse[k]);
                largest = fmax(largest, fabs(d[k]));
            }
            double spare = slack * (1 + largest);
            int64_t planes = interval(d[2], cutoff / f.l33 + spare, &n3);
            for (; planes > 0; planes--, n3++) {
                double x3 = d[2] + n3, y3 = x3 * f.l33, left3 = fmax(cutoff * cutoff - y3 * y3, 0.0);
                int64_t lines = interval(d[1] + x3 * f.l32 / f.l22, sqrt(left3) / f.l22 + spare, &n2);
                for (; lines > 0; lines--, n2++) {
                    double x2 = d[1] + n2, y2 = x2 * f.l22 + x3 * f.l32, left2 = fmax(left3 - y2 * y2, 0.0);
                    double offset = x3 * f.l31 + x2 * f.l21;
                    int64_t points = interval(d[0] + offset / f.l11, sqrt(left2) / f.l11 + spare, &n1);
                    for (; points > 0; points--, n1++) {
                        double y1 = (d[0] + n1) * f.l11 + offset;
                        if (y1 * y1 + y2 * y2 + y3 * y3 >= cutoff * cutoff) continue;
                        if (i == j && n1 == 0 && n2 == 0 && n3 == 0) continue;
                        if (n < width) {
                            float *s = shift + 3 * (width * i + n);
                            index[width * i + n] = j;
                            s[f.order[0]] = (float)n1, s[f.order[1]] = (float)n2, s[f.order[2]] = (float)n3;
                        }
                        n++;
                    }
                }
            }
        }
        counts[i] = n;
        for (; n < width; n++) {
            index[width * i + n] = i;
            for (int k = 0; k < 3; k++) shift[3 * (width * i + n) + k] = 0;
        }
    }
}

/* Each atom's smallest distance in units of the pair's limit, by atomic number [n_numbers][n_numbers]. */
KERNEL closest(int64_t n_atoms, const double *positions, const double *cells, const int64_t *system, const int64_t *numbers,
               int64_t width, const int64_t *index, const float *shift, const uint8_t *mask, int64_t n_numbers,
               const double *limits, double *ratio)
{
    EACH(i, n_atoms) {
        const double *cell = cells + 9 * system[i], *own = positions + 3 * i, *limit = limits + n_numbers * numbers[i];
        double smallest = INFINITY;
        for (int64_t k = width * i; k < width * (i + 1) && mask[k]; k++) {
            const double *other = positions + 3 * index[k];
            const float *s = shift + 3 * k;
            double square = 0, least = limit[numbers[index[k]]];
            for (int a = 0; a < 3; a++) {
                double v = other[a] - own[a] + s[0] * cell[a] + s[1] * cell[3 + a] + s[2] * cell[6 + a];
                square += v * v;
            }
            double part = square / (least * least);
            if (!(part >= smallest)) smallest = part >= 0 ? part : 0; /* what is no number is no distance */
        }
        ratio[i] = sqrt(smallest);
    }
}
