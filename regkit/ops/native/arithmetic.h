/* Arithmetic, for the kernels and for what is made of formulas: in double for float64 weights (where
 * REGKIT_FLOAT64 is given to the compiler), in float for all others.
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
#include <stdint.h>
#include <tgmath.h>

#ifdef REGKIT_FLOAT64
typedef double real;
typedef int64_t integer;
#define MANTISSA 52
#define BIAS 1023
#define SIGN INT64_MIN
#define EPSILON DBL_EPSILON
#define LARGEST DBL_MAX
#define TINY DBL_MIN
#else
typedef float real;
typedef int32_t integer;
#define MANTISSA 23
#define BIAS 127
#define SIGN INT32_MIN
#define EPSILON FLT_EPSILON
#define LARGEST FLT_MAX
#define TINY FLT_MIN
#endif

typedef union {
    real number;
    integer bits;
} Word;

/* NaN where a is; cheaper than minimum and maximum, where b is a number. */
static inline real least(real a, real b) { return b < a ? b : a; }
static inline real most(real a, real b) { return b > a ? b : a; }

static inline real soft(real v, real threshold) {
    real size = fabs(v) - threshold;
    return size < 0 ? 0 : copysign(size, v);
}

#ifdef REGKIT_FLOAT64
static inline real log_of(real x) { return log(x); }
static inline real exp_of(real x) { return exp(x); }
#else
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
#endif

/* log(1 + s) / s for s >= 0: what 1 + s loses of s is lost above and below. */
static inline real log1p_share(real s) {
    real up = 1 + least(s, LARGEST);
    return up > 1 ? log_of(up) / (up - 1) : 1;
}

/* What formulas call, as regkit/ops/formula.py has it in torch. */

/* NaN where a is. That of b is looked for once, in the end: see unless_nan. */
static inline real minimum(real a, real b) { return least(a, b); }
static inline real maximum(real a, real b) { return most(a, b); }

/* x, but NaN where the entry that it was made of is, or its step. */
static inline real unless_nan(real x, real v, real step) {
    return __builtin_isunordered(v, step) ? v + step : x;
}

static inline real where(int condition, real a, real b) { return condition ? a : b; }
static inline real inverse_root(real x) { return 1 / sqrt(x); }

/* Clip v to a size of `bound`, to 0 where that is negative. */
static inline real within(real v, real bound) {
    bound = bound < 0 ? 0 : bound;
    return fabs(v) <= bound ? v : copysign(bound, v);
}

#endif
