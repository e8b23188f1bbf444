/* A tile of groups, (rows, LANES), and what "shrink" makes of it; secular.py has the mathematics and
 * its sources.
 *
 * Either one long group lies in it row by row, and what the lanes hold is summed in the end; or
 * (`across`) every lane is a group of its own: short groups then cost no scalar arithmetic, and
 * groups whose entries are neighbours in memory share its lines.
 */
#ifndef REGKIT_NATIVE_TILE_H
#define REGKIT_NATIVE_TILE_H

#include "common.h"

#define LANES 16
#define DEEP 256 /* rows that are summed in float before they are added in double */
#define TOLERANCE 5e-7f /* of a bracket: the row is wrong by a quarter of it at most */
#define MOST_EVALUATIONS 5
#define WIDE 4.0f
#define LEAST_SHARE 0.03f
#define FOR_LANES for (int g = 0; g < LANES; g++)

typedef struct {
    float *z, *step;
    int64_t rows;
    int64_t across;
    float scale[LANES], tau[LANES], mu[LANES], s[LANES], lower[LANES], upper[LANES];
    float dead[LANES], a[LANES], b[LANES], c[LANES]; /* dead: 1 or 0; a, b, c: three sums */
} Tile;

typedef struct {
    float a, b, c;
} Terms;

/* ||z||^2, ||z/(tau step)||^2 and sum z^2/(tau step). Below eps^2 a threshold moves no entry; it
 * only has to be no division by zero. */
static inline Terms extremes(float z, float step, float tau) {
    float q = z / (step * tau + FLT_EPSILON * FLT_EPSILON);
    Terms terms = {z * z, q * q, q * z};
    return terms;
}

/* Moments of (z / u)^2 over 1/u, u = 1 + mu step. */
static inline Terms moments(float z, float step, float mu) {
    float w = 1 / (1 + step * mu), r = z * w * (z * w);
    Terms terms = {r, r * w, r * w * w};
    return terms;
}

/* A long group is the sum of its lanes, and every lane is told. */
static inline void share(const double *lane, int64_t across, float *out) {
    double sum = 0;
    FOR_LANES sum += lane[g];
    FOR_LANES out[g] = (float)(across ? lane[g] : sum);
}

#define SUM(terms)                                                                             \
    static inline void sum_##terms(Tile *tile, const float *with) {                            \
        double a[LANES] = {0}, b[LANES] = {0}, c[LANES] = {0};                                 \
        for (int64_t top = 0; top < tile->rows; top += DEEP) {                                 \
            int64_t end = tile->rows - top < DEEP ? tile->rows : top + DEEP;                   \
            float fa[LANES] = {0}, fb[LANES] = {0}, fc[LANES] = {0};                           \
            for (int64_t i = top; i < end; i++) {                                              \
                const float *z = tile->z + i * LANES, *step = tile->step + i * LANES;          \
                _Pragma("omp simd") FOR_LANES {                                                \
                    Terms t = terms(z[g] * tile->scale[g], step[g], with[g]);                  \
                    fa[g] += t.a, fb[g] += t.b, fc[g] += t.c;                                  \
                }                                                                              \
            }                                                                                  \
            FOR_LANES a[g] += fa[g], b[g] += fb[g], c[g] += fc[g];                             \
        }                                                                                      \
        share(a, tile->across, tile->a);                                                       \
        share(b, tile->across, tile->b);                                                       \
        share(c, tile->across, tile->c);                                                       \
    }
SUM(extremes) SUM(moments)

/* Write 1 / the power of two that is next below the largest entry: exact, and no square overflows.
 */
static inline void find_scale(Tile *tile) {
    float largest[LANES] = {0}, all = 0;
    for (int64_t i = 0; i < tile->rows; i++) {
        const float *z = tile->z + i * LANES;
#pragma omp simd
        FOR_LANES largest[g] = most(largest[g], fabsf(z[g]));
    }
    FOR_LANES all = most(all, largest[g]);
    FOR_LANES {
        Word word = {most(tile->across ? largest[g] : all, FLT_MIN)};
        int32_t exponent = (word.bits >> 23) - 127; /* 128 for infinity: its square stays one */
        Word power = {.bits = exponent < 127 ? (127 - exponent) * (1 << 23) : 1 << 22};
        tile->scale[g] = power.number;
    }
}

/* Solve a / (x/s - 1 + pole)^2 + b = 1, value and slope at x = s being those of F. */
static inline float root_of_model(float s, float pole, float m0, float m1) {
    float excess = m0 - 1, ratio = excess / most(pole * m1 - excess, 1e-12f);
    return s + pole * ratio * s / (sqrtf(most(ratio + 1, 0)) + 1);
}

static inline float mu_of(float tau, float s) { return least(tau / s, FLT_MAX); }

