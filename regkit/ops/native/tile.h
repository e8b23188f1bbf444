/* A tile of groups, (rows, LANES), and what the penalties of groups make of it; secular.py has the
 * mathematics of "shrink" and its sources.
 *
 * Either one long group lies in it row by row, and what the lanes hold is summed in the end; or
 * (`across`) every lane is a group of its own: short groups then cost no scalar arithmetic, and
 * groups whose entries are neighbours in memory share its lines.
 */
#ifndef REGKIT_NATIVE_TILE_H
#define REGKIT_NATIVE_TILE_H

#include "common.h"

_Static_assert(SHORT * LANES <= 1024, "short groups are moved on the stack");
#define DEEP 256 /* rows that are summed in float before they are added in double */
#define TOLERANCE (4 * EPSILON) /* of a bracket: the row is wrong by a quarter of it at most */
#ifdef REGKIT_FLOAT64
#define MOST_EVALUATIONS 8
#define MOST_FOLDED 9
#else
#define MOST_EVALUATIONS 5
#define MOST_FOLDED 6
#endif
#define WIDE 4
#define AHEAD 4
#define LEAST_SHARE (real)0.03
#define FOR_LANES for (int g = 0; g < LANES; g++)

typedef struct {
    real *z, *step;
    int64_t rows;
    int64_t across;
    real scale[LANES], tau[LANES], mu[LANES], s[LANES], lower[LANES], upper[LANES];
    /* drop: what a group loses in length, at most. dead: 1 or 0. */
    real drop[LANES], dead[LANES];
    real a[LANES], b[LANES], c[LANES], d[LANES]; /* four sums */
    /* What the next row will be made of: it is asked for while sums run over this one. */
    const stored *ahead[AHEAD];
} Tile;

typedef struct {
    real a, b, c, d;
} Terms;

/* ||z||^2, ||z/(tau step)||^2, sum z^2/(tau step) and ||z tau step||^2. Below eps^2 a threshold moves
 * no entry; it only has to be no division by zero. */
static inline Terms extremes(real z, real step, real tau) {
    real t = step * tau + EPSILON * EPSILON, q = z / t, w = z * t;
    Terms terms = {z * z, q * q, q * z, w * w};
    return terms;
}

/* Moments of (z / u)^2 over 1/u, u = 1 + mu step. */
static inline Terms moments(real z, real step, real mu) {
    real w = 1 / (1 + step * mu), r = z * w * (z * w);
    Terms terms = {r, r * w, r * w * w, 0};
    return terms;
}

/* ||z / u||^2 and ||z / u||^2 in the metric step. */
static inline Terms lengths(real z, real step, real mu) {
    real w = z / (1 + step * mu), r = w * w;
    Terms terms = {r, r * step, 0, 0};
    return terms;
}

/* A long group is the sum of its lanes, and every lane is told. */
static inline void share(const double *lane, int64_t across, real *out) {
    double sum = 0;
    FOR_LANES sum += lane[g];
    FOR_LANES out[g] = (real)(across ? lane[g] : sum);
}

#define SUM(terms)                                                                             \
    static inline void sum_##terms(Tile *tile, const real *with) {                             \
        double a[LANES] = {0}, b[LANES] = {0}, c[LANES] = {0}, d[LANES] = {0};                 \
        for (int64_t top = 0; top < tile->rows; top += DEEP) {                                 \
            int64_t end = tile->rows - top < DEEP ? tile->rows : top + DEEP;                   \
            real fa[LANES] = {0}, fb[LANES] = {0}, fc[LANES] = {0}, fd[LANES] = {0};           \
            for (int64_t i = top; i < end; i++) {                                              \
                for (int k = 0; k < AHEAD; k++)                                                \
                    __builtin_prefetch(tile->ahead[k] + i * LANES, 0, 2);                      \
                const real *z = tile->z + i * LANES, *step = tile->step + i * LANES;           \
                _Pragma("omp simd") FOR_LANES {                                                \
                    Terms t = terms(z[g] * tile->scale[g], step[g], with[g]);                  \
                    fa[g] += t.a, fb[g] += t.b, fc[g] += t.c, fd[g] += t.d;                    \
                }                                                                              \
            }                                                                                  \
            FOR_LANES a[g] += fa[g], b[g] += fb[g], c[g] += fc[g], d[g] += fd[g];              \
        }                                                                                      \
        share(a, tile->across, tile->a);                                                       \
        share(b, tile->across, tile->b);                                                       \
        share(c, tile->across, tile->c);                                                       \
        share(d, tile->across, tile->d);                                                       \
    }
