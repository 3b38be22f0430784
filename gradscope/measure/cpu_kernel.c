/* Sums over float32 tensors in one pass over memory, accumulated in double: no square of a float
   leaves its range. What host.py does by torch is the reference.

   Tensors are read chunk by chunk, several at once by as many threads as torch may use, and the sums
   of chunks are added up in order: a result does not depend on the threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#define LANES 16 /* independent sums: so the compiler uses vectors and reorders nothing itself */
#define CHUNK (1 << 16)
#define MIN(a, b) ((a) < (b) ? (a) : (b))

static double total(const double *lanes)
{
    double sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += lanes[k];
    return sum;
}

/* Sum of EXPRESSION(i) squared for i < n; further statements may follow it. */
#define SUM_OF_SQUARES(EXPRESSION)                                                                 \
    double lanes[LANES] = {0};                                                                     \
    int64_t i = 0;                                                                                 \
    for (; i + LANES <= n; i += LANES)                                                             \
        for (int k = 0; k < LANES; k++) {                                                          \
            double value = EXPRESSION(i + k);                                                      \
            lanes[k] += value * value;                                                             \
        }                                                                                          \
    for (; i < n; i++) {                                                                           \
        double value = EXPRESSION(i);                                                              \
        lanes[0] += value * value;                                                                 \
    }                                                                                              \
    return total(lanes);

static double squares(const float *x, float *y, int64_t n)
{
#define ITSELF(i) x[i]
    SUM_OF_SQUARES(ITSELF)
}

static double copy(const float *restrict x, float *restrict y, int64_t n)
{
#define COPIED(i) (y[i] = x[i])
    SUM_OF_SQUARES(COPIED)
}

static double difference(const float *x, float *y, int64_t n)
{
#define DIFFERENCE(i) (x[i] - y[i])
    SUM_OF_SQUARES(DIFFERENCE)
}

static double product(const float *x, float *y, int64_t n)
{
    double lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lanes[k] += (double)x[i + k] * y[i + k];
    for (; i < n; i++)
        lanes[0] += (double)x[i] * y[i];
    return total(lanes);
}

typedef double Sum(const float *x, float *y, int64_t n);
static Sum *const sum_of[] = {squares, copy, difference, product};

/* Every of-th chunk of the tensors, from chunk `next` on. */
static void sum_chunks(int kind, int64_t count, const int64_t *n, const float *const *x,
                       float *const *y, double *parts, int64_t next, int64_t of)
{
    int64_t chunk = 0;
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < n[t]; i += CHUNK, chunk++)
            if (chunk == next) {
                parts[chunk] = sum_of[kind](x[t] + i, y[t] + i, MIN(n[t] - i, CHUNK));
                next += of;
            }
}

/* out[t] = the sum of a kind over the n[t] elements of tensor t. Returns 1 if memory is short. */
int sums(int kind, int64_t count, const int64_t *n, const float *const *x, float *const *y,
         double *out, int threads)
{
    int64_t chunks = 0, chunk = 0;
    for (int64_t t = 0; t < count; t++)
        chunks += (n[t] + CHUNK - 1) / CHUNK;
    double *parts = malloc((chunks + 1) * sizeof *parts);
    if (!parts)
        return 1;
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        sum_chunks(kind, count, n, x, y, parts, omp_get_thread_num(), omp_get_num_threads());
    } else
        sum_chunks(kind, count, n, x, y, parts, 0, 1);
    for (int64_t t = 0; t < count; t++) {
        out[t] = 0;
        for (int64_t i = 0; i < n[t]; i += CHUNK)
            out[t] += parts[chunk++];
    }
    free(parts);
    return 0;
}

double square_sum(const float *x, int64_t n, int threads)
{
    double out;
    return sums(0, 1, &n, &x, (float *const *)&x, &out, threads) ? NAN : out;
}

double product_sum(const float *x, float *y, int64_t n, int threads)
{
    double out;
    return sums(3, 1, &n, &x, &y, &out, threads) ? NAN : out;
}

typedef struct {
    double squares, sum, nonzero, far;
} Census;

static Census census_of(const float *x, int64_t n, float center, float radius)
{
    double squares[LANES] = {0}, sums[LANES] = {0};
    int32_t nonzeros[LANES] = {0}, fars[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float value = x[i + k];
            squares[k] += (double)value * value;
            sums[k] += value;
            nonzeros[k] += value != 0;
            fars[k] += fabsf(value - center) > radius;
        }
    Census all = {total(squares), total(sums), 0, 0};
    for (int k = 0; k < LANES; k++) {
        all.nonzero += nonzeros[k];
        all.far += fars[k];
    }
    for (; i < n; i++) {
        all.squares += (double)x[i] * x[i];
        all.sum += x[i];
        all.nonzero += x[i] != 0;
        all.far += fabsf(x[i] - center) > radius;
    }
    return all;
}

/* out = sum of squares, sum, how many are not 0, how many are farther than radius from center. */
int census(const float *x, int64_t n, float center, float radius, Census *out, int threads)
{
    int64_t chunks = (n + CHUNK - 1) / CHUNK;
    Census *parts = malloc((chunks + 1) * sizeof *parts), all = {0, 0, 0, 0};
    if (!parts)
        return 1;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        parts[chunk] =
            census_of(x + chunk * CHUNK, MIN(n - chunk * CHUNK, CHUNK), center, radius);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        all.squares += parts[chunk].squares;
        all.sum += parts[chunk].sum;
        all.nonzero += parts[chunk].nonzero;
        all.far += parts[chunk].far;
    }
    free(parts);
    *out = all;
    return 0;
}
