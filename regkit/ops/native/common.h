/* What the passes over entries and over groups share.
 *
 * PARAM_*, GATE_*, NUM_PARAMS and NUM_COEFFICIENTS are given on the compiler's command line.
 */
#ifndef REGKIT_NATIVE_COMMON_H
#define REGKIT_NATIVE_COMMON_H

#include "arithmetic.h"

#include <stdlib.h>

_Static_assert(sizeof(void *) == sizeof(int64_t), "tables hold addresses as int64");

#define ALIGNMENT 64

typedef struct {
    float rate, inverse, eps;
} Metric;

/* Bytes as gate.py has them. */
static inline int is_closed(uint8_t gate) {
    return (gate & (GATE_ZERO | GATE_OPEN | GATE_FREE)) == GATE_ZERO;
}

static inline uint8_t recorded(uint8_t gate, int is_zero) {
    return (uint8_t)(is_zero ? gate | GATE_ZERO : gate & (GATE_SEEN | GATE_FREE));
}

/* The coefficients of the k-th formula, in a row of parameters. */
static inline const double *coefficients(const double *param, int64_t k) {
    return param + PARAM_FIRST + k * NUM_COEFFICIENTS;
}

static inline Metric metric_of(const double *param, const float *count) {
    double correction = count ? -expm1(*count * param[PARAM_LOG_BETA2]) : 1;
    Metric metric = {(float)param[PARAM_RATE], (float)(1 / sqrt(correction)),
                     (float)param[PARAM_EPS]};
    return metric;
}

/* second: NULL in the scalar metric. A rate of 0 is a step of 0, even where it would be divided by
 * zero. */
static inline void steps(float *step, const float *second, int64_t n, Metric m) {
    if (second == NULL || m.rate == 0) {
        for (int64_t i = 0; i < n; i++) step[i] = m.rate;
        return;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) step[i] = m.rate / (sqrtf(second[i]) * m.inverse + m.eps);
}

#endif
