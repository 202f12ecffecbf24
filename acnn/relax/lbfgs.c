/* The two loops of L-BFGS, structure by structure; see lbfgs.py. */
#include "loop.h"

static double dot(int64_t n, const double *a, const double *b)
{
    double sum = 0;
    for (int64_t k = 0; k < n; k++) sum += a[k] * b[k];
    return sum;
}

static void add(int64_t n, double factor, const double *a, double *b)
{
    for (int64_t k = 0; k < n; k++) b[k] += factor * a[k];
}

/* `vector` holds the negative gradients [n][width] and becomes the steps; `weights` is room for [n][length]. */
KERNEL direction(int64_t n, int64_t length, int64_t width, const int64_t *rows, const double *steps, const double *changes,
                 const double *rho, const int64_t *head, const double *gamma, double first, double *weights, double *vector)
{
    EACH(i, n) {
        int64_t slot = rows[i] * length, newest = head[rows[i]], oldest = newest > length ? newest - length : 0;
        double *weight = weights + i * length, *own = vector + i * width;
        for (int64_t k = newest - 1; k >= oldest; k--) {
            int64_t place = slot + k % length;
            weight[k - oldest] = rho[place] * dot(width, steps + place * width, own);
            add(width, -weight[k - oldest], changes + place * width, own);
        }
        double scale = gamma[rows[i]] > 0 ? gamma[rows[i]] : first;
        for (int64_t k = 0; k < width; k++) own[k] *= scale;
        for (int64_t k = oldest; k < newest; k++) {
            int64_t place = slot + k % length;
            double turn = weight[k - oldest] - rho[place] * dot(width, changes + place * width, own);
            add(width, turn, steps + place * width, own);
        }
    }
}
