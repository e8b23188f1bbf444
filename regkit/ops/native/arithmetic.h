/* Arithmetic of float32, for the kernels and for what is made of formulas.
 *
 * Laws that the way of writing serves:
 * - NaN is never hidden: every select keeps the side that a NaN is on. No flag may promise that
 *   there are none, and none may reassociate (1 + s - 1 must not become s).
 * - The bits do not depend on the number of threads: an item is worked on by one thread, and sums
 *   run over a fixed number of lanes or of entries.
 */
#ifndef REGKIT_NATIVE_ARITHMETIC_H
#define REGKIT_NATIVE_ARITHMETIC_H

#include <float.h>
#include <math.h>
#include <stdint.h>

/* NaN where a is; cheaper than minimum and maximum, where b is a number. */
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

/* What formulas call, as regkit/ops/formula.py has it in torch. */

/* NaN where a is. That of b is looked for once, in the end: see unless_nan. */
static inline float minimum(float a, float b) { return least(a, b); }
static inline float maximum(float a, float b) { return most(a, b); }

/* x, but NaN where the entry that it was made of is, or its step. */
static inline float unless_nan(float x, float v, float step) {
    return __builtin_isunordered(v, step) ? v + step : x;
}

static inline float where(int condition, float a, float b) { return condition ? a : b; }
static inline float inverse_root(float x) { return 1 / sqrtf(x); }

/* Clip v to a size of `bound`, to 0 where that is negative. */
static inline float within(float v, float bound) {
    bound = bound < 0 ? 0 : bound;
    return fabsf(v) <= bound ? v : copysignf(bound, v);
}

#endif
