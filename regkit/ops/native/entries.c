/* Entries: every weight is read once and written once, all in one parallel region.
 *
 * build.py compiles this on the user's machine and launch.py calls it. The formulas are libraries
 * of their own, made from the penalties' Python by formula_source.py; here they are addresses.
 */
#include "common.h"

#define BLOCK 256 /* entries between which memory is waited for: few, so that it is on its way */

/* Write the prox of n entries. c: the coefficients of the formula. */
typedef void (*Prox)(real *x, const real *step, int64_t n, real lr, const double *c);

/* gate: NULL where every zero may wake. */
typedef struct {
    Weight weight;
    uint8_t *gate;
    int64_t num;
} Run;

/* Put back the zeros that may not wake, and note which there are. By masks: of selected floats GCC
 * makes branches, which zeros here and there mispredict. Bytes mostly stay, and then are not
 * written. */
static inline void keep_zeros(real *restrict z, uint8_t *restrict gate, int64_t n) {
    uint8_t now[BLOCK], changed = 0;
#pragma omp simd reduction(| : changed)
    for (int64_t i = 0; i < n; i++) {
        Word word = {load(rounded(z[i]))};
        integer stays = is_closed(gate[i]) & (z[i] == z[i]);
        word.bits &= stays - 1;
        z[i] = word.number;
        now[i] = recorded(gate[i], (word.bits & ~SIGN) == 0);
        changed |= now[i] ^ gate[i];
    }
    if (changed) memcpy(gate, now, (size_t)n);
}

/* Weights that are computed with as they are stored are worked on where they lie. */
static void prox_run(const Run *run, const Prox *proxes, int64_t num_proxes, const Pass *pass) {
    real step[BLOCK] __attribute__((aligned(ALIGNMENT)));
    const double *param = param_of(&run->weight, pass);
    Rates rates = rates_of(&run->weight, pass);
    for (int64_t at = 0; at < run->num; at += BLOCK) {
        int64_t n = run->num - at < BLOCK ? run->num - at : BLOCK;
        stored *x = run->weight.x + at;
#ifdef REGKIT_BFLOAT16
        real z[BLOCK] __attribute__((aligned(ALIGNMENT)));
#else
        real *z = x;
#endif
        moved(&run->weight, at, n, rates, pass->update, z, step);
        for (int64_t k = 0; k < num_proxes; k++)
            proxes[k](z, step, n, rates.lr, coefficients(param, k));
        if (run->gate) keep_zeros(z, run->gate + at, n);
#ifdef REGKIT_BFLOAT16
        for (int64_t i = 0; i < n; i++) x[i] = rounded(z[i]);
#endif
    }
}

void regkit_entries(const Run *runs, int64_t num_runs, const Prox *proxes, int64_t num_proxes,
                    int64_t update, double grad_scale, const double *params, int64_t threads) {
    Pass pass = {update, grad_scale, params};
#pragma omp parallel for schedule(dynamic) num_threads((int)threads)
    for (int64_t i = 0; i < num_runs; i++) prox_run(&runs[i], proxes, num_proxes, &pass);
}

/* Raise numbers of steps by one. */
void regkit_count(float *const *counts, int64_t num) {
    for (int64_t i = 0; i < num; i++) *counts[i] += 1;
}
