/* What the sweeps over entries and over groups share.
 *
 * Laws that the way of writing serves:
 * - NaN is never hidden: every select keeps the side that a NaN is on. No flag may promise that
 *   there are none, and none may reassociate (1 + s - 1 must not become s).
 * - The bits do not depend on the number of threads: an item is worked on by one thread, and sums
 *   run over a fixed number of lanes or of entries.
 * PARAM_*, NUM_PARAMS and NUM_COEFFICIENTS are given on the compiler's command line.
 */
#ifndef REGKIT_NATIVE_H
#define REGKIT_NATIVE_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

_Static_assert(sizeof(void *) == sizeof(int64_t), "tables hold addresses as int64");

#define ALIGNMENT 64

typedef struct {
    float s0, s1, s2, c0, c1;
    float keep; /* 1 - lr c0, rounded once */
} Coefficients;

typedef struct {
    float rate, inverse, eps;
} Metric;

static inline float least(float a, float b) { return b < a ? b : a; }
static inline float most(float a, float b) { return b > a ? b : a; }

static inline float soft(float v, float threshold) {
    float size = fabsf(v) - threshold;
    return size < 0 ? 0 : copysignf(size, v);
}

typedef union {
    float number;
    int32_t bits;
} Word;

/* log x, to an ulp or two, of a positive normal number. Coefficients: Cephes, logf. */
static inline float log_of(float x) {
    Word word = {x};
    int32_t exponent = (word.bits - 0x3f3504f3) >> 23;
    word.bits -= exponent * (1 << 23);
    float f = word.number - 1, e = (float)exponent, p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float rest = f * f * f * p - 2.12194440e-4f * e - 0.5f * f * f;
    return f + rest + 0.693359375f * e;
}

/* exp x, to an ulp or two, for -87 <= x <= 0. Coefficients: Cephes, expf. */
static inline float exp_of(float x) {
    float n = (float)(int32_t)(x * 1.44269504f - 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f, p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    Word power = {.bits = ((int32_t)n + 127) * (1 << 23)};
    return (p * r * r + r + 1) * power.number;
}

/* log(1 + s) / s for s >= 0: what 1 + s loses of s is lost above and below. */
static inline float log1p_share(float s) {
    float up = 1 + least(s, FLT_MAX);
    return up > 1 ? log_of(up) / (up - 1) : 1;
}

static inline Coefficients coefficients(const double *rule, int64_t k) {
    const double *c = rule + PARAM_FIRST + k * NUM_COEFFICIENTS;
    Coefficients found = {(float)c[0], (float)c[1], (float)c[2], (float)c[3], (float)c[4], 0};
    found.keep = (float)(1 - rule[PARAM_LR] * c[3]);
    return found;
}

static inline Metric metric_of(const double *rule, const float *count) {
    double correction = count ? -expm1(*count * rule[PARAM_LOG_BETA2]) : 1;
    Metric metric = {(float)rule[PARAM_RATE], (float)(1 / sqrt(correction)), (float)rule[PARAM_EPS]};
    return metric;
}

/* second: NULL in the flat metric. A rate of 0 is a step of 0, even where it would be divided by
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