SUM(extremes) SUM(moments) SUM(lengths)

/* Write 1 / the power of two that is next below the largest entry: exact, and no square overflows.
 */
static inline void find_scale(Tile *tile) {
    real largest[LANES] = {0}, all = 0;
    for (int64_t i = 0; i < tile->rows; i++) {
        const real *z = tile->z + i * LANES;
#pragma omp simd
        FOR_LANES largest[g] = most(largest[g], fabs(z[g]));
    }
    FOR_LANES all = most(all, largest[g]);
    FOR_LANES {
        Word word = {most(tile->across ? largest[g] : all, TINY)};
        /* One more than the bias for infinity: its square stays one. */
        integer exponent = (word.bits >> MANTISSA) - BIAS, one = 1;
        Word power = {.bits = exponent < BIAS ? (BIAS - exponent) * (one << MANTISSA)
                                              : one << (MANTISSA - 1)};
        tile->scale[g] = power.number;
    }
}

/* Write what a strength becomes where entries are scaled; `square`, where their squares are. */
static inline void scale_strength(Tile *tile, double strength, int square) {
    FOR_LANES {
        double scaled = strength * tile->scale[g] * (square ? tile->scale[g] : 1);
        tile->tau[g] = (real)fmax(fmin(scaled, LARGEST), TINY);
    }
}

/* Solve a / (x/s - 1 + pole)^2 + b = 1, value and slope at x = s being those of F. */
static inline real root_of_model(real s, real pole, real m0, real m1) {
    real excess = m0 - 1, ratio = excess / most(pole * m1 - excess, (real)1e-12);
    return s + pole * ratio * s / (sqrt(most(ratio + 1, 0)) + 1);
}

static inline real mu_of(real tau, real s) { return least(tau / s, LARGEST); }

/* Say whether the bracket of every group is as narrow as it has to be. An s that is wrong by a share
 * of itself makes the row wrong by that share of what it loses. */
static inline int have_closed(const Tile *tile) {
    int open = 0;
#pragma omp simd reduction(+ : open)
    FOR_LANES {
        real lower = tile->lower[g], wide = tile->upper[g] - lower;
        real lost = least(1, 4 * tile->drop[g] / lower);
        open += !(wide * lost <= TOLERANCE * lower) & (tile->dead[g] == 0);
    }
    return !open;
}

/* Say by the sums of `extremes` which groups die, and within what the length s of the others is. As
 * 1/u is convex in the step, s >= ||z|| - tau (a mean of the steps); where groups lose little, that
 * is all there is to know. */
static inline void enclose(Tile *tile) {
#pragma omp simd
    FOR_LANES {
        real norm = sqrt(tile->a[g]), inverse = sqrt(tile->b[g]), drop = sqrt(tile->d[g]) / norm;
        real lower = most(0, norm - drop);
        real upper = most(most(norm - norm / inverse, lower), EPSILON / 8);
        tile->dead[g] = inverse <= 1 + 8 * EPSILON;
        tile->drop[g] = drop, tile->lower[g] = lower, tile->upper[g] = upper;
        tile->s[g] = most((lower + upper) / 2, EPSILON / 8);
        tile->mu[g] = mu_of(tile->tau[g], tile->s[g]);
    }
}

/* Guess the root from the sums of `extremes`, see secular.py.
 *
 * Sums, not clamps, keep what is taken a logarithm of above 0, and the one clamp stands in a loop of
 * its own: its other case would become a branch, and the loop scalar.
 */