/* Guess the root from the sums of `extremes`, see secular.py; say which groups die.
 *
 * Sums, not clamps, keep what is taken a logarithm of above 0, and the one clamp stands in a loop of
 * its own: its other case would become a branch, and the loop scalar.
 */
static inline void start(Tile *tile) {
    float exponent[LANES];
#pragma omp simd
    FOR_LANES {
        float norm = sqrtf(tile->a[g]), inverse = sqrtf(tile->b[g]), between = tile->c[g];
        float power = 1 - log_of(between / (norm * inverse) + FLT_MIN);
        float part = 1 - exp_of(-log_of(inverse + FLT_MIN) / power);
        exponent[g] = power * log_of(part + FLT_MIN);
    }
    FOR_LANES exponent[g] = most(-87, exponent[g]);
#pragma omp simd
    FOR_LANES {
        float norm = sqrtf(tile->a[g]), inverse = sqrtf(tile->b[g]);
        float upper = most(norm - norm / inverse, FLT_EPSILON / 8);
        float s = most(least(norm * exp_of(exponent[g]), upper), FLT_EPSILON / 8);
        tile->dead[g] = inverse <= 1 + 8 * FLT_EPSILON;
        tile->s[g] = s, tile->lower[g] = 0, tile->upper[g] = upper;
        tile->mu[g] = mu_of(tile->tau[g], s);
    }
}

/* Narrow the bracket by three quadrature rules, see secular.py; return whether all have closed. */
static inline int closer(Tile *tile) {
    int open = 0;
#pragma omp simd reduction(+ : open)
    FOR_LANES {
        float s = tile->s[g], unit = 1 / (s * s), m0 = tile->a[g] * unit;
        float m1 = most(tile->b[g] * unit, FLT_MIN), m2 = most(tile->c[g] * unit, FLT_MIN);
        float low = root_of_model(s, m0 / m1, m0, m1), high = root_of_model(s, 1, m0, m1);
        float near = root_of_model(s, m1 / m2, m0, m1);
        float lower = most(most(tile->lower[g], low), least(s, near));
        float upper = most(least(least(tile->upper[g], high), most(s, near)), lower);
        float middle = sqrtf(most(lower, LEAST_SHARE * upper) * upper);
        near = least(most(near, lower), upper);
        s = upper > WIDE * lower ? middle : near;
        open += !(upper - lower <= TOLERANCE * lower) & (tile->dead[g] == 0);
        tile->s[g] = s, tile->lower[g] = lower, tile->upper[g] = upper;
        tile->mu[g] = mu_of(tile->tau[g], s);
    }
    return !open;
}

/* One step for all entries: the ball, in closed form. */
static inline void solve_even(Tile *tile, float step) {
    FOR_LANES {
        float norm = sqrtf(tile->a[g]), s = norm - step * tile->tau[g];
        tile->dead[g] = s <= 8 * FLT_EPSILON * norm;
        tile->mu[g] = mu_of(tile->tau[g], most(s, FLT_MIN));
    }
}

/* Divide each group by 1 + mu step, by infinity where it dies, by NaN where it holds what is no
 * number. An entry of step 0 stays in any case but the last. even: the step of all, or -1. */
static inline void shrink(Tile *tile, float tau, float even) {
    float much[LANES];
    FOR_LANES {
        tile->tau[g] = (float)fmax(fmin((double)tau * tile->scale[g], FLT_MAX), FLT_MIN);
    }
    sum_extremes(tile, tile->tau);
    int sound[LANES];
    FOR_LANES sound[g] = tile->a[g] + tile->b[g] + tile->c[g] <= FLT_MAX;
    if (even >= 0) {
        solve_even(tile, even);
    } else {
        start(tile);
        int alive = 0;
        FOR_LANES alive += sound[g] & (tile->dead[g] == 0);
        for (int k = 0; alive && k < MOST_EVALUATIONS; k++) {
            sum_moments(tile, tile->mu);
            if (closer(tile)) break;
        }
    }
    FOR_LANES {
        float mu = tile->dead[g] != 0 ? FLT_MAX : tile->mu[g];
        tile->mu[g] = sound[g] ? mu : NAN;
        much[g] = tile->dead[g] != 0 ? FLT_MAX : 1;
    }
    for (int64_t i = 0; i < tile->rows; i++) {
        float *z = tile->z + i * LANES, *step = tile->step + i * LANES;
#pragma omp simd
        FOR_LANES z[g] = z[g] / (step[g] * tile->mu[g] * much[g] + 1);
    }
}

static inline void soften(float *restrict z, const float *restrict step, int64_t n, float l1) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = soft(z[i], step[i] * l1);
}

static inline void add_ridge(float *restrict z, float *restrict step, int64_t n, float ridge) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float divisor = 1 / (1 + step[i] * ridge);
        z[i] *= divisor, step[i] *= divisor;
    }
}

#endif
