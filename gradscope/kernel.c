/* Sums over float32 tensors in one pass over memory, accumulated in double: no square of a float
   leaves its range. What measure.py does without this file is the reference. */

#include <math.h>
#include <stdint.h>

#define LANES 16 /* independent sums: so the compiler uses vectors and reorders nothing itself */

static double total(const double *lanes)
{
    double sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += lanes[k];
    return sum;
}

double square_sum(const float *x, int64_t n)
{
    double lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            double value = x[i + k];
            lanes[k] += value * value;
        }
    for (; i < n; i++)
        lanes[0] += (double)x[i] * x[i];
    return total(lanes);
}

/* Copies the n elements at x, and sums their squares. */
static double copy(const float *restrict x, float *restrict to, int64_t n)
{
    double lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            double value = to[i + k] = x[i + k];
            lanes[k] += value * value;
        }
    for (; i < n; i++) {
        double value = to[i] = x[i];
        lanes[0] += value * value;
    }
    return total(lanes);
}

static double difference(const float *x, const float *y, int64_t n)
{
    double lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            double value = x[i + k] - y[i + k];
            lanes[k] += value * value;
        }
    for (; i < n; i++) {
        double value = x[i] - y[i];
        lanes[0] += value * value;
    }
    return total(lanes);
}

/* The same for `count` tensors each: tensor t has n[t] elements, its result is out[t]. */

void square_sums(int64_t count, const int64_t *n, const float *const *x, double *out)
{
    for (int64_t t = 0; t < count; t++)
        out[t] = square_sum(x[t], n[t]);
}

void copies(int64_t count, const int64_t *n, const float *const *x, float *const *to, double *out)
{
    for (int64_t t = 0; t < count; t++)
        out[t] = copy(x[t], to[t], n[t]);
}

void differences(int64_t count, const int64_t *n, const float *const *x, const float *const *y,
                 double *out)
{
    for (int64_t t = 0; t < count; t++)
        out[t] = difference(x[t], y[t], n[t]);
}

/* out: the sum of squares, the sum, how many are not 0, how many are beyond radius from center. */
void census(const float *x, int64_t n, float center, float radius, double *out)
{
    double squares[LANES] = {0}, sums[LANES] = {0};
    int64_t nonzero = 0, far = 0, i = 0;
    while (i + LANES <= n) {
        int32_t nonzeros[LANES] = {0}, fars[LANES] = {0};
        int64_t end = n - i > 1 << 24 ? i + (1 << 24) : n;
        for (; i + LANES <= end; i += LANES)
            for (int k = 0; k < LANES; k++) {
                float value = x[i + k];
                squares[k] += (double)value * value;
                sums[k] += value;
                nonzeros[k] += value != 0;
                fars[k] += fabsf(value - center) > radius;
            }
        for (int k = 0; k < LANES; k++) {
            nonzero += nonzeros[k];
            far += fars[k];
        }
    }
    for (; i < n; i++) {
        squares[0] += (double)x[i] * x[i];
        sums[0] += x[i];
        nonzero += x[i] != 0;
        far += fabsf(x[i] - center) > radius;
    }
    out[0] = total(squares);
    out[1] = total(sums);
    out[2] = nonzero;
    out[3] = far;
}