static inline void start(Tile *tile) {
    real exponent[LANES];
#pragma omp simd
    FOR_LANES {
        real norm = sqrt(tile->a[g]), inverse = sqrt(tile->b[g]), between = tile->c[g];
        real power = 1 - log_of(between / (norm * inverse) + TINY);
        real part = 1 - exp_of(-log_of(inverse + TINY) / power);
        exponent[g] = power * log_of(part + TINY);
    }
    FOR_LANES exponent[g] = most(-87, exponent[g]);
#pragma omp simd
    FOR_LANES {
        real near = sqrt(tile->a[g]) * exp_of(exponent[g]);
        real s = most(least(most(near, tile->lower[g]), tile->upper[g]), EPSILON / 8);
        tile->s[g] = s;
        tile->mu[g] = mu_of(tile->tau[g], s);
    }
}

/* Narrow the bracket by three quadrature rules, see secular.py. */
static inline void closer(Tile *tile) {
#pragma omp simd
    FOR_LANES {
        real s = tile->s[g], unit = 1 / (s * s), m0 = tile->a[g] * unit;
        real m1 = most(tile->b[g] * unit, TINY), m2 = most(tile->c[g] * unit, TINY);
        real low = root_of_model(s, m0 / m1, m0, m1), high = root_of_model(s, 1, m0, m1);
        real near = root_of_model(s, m1 / m2, m0, m1);
        real lower = most(most(tile->lower[g], low), least(s, near));
        real upper = most(least(least(tile->upper[g], high), most(s, near)), lower);
        real middle = sqrt(most(lower, LEAST_SHARE * upper) * upper);
        near = least(most(near, lower), upper);
        s = upper > WIDE * lower ? middle : near;
        tile->s[g] = s, tile->lower[g] = lower, tile->upper[g] = upper;
        tile->mu[g] = mu_of(tile->tau[g], s);
    }
}

/* One step for all entries: the ball, in closed form. */
static inline void solve_even(Tile *tile, real step) {
    FOR_LANES {
        real norm = sqrt(tile->a[g]), s = norm - step * tile->tau[g];
        tile->dead[g] = s <= 8 * EPSILON * norm;
        tile->mu[g] = mu_of(tile->tau[g], most(s, TINY));
    }
}

static inline void solve(Tile *tile, const int *sound) {
    enclose(tile);
    int alive = 0;
    FOR_LANES alive += sound[g] & (tile->dead[g] == 0);
    if (!alive || have_closed(tile)) return;
    start(tile);
    for (int k = 0; k < MOST_EVALUATIONS; k++) {
        sum_moments(tile, tile->mu);
        closer(tile);
        if (have_closed(tile)) return;
    }
}

/* The same for "fold": the multiplier is tau / s - concavity, which grows no less than s alone. */
static inline real folded_mu(real tau, real s, real concavity) {
    return least(most(0, tau / s - concavity), LARGEST);
}

/* Start from the chord of 1 / sqrt(F) between 0 and the length from which on groups are left alone. */
static inline void start_folded(Tile *tile, real concavity) {
    start(tile);
    FOR_LANES {
        real norm = sqrt(tile->a[g]), dying = 1 / sqrt(tile->b[g]), cap = tile->tau[g] / concavity;
        real end = cap / norm, chord = cap * (1 - dying) / (end - dying);
        real upper = most(end > 1 ? chord : cap, EPSILON / 8);
        tile->s[g] = end > 1 ? upper : least(tile->s[g], upper);
        tile->lower[g] = 0, tile->upper[g] = upper, tile->drop[g] = LARGEST;
        tile->mu[g] = folded_mu(tile->tau[g], tile->s[g], concavity);
    }
}

