/* Entries: every weight is read once and written once, all in one parallel region.
 *
 * build.py compiles this on the user's machine and launch.py calls it; formulas.py and concave.py
 * hold the same mathematics in torch, with its sources.
 */
#include "common.h"

#include <string.h>

#define BLOCK 1024 /* entries whose steps lie in the first cache */
#define STEEP 1e30f /* a slope that stands for a jump, as in concave.py */

/* Clip v to a size of `bound`, to 0 where that is negative. */
static inline float within(float v, float bound) {
    bound = bound < 0 ? 0 : bound;
    return fabsf(v) <= bound ? v : copysignf(bound, v);
}

static inline float lasso(float v, float step, Coefficients c) { return soft(v, step * c.s0); }

static inline float ridge(float v, float step, Coefficients c) {
    return soft(v, step * c.s0) / (1 + step * c.s1);
}

static inline float elastic_cost(float size, Coefficients c) {
    return c.s0 * size + c.s1 / 2 * size * size;
}

static inline float decay(float v, float step, Coefficients c) {
    (void)step;
    return v * c.keep;
}

static inline float mcp(float v, float step, Coefficients c) {
    float zero = c.s0 * least(step, sqrtf(step) * sqrtf(c.c0));
    return within(v, (fabsf(v) - zero) / most(1 - step * (1 / c.c0), 1 / STEEP));
}

static inline float mcp_cost(float size, Coefficients c) {
    size = size > c.c0 * c.s0 ? c.c0 * c.s0 : size;
    return size * (c.s0 - size / (2 * c.c0));
}

static inline float scad(float v, float step, Coefficients c) {
    float size = fabsf(v), end = c.c0 + 1, bend = c.c0 - 1;
    float start = least(sqrtf(most(step, end)) * sqrtf(end), step + 1);
    start = c.s0 * least(start, (step + end) / 2);
    float line = (size - start) / most(1 - step * (1 / bend), 1 / STEEP);
    return within(v, most(line + (step < bend ? c.s0 : 0), size - step * c.s0));
}

static inline float scad_cost(float size, Coefficients c) {
    float end = c.c0 * c.s0, low = size > c.s0 ? c.s0 : size, inner = size > end ? end : size;
    float bend = (inner - low) / most(end - c.s0, FLT_MIN);
    return c.s0 * low + c.s0 * (end - c.s0) * bend * (1 - bend / 2);
}

static inline float hard(float v, float step, Coefficients c) {
    return within(v, (fabsf(v) - sqrtf(2 * c.s0 * step)) * STEEP);
}

static inline float hard_cost(float size, Coefficients c) { return size != 0 ? c.s0 : 0; }

static inline float half(float v, float step, Coefficients c) {
    const float end = 0.27216552697590868f; /* 0.5 * 1.5^-1.5, where x becomes zero */
    float size = most(FLT_MIN, fabsf(v));
    float q = c.s0 * step / size / sqrtf(size) * 0.5f;
    float gap = (end - q) * STEEP;
    q = q > end + 1e-3f ? end + 1e-3f : q; /* beyond its end any number will do that is as tame */
    float y = -4.97618476f;
    y = y * q + 0.88090704f;
    y = y * q - 0.52930979f;
    y = y * q - 0.49491819f;
    y = y * q + 1;
    y = (2 * y * y * y - q) / (3 * y * y - 1);
    gap = gap < 0 ? 0 : gap;
    y = y > gap ? gap : y;
    return v * (y * y);
}

static inline float half_cost(float size, Coefficients c) { return c.s0 * sqrtf(size); }

static inline float log_sum(float v, float step, Coefficients c) {
    float size = fabsf(v), threshold = least(step * c.s0, FLT_MAX);
    float bend = sqrtf(threshold) * 2 * sqrtf(c.c0);
    float low = size - bend + c.c0, high = size + bend + c.c0;
    float root = sqrtf((low < 0 ? 0 : low) * high) + size + c.c0;
    float x = size - threshold / root * (2 * c.c0);
    x = x < 0 ? 0 : x;
    float start = threshold * log1p_share(x * (1 / c.c0)) + 0.5f * x;
    float jump = (size - start) * STEEP;
    return within(v, jump < x ? jump : x);
}

static inline float log_sum_cost(float size, Coefficients c) {
    float s = size / c.c0;
    return c.s0 * c.c0 * (s * log1p_share(s));
}

