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

/* Kinds of sums, as in sums.py. */
enum { SQUARES, MOMENTS, NONZERO, CENSUS, PAIR, COPY, DIFFERENCE, JOIN };

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
    double lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) { /* one loop for both is 25 % slower */
        for (int k = 0; k < LANES; k++)
            y[i + k] = x[i + k];
        for (int k = 0; k < LANES; k++) {
            double value = x[i + k];
            lanes[k] += value * value;
        }
    }
    for (; i < n; i++)
        lanes[0] += (double)(y[i] = x[i]) * x[i];
    return total(lanes);
}

static double difference(const float *x, float *y, int64_t n)
{
#define MOVED(i) (x[i] - y[i])
    SUM_OF_SQUARES(MOVED)
}

typedef double Sum(const float *x, float *y, int64_t n);
static Sum *const sum_of[] = {[SQUARES] = squares, [COPY] = copy, [DIFFERENCE] = difference};

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

#define FIELDS 5

/* How a tensor is to be read. */
typedef struct {
    int64_t kind, n;
    float center, radius;
} Entry;

/* row = sum of squares, sum, how many are not 0, how many are farther than radius from center.
   Inlined where `counts` and `far` are known: what they do not ask for takes no time. */
__attribute__((always_inline)) static inline void
census(const float *x, int64_t n, float center, float radius, int counts, int far, double *row)
{
    double squares[LANES] = {0}, sums[LANES] = {0};
    int32_t nonzeros[LANES] = {0}, fars[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float value = x[i + k];
            squares[k] += (double)value * value;
            sums[k] += value;
            if (counts)
                nonzeros[k] += value != 0;
            if (far)
                fars[k] += fabsf(value - center) > radius;
        }
    row[0] = total(squares);
    row[1] = total(sums);
    row[2] = row[3] = 0;
    for (int k = 0; k < LANES; k++) {
        row[2] += nonzeros[k];
        row[3] += fars[k];
    }
    for (; i < n; i++) {
        row[0] += (double)x[i] * x[i];
        row[1] += x[i];
        row[2] += counts && x[i] != 0;
        row[3] += far && fabsf(x[i] - center) > radius;
    }
}

/* row = sum of squares of x, that of y, sum of their products */
static void pair(const float *x, const float *y, int64_t n, double *row)
{
    double xx[LANES] = {0}, yy[LANES] = {0}, xy[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            double one = x[i + k], other = y[i + k];
            xx[k] += one * one;
            yy[k] += other * other;
            xy[k] += one * other;
        }
    for (; i < n; i++) {
        xx[0] += (double)x[i] * x[i];
        yy[0] += (double)y[i] * y[i];
        xy[0] += (double)x[i] * y[i];
    }
    row[0] = total(xx);
    row[1] = total(yy);
    row[2] = total(xy);
}

static double rest(const float *x, const float *y, const float *z, int64_t n)
{
#define REST(i) ((double)x[i] - y[i] - z[i])
    SUM_OF_SQUARES(REST)
}

static double spread(const float *x, int64_t n, double mean)
{
#define FROM_MEAN(i) (x[i] - mean)
    SUM_OF_SQUARES(FROM_MEAN)
}

static void read_piece(const Entry *e, const float *x, const float *y, const float *z, int64_t n,
                       double *row)
{
    switch (e->kind) {
    case SQUARES:
        row[0] = squares(x, 0, n);
        break;
    case PAIR:
        pair(x, y, n, row);
        break;
    case JOIN:
        pair(y, z, n, row);
        row[3] = squares(x, 0, n);
        row[4] = rest(x, y, z, n);
        break;
    case MOMENTS:
        census(x, n, 0, 0, 0, 0, row);
        break;
    case NONZERO:
        census(x, n, 0, 0, 1, 0, row);
        break;
    default:
        census(x, n, e->center, e->radius, 1, 1, row);
    }
}

/* A variance below this part of the mean square has lost digits in the difference that it is. */
#define CANCELLED 1e-10

static int read_entry(const Entry *e, const float *x, const float *y, const float *z, double *row,
                      int threads)
{
    int64_t chunks = (e->n + CHUNK - 1) / CHUNK;
    double one[FIELDS] = {0}, *parts = one;
    if (chunks > 1 && !(parts = calloc(chunks * FIELDS, sizeof *parts)))
        return 1;
#pragma omp parallel for num_threads(threads) if (threads > 1 && chunks > 1) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t i = chunk * CHUNK;
        read_piece(e, x + i, y + i, z + i, MIN(e->n - i, CHUNK), parts + chunk * FIELDS);
    }
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        for (int k = 0; k < FIELDS; k++)
            parts[k] += parts[chunk * FIELDS + k];
    if (e->kind == MOMENTS || e->kind == NONZERO || e->kind == CENSUS) {
        double mean = parts[1] / e->n, square = parts[0] / e->n, variance = square - mean * mean;
        parts[4] = variance > CANCELLED * square ? variance * e->n : spread(x, e->n, mean);
    }
    for (int k = 0; k < FIELDS; k++)
        row[k] += parts[k];
    if (parts != one)
        free(parts);
    return 0;
}

/* Read `count` tensors to as many rows; of each there are `ways` addresses: of x, or of x, y and z,
   which lie alike. Of moments and censuses the last sum is that of squared distances from the mean.
   Returns 1 if memory is short. */
int read_rows(int64_t count, const Entry *entries, const float *const *x, int ways, double *rows,
              int threads)
{
    for (int64_t i = 0; i < count; i++, x += ways, rows += FIELDS)
        if (read_entry(entries + i, x[0], x[ways / 2], x[ways - 1], rows, threads))
            return 1;
    return 0;
}