/* Do as `closer` where F need not fall: only the tangent of 1 / sqrt(F) is a bound. */
static inline void closer_folded(Tile *tile, real concavity) {
    FOR_LANES {
        real s = tile->s[g], unit = 1 / (s * s), m0 = tile->a[g] * unit;
        real m1 = most(tile->b[g] * unit, TINY), m2 = most(tile->c[g] * unit, TINY);
        real part = s * concavity / tile->tau[g], rest = most(1 - part, EPSILON);
        real slope = (m1 - part * m0) / rest;
        real bend = most((m2 - 2 * part * m1 + part * part * m0) / (rest * rest), TINY);
        int falls = slope > 0, left = (m0 > 1) & falls;
        slope = most(slope, TINY);
        real lower = tile->lower[g], upper = tile->upper[g];
        if (falls) lower = most(lower, root_of_model(s, m0 / slope, m0, slope));
        if (left) lower = most(lower, s);
        lower = least(lower, upper);
        if (!left) upper = most(least(upper, s), lower);
        real middle = sqrt(most(lower, LEAST_SHARE * upper) * upper);
        real near = root_of_model(s, least(slope / bend, (real)1e6), m0, slope);
        near = least(most(near, lower), upper);
        s = falls & (upper <= WIDE * lower) ? near : middle;
        tile->s[g] = s, tile->lower[g] = lower, tile->upper[g] = upper;
        tile->mu[g] = folded_mu(tile->tau[g], s, concavity);
    }
}

/* Choose between what is shorter, the group as it is, and zero, by their objectives. */
static inline void solve_folded(Tile *tile, real concavity) {
    real norm[LANES], between[LANES];
    enclose(tile);
    start_folded(tile, concavity);
    FOR_LANES norm[g] = sqrt(tile->a[g]), between[g] = tile->c[g];
    for (int k = 0; k < MOST_FOLDED && !have_closed(tile); k++) {
        sum_moments(tile, tile->mu);
        closer_folded(tile, concavity);
    }
    sum_lengths(tile, tile->mu);
    FOR_LANES {
        real cap = tile->tau[g] / concavity, short_by = most(0, cap - sqrt(tile->a[g]));
        real pull = tile->mu[g] * tile->mu[g] * tile->b[g], rise = concavity * short_by * short_by;
        int whole = (norm[g] >= cap) & (tile->dead[g] != 0 ? between[g] > cap : pull >= rise);
        if (whole) tile->dead[g] = 0, tile->mu[g] = 0;
    }
}

/* Divide each group by 1 + mu step, by infinity where it dies, by NaN where it holds what is no
 * number. An entry of step 0 stays in any case but the last. concavity: 0 for a norm, above it for one
 * that bends down to a constant. even: the step of all, or -1. */
static inline void shrink(Tile *tile, double strength, real concavity, real even) {
    real much[LANES];
    scale_strength(tile, strength, 0);
    sum_extremes(tile, tile->tau);
    int sound[LANES];
    FOR_LANES sound[g] = tile->a[g] + tile->b[g] + tile->c[g] <= LARGEST;
    if (concavity > 0) solve_folded(tile, concavity);
    else if (even >= 0) solve_even(tile, even);
    else solve(tile, sound);
    FOR_LANES {
        real mu = tile->dead[g] != 0 ? LARGEST : tile->mu[g];
        tile->mu[g] = sound[g] ? mu : NAN;
        much[g] = tile->dead[g] != 0 ? LARGEST : 1;
    }
    for (int64_t i = 0; i < tile->rows; i++) {
        real *z = tile->z + i * LANES, *step = tile->step + i * LANES;
#pragma omp simd
        FOR_LANES z[g] = z[g] / (step[g] * tile->mu[g] * much[g] + 1);
    }
}

/* Put groups to zero whose loss costs less than the price: sum z^2 / (2 step) < price. An entry of
 * step 0 stays. */
static inline void keep(Tile *tile, double price) {
    scale_strength(tile, 2 * price, 1);
    sum_extremes(tile, tile->tau);
    for (int64_t i = 0; i < tile->rows; i++) {
        real *z = tile->z + i * LANES, *step = tile->step + i * LANES;
#pragma omp simd
        FOR_LANES z[g] = (tile->c[g] < 1) & (step[g] != 0) ? 0 : z[g];
    }
}

static inline void soften(real *restrict z, const real *restrict step, int64_t n, real l1) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = soft(z[i], step[i] * l1);
}

static inline void add_ridge(real *restrict z, real *restrict step, int64_t n, real ridge) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        real divisor = 1 / (1 + step[i] * ridge);
        z[i] *= divisor, step[i] *= divisor;
    }
}

#endif
