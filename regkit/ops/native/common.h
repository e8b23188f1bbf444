/* What the passes over entries and over groups share: weights in memory, and how they are moved.
 *
 * PARAM_*, GATE_*, NUM_PARAMS and NUM_COEFFICIENTS are given on the compiler's command line, and so
 * is the type of weights, gradients and moments: REGKIT_FLOAT64, REGKIT_BFLOAT16, or float.
 */
#ifndef REGKIT_NATIVE_COMMON_H
#define REGKIT_NATIVE_COMMON_H

#include "arithmetic.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(void *) == sizeof(int64_t), "tables hold addresses as int64");

#define ALIGNMENT 64

#ifdef REGKIT_BFLOAT16
typedef uint16_t stored;

static inline real load(stored x) {
    Word word = {.bits = (integer)((uint32_t)x << 16)};
    return word.number;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline stored rounded(real x) {
    Word word = {x};
    uint32_t bits = (uint32_t)word.bits, near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (stored)(x == x ? near : (bits >> 16) | 0x40);
}
#else
typedef real stored;
static inline real load(stored x) { return x; }
static inline stored rounded(real x) { return x; }
#endif

/* What there is of one weight. first, second, largest: moments, NULL where there are none; the
 * metric reads the largest second moments where they are kept, else the second ones, and is scalar
 * without both. count: number of steps, NULL where nothing is corrected for it. */
typedef struct {
    stored *x;
    const stored *grad;
    stored *first, *second, *largest;
    const float *count;
    int64_t param_row;
} Weight;

/* As UPDATES in kernel_args.py has them. */
enum { NONE, SGD, ADAMW };

/* Of all weights in a pass. grad_scale: gradients are divided by it. */
typedef struct {
    int64_t update;
    double grad_scale;
    const double *params;
} Pass;

/* Numbers of one weight at this step. correction: 1 / (1 - beta1^count); inverse: of the second
 * moment, under a root. */
typedef struct {
    real rate, lr, eps, correction, inverse, rest1, rest2, decay, nesterov, unscale;
} Rates;

/* Bytes as gate.py has them. */
static inline int is_closed(uint8_t gate) {
    return (gate & (GATE_ZERO | GATE_OPEN | GATE_FREE)) == GATE_ZERO;
}

static inline uint8_t recorded(uint8_t gate, int is_zero) {
    return (uint8_t)(is_zero ? gate | GATE_ZERO : gate & (GATE_SEEN | GATE_FREE));
}

static inline const double *param_of(const Weight *w, const Pass *pass) {
    return pass->params + w->param_row * NUM_PARAMS;
}

/* The coefficients of the k-th formula, in a row of parameters. */
static inline const double *coefficients(const double *param, int64_t k) {
    return param + PARAM_FIRST + k * NUM_COEFFICIENTS;
}

static inline Rates rates_of(const Weight *w, const Pass *pass) {
    const double *param = param_of(w, pass);
    double first = 1, second = 1;
    if (w->count) {
        first = -expm1(*w->count * param[PARAM_LOG_BETA1]);
        second = -expm1(*w->count * param[PARAM_LOG_BETA2]);
    }
    Rates rates = {.rate = (real)param[PARAM_RATE],
                   .lr = (real)param[PARAM_LR],
                   .eps = (real)param[PARAM_EPS],
                   .correction = (real)(1 / first),
                   .inverse = (real)(1 / sqrt(second)),
                   .rest1 = (real)param[PARAM_REST1],
                   .rest2 = (real)param[PARAM_REST2],
                   .decay = (real)param[PARAM_DECAY],
                   .nesterov = (real)param[PARAM_NESTEROV],
                   .unscale = (real)(1 / pass->grad_scale)};
    return rates;
}

/* A rate of 0 is a step of 0, even where it would be divided by zero. */
static inline void even_steps(real *step, int64_t n, real rate) {
    for (int64_t i = 0; i < n; i++) step[i] = rate;
}

/* Make of second moments the step. */
static inline void invert(real *step, int64_t n, Rates r) {
    if (r.rate == 0) {
        even_steps(step, n, 0);
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) step[i] = r.rate / (sqrt(step[i]) * r.inverse + r.eps);
}

static inline void steps(real *step, const stored *second, int64_t n, Rates r) {
    for (int64_t i = 0; i < n; i++) step[i] = load(second[i]);
    invert(step, n, r);
}

static inline const stored *root_of(const Weight *w) { return w->largest ? w->largest : w->second; }

/* Compiled for each answer to `maxima`. */
static inline __attribute__((always_inline)) void adamw(const Weight *w, int64_t at, int64_t n,
                                                        Rates r, real *z, real *step, int maxima) {
    const stored *x = w->x + at, *grad = w->grad + at;
    stored *first = w->first + at, *second = w->second + at, *largest = maxima ? w->largest + at : 0;
    real kept = 1 - r.lr * r.decay, move = r.lr * r.correction;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        real g = load(grad[i]) * r.unscale, m = load(first[i]), v = load(second[i]);
        first[i] = rounded(m + r.rest1 * (g - m));
        second[i] = rounded(v + r.rest2 * (g * g - v));
        m = load(first[i]), v = load(second[i]);
        if (maxima) {
            v = most(v, load(largest[i]));
            largest[i] = rounded(v);
        }
        real over = 1 / (sqrt(v) * r.inverse + r.eps);
        z[i] = load(x[i]) * kept - move * m * over;
        step[i] = r.rate * over;
    }
    if (r.rate == 0) even_steps(step, n, 0);
}

/* Compiled for each answer to `buffered`. */
static inline __attribute__((always_inline)) void sgd(const Weight *w, int64_t at, int64_t n,
                                                      Rates r, real *z, int buffered) {
    const stored *x = w->x + at, *grad = w->grad + at;
    stored *first = buffered ? w->first + at : 0;
    real momentum = 1 - r.rest1;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        real v = load(x[i]), g = load(grad[i]) * r.unscale + r.decay * v;
        if (buffered) {
            first[i] = rounded(momentum * load(first[i]) + r.rest2 * g);
            real m = load(first[i]);
            g = r.nesterov != 0 ? g + momentum * m : m;
        }
        z[i] = v - r.lr * g;
    }
}

/* Update n entries from `at` on: write where they move to (z may be where they are), and the step of
 * the prox there. Moments are changed in place. */
static inline void moved(const Weight *w, int64_t at, int64_t n, Rates r, int64_t update, real *z,
                         real *step) {
    if (update == ADAMW) {
        if (w->largest) adamw(w, at, n, r, z, step, 1);
        else adamw(w, at, n, r, z, step, 0);
        return;
    }
    if (update == SGD) {
        if (w->first) sgd(w, at, n, r, z, 1);
        else sgd(w, at, n, r, z, 0);
    } else {
        for (int64_t i = 0; (const void *)z != w->x + at && i < n; i++) z[i] = load(w->x[at + i]);
    }
    if (root_of(w)) steps(step, root_of(w) + at, n, r);
    else even_steps(step, n, r.rate);
}

#endif