static inline float box(float v, float step, Coefficients c) {
    float inside = v < c.c0 ? c.c0 : v;
    inside = inside > c.c1 ? c.c1 : inside;
    return step > 0 ? inside : v;
}

static inline float no_cost(float size, Coefficients c) {
    (void)size, (void)c;
    return 0;
}

#define PROX(name)                                                                             \
    static void name##_all(float *restrict x, const float *restrict step, int64_t n,           \
                           Coefficients c) {                                                   \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) x[i] = name(x[i], step[i], c);     \
    }
#define COST(name)                                                                             \
    static float name##_all(const float *x, int64_t n, Coefficients c) {                       \
        float sum = 0;                                                                         \
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; i++) sum +=          \
            name(fabsf(x[i]), c);                                                              \
        return sum;                                                                            \
    }
PROX(lasso) PROX(ridge) PROX(decay) PROX(mcp) PROX(scad) PROX(hard) PROX(half) PROX(log_sum)
PROX(box)
COST(elastic_cost) COST(mcp_cost) COST(scad_cost) COST(hard_cost) COST(half_cost)
COST(log_sum_cost) COST(no_cost)

static void elastic_all(float *restrict x, const float *restrict step, int64_t n, Coefficients c) {
    (c.s1 > 0 ? ridge_all : lasso_all)(x, step, n, c);
}

typedef struct {
    const char *name;
    void (*prox)(float *, const float *, int64_t, Coefficients);
    float (*cost)(const float *, int64_t, Coefficients);
    int by_strength; /* nothing is to be done where s0 = s1 = 0, not even with an infinite step */
} Formula;

static const Formula FORMULAS[] = {
    {"elastic", elastic_all, elastic_cost_all, 1}, {"decay", decay_all, no_cost_all, 0},
    {"mcp", mcp_all, mcp_cost_all, 1},             {"scad", scad_all, scad_cost_all, 1},
    {"hard", hard_all, hard_cost_all, 1},          {"half", half_all, half_cost_all, 1},
    {"log_sum", log_sum_all, log_sum_cost_all, 1}, {"box", box_all, no_cost_all, 0},
};

/* Return the place of a formula, -1 where there is none of that name. */
int64_t regkit_formula(const char *name) {
    for (int64_t k = 0; k < (int64_t)(sizeof FORMULAS / sizeof *FORMULAS); k++)
        if (strcmp(FORMULAS[k].name, name) == 0) return k;
    return -1;
}

typedef struct {
    float *x;
    const float *second, *count;
    int64_t num, rule;
} Run;

static void sweep_run(const Run *run, const int64_t *names, int64_t num_names, const double *rules,
                      float *tally) {
    float step[BLOCK] __attribute__((aligned(ALIGNMENT)));
    const double *rule = rules + run->rule * NUM_PARAMS;
    Metric metric = metric_of(rule, run->count);
    int64_t alive = 0;
    double value = 0;
    for (int64_t at = 0; at < run->num; at += BLOCK) {
        float *x = run->x + at;
        int64_t n = run->num - at < BLOCK ? run->num - at : BLOCK;
        if (run->second || at == 0) steps(step, run->second ? run->second + at : NULL, n, metric);
        for (int64_t k = 0; k < num_names; k++) {
            Coefficients c = coefficients(rule, k);
            const Formula *formula = &FORMULAS[names[k]];
            if (formula->by_strength && c.s0 == 0 && c.s1 == 0) continue;
            formula->prox(x, step, n, c);
        }
        if (tally == NULL) continue;
        int32_t here = 0;
#pragma omp simd reduction(+ : here)
        for (int64_t i = 0; i < n; i++) here += x[i] != 0;
        alive += here;
        for (int64_t k = 0; k < num_names; k++)
            value += FORMULAS[names[k]].cost(x, n, coefficients(rule, k));
    }
    if (tally == NULL) return;
    tally[0] = (float)alive, tally[1] = 0, tally[2] = (float)value;
}

/* tally: (runs, 3) or NULL. */
void regkit_entries(const Run *runs, int64_t num_runs, const int64_t *names, int64_t num_names,
                    const double *rules, float *tally, int64_t threads) {
#pragma omp parallel for schedule(dynamic) num_threads((int)threads)
    for (int64_t i = 0; i < num_runs; i++)
        sweep_run(&runs[i], names, num_names, rules, tally ? tally + 3 * i : NULL);
}
