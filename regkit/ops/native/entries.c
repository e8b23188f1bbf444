/* Entries: every weight is read once and written once, all in one parallel region.
 *
 * build.py compiles this on the user's machine and launch.py calls it. The formulas are libraries
 * of their own, made from the penalties' Python by formula_source.py; here they are addresses.
 */
#include "common.h"

#include <string.h>

#define BLOCK 1024 /* entries whose steps lie in the first cache */
/* Bits of a float: all but the sign; infinity, above which is NaN. */
#define ABS 0x7fffffff
#define INFINITE 0x7f800000

/* Write the prox of n entries. c: the coefficients of the formula. */
typedef void (*Prox)(float *x, const float *step, int64_t n, float lr, const double *c);

/* gate: NULL where every zero may wake. */
typedef struct {
    float *x;
    const float *second, *count;
    uint8_t *gate;
    int64_t num, param_row;
} Run;

/* Put back the zeros that may not wake, and note which there are. In integers: of selected floats
 * GCC makes branches, which zeros here and there mispredict. */
static inline void keep_zeros(float *restrict x, uint8_t *restrict gate, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t stays = is_closed(gate[i]) & ((bits & ABS) <= INFINITE); /* all but NaN */
        bits &= stays - 1;
        memcpy(x + i, &bits, sizeof bits);
        gate[i] = recorded(gate[i], (bits & ABS) == 0);
    }
}

static void prox_run(const Run *run, const Prox *proxes, int64_t num_proxes,
                     const double *params) {
    float step[BLOCK] __attribute__((aligned(ALIGNMENT)));
    const double *param = params + run->param_row * NUM_PARAMS;
    Metric metric = metric_of(param, run->count);
    for (int64_t at = 0; at < run->num; at += BLOCK) {
        int64_t n = run->num - at < BLOCK ? run->num - at : BLOCK;
        if (run->second || at == 0) steps(step, run->second ? run->second + at : NULL, n, metric);
        for (int64_t k = 0; k < num_proxes; k++)
            proxes[k](run->x + at, step, n, (float)param[PARAM_LR], coefficients(param, k));
        if (run->gate) keep_zeros(run->x + at, run->gate + at, n);
    }
}

void regkit_entries(const Run *runs, int64_t num_runs, const Prox *proxes, int64_t num_proxes,
                    const double *params, int64_t threads) {
#pragma omp parallel for schedule(dynamic) num_threads((int)threads)
    for (int64_t i = 0; i < num_runs; i++) prox_run(&runs[i], proxes, num_proxes, params);
}
