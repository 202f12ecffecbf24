/* The two loops of L-BFGS, structure by structure; see lbfgs.py. */
#include <stdint.h>

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

/* `vector` holds the negative gradients [n][width] and becomes the steps; `weights` is room for `length` numbers. */
void direction(int64_t n, int64_t length, int64_t width, const int64_t *rows, const double *steps, const double *changes,
               const double *rho, const int64_t *head, const double *gamma, double first, double *weights, double *vector)
{
    for (int64_t i = 0; i < n; i++, vector += width) {
        int64_t slot = rows[i] * length, newest = head[rows[i]], oldest = newest > length ? newest - length : 0;
        for (int64_t k = newest - 1; k >= oldest; k--) {
            int64_t place = slot + k % length;
            weights[k - oldest] = rho[place] * dot(width, steps + place * width, vector);
            add(width, -weights[k - oldest], changes + place * width, vector);
        }
        double scale = gamma[rows[i]] > 0 ? gamma[rows[i]] : first;
        for (int64_t k = 0; k < width; k++) vector[k] *= scale;
        for (int64_t k = oldest; k < newest; k++) {
            int64_t place = slot + k % length;
            double turn = weights[k - oldest] - rho[place] * dot(width, changes + place * width, vector);
            add(width, turn, steps + place * width, vector);
        }
    }
}
