/* Groups: each is gathered into a tile of the thread's own, solved there and put back. */
#include "tile.h"

#include <omp.h>

/* What one parameter holds of the groups, as in kernel_args.py's GroupAxis; the offset is in the
 * addresses. */
typedef struct {
    Weight weight;
    int64_t count2, stride1, stride2, size, size1, step1, size2, step2, size3, step3;
} Piece;

/* Groups begin to end of a bundle. size: entries in each. updates: the groups are rows, one behind
 * the other in one weight, and are updated here. gate: of the bundle's first group; NULL where every
 * group may wake. */
typedef struct {
    int64_t piece, num_pieces, begin, end, size, across, updates;
    uint8_t *gate;
} Batch;

/* As GROUPED in launch.py has them. */
enum { SHRINK, KEEP, FOLD };

static inline void pass_on(real *restrict tile, stored *restrict memory, int back) {
    if (back) *memory = rounded(*tile);
    else *tile = load(*memory);
}

/* Copy the groups that begin at `begin` into the tile or, where `back`, out of it. Compiled for
 * each answer to `across` and `back`. */
static inline __attribute__((always_inline)) void carry(const Piece *p, real *tile, stored *memory,
                                                        const int64_t *begin, int lanes, int across,
                                                        int back) {
    int beside = across && lanes == LANES; /* the lanes lie side by side in memory, too */
    for (int g = 1; g < lanes; g++) beside &= begin[g] == begin[0] + g;
    for (int64_t i = 0; i < p->size1; i++)
        for (int64_t j = 0; j < p->size2; j++) {
            stored *from = memory + i * p->step1 + j * p->step2;
            if (!across && p->step3 == 1) {
                stored *run = from + begin[0];
#pragma omp simd
                for (int64_t k = 0; k < p->size3; k++) pass_on(&tile[k], &run[k], back);
                tile += p->size3;
            } else if (!across) {
                stored *run = from + begin[0];
                for (int64_t k = 0; k < p->size3; k++) pass_on(tile++, &run[k * p->step3], back);
            } else if (beside) {
                stored *row = from + begin[0];
                for (int64_t k = 0; k < p->size3; k++, tile += LANES, row += p->step3)
                    FOR_LANES pass_on(&tile[g], &row[g], back);
            } else {
                for (int g = 0; g < lanes; g++)
                    for (int64_t k = 0; k < p->size3; k++)
                        pass_on(&tile[k * LANES + g], &from[begin[g] + k * p->step3], back);
                tile += p->size3 * LANES;
            }
        }
}

static void gather(const Piece *p, real *tile, const stored *memory, const int64_t *begin,
                   int lanes, int64_t across) {
    stored *from = (stored *)memory; /* it is only read */
    if (across) carry(p, tile, from, begin, lanes, 1, 0);
    else carry(p, tile, from, begin, 1, 0, 0);
}

static void scatter(const Piece *p, real *tile, stored *memory, const int64_t *begin, int lanes,
                    int64_t across) {
    if (across) carry(p, tile, memory, begin, lanes, 1, 1);
    else carry(p, tile, memory, begin, 1, 0, 1);
}

static void begins(const Piece *p, int64_t group, int lanes, int64_t *begin) {
    for (int g = 0; g < lanes; g++)
        begin[g] = (group + g) / p->count2 * p->stride1 + (group + g) % p->count2 * p->stride2;
}

/* Move short groups, one behind the other, in place. */
static void update(const Weight *w, int64_t at, int64_t n, Rates rates, const Pass *pass) {
    real z[SHORT * LANES], step[SHORT * LANES];
    moved(w, at, n, rates, pass->update, z, step);
    for (int64_t i = 0; i < n; i++) w->x[at + i] = rounded(z[i]);
}

/* Gather values and steps, after the update; lanes and rows that hold nothing become 0. */
static void fill(Tile *tile, const Batch *batch, const Piece *pieces, const Pass *pass,
                 int64_t group, int lanes) {
    int64_t at = 0, whole = tile->rows * LANES, width = batch->across ? LANES : 1, begin[LANES];
    if (lanes < LANES && batch->across) memset(tile->z, 0, whole * sizeof(real));
    for (int64_t k = 0; k < batch->num_pieces; k++) {
        const Piece *p = &pieces[batch->piece + k];
        const stored *root = root_of(&p->weight);
        Rates rates = rates_of(&p->weight, pass);
        int64_t n = p->size * width;
        real *z = tile->z + at, *step = tile->step + at;
        begins(p, group, lanes, begin);
        at += n;
        if (batch->updates && !batch->across) {
            moved(&p->weight, begin[0], n, rates, pass->update, z, step);
            continue;
        }
        if (batch->updates) update(&p->weight, begin[0], lanes * p->size, rates, pass);
        gather(p, z, p->weight.x, begin, lanes, batch->across);
        int direct = !batch->across && p->size1 == 1 && p->size2 == 1 && p->step3 == 1;
        if (root == NULL) {
            even_steps(step, n, rates.rate);
        } else if (direct) {
            steps(step, root + begin[0], n, rates);
        } else {
            if (lanes < LANES && batch->across) memset(step, 0, n * sizeof(real));
            gather(p, step, root, begin, lanes, batch->across);
            invert(step, n, rates);
        }
    }
    memset(tile->z + at, 0, (whole - at) * sizeof(real));
    memset(tile->step + at, 0, (whole - at) * sizeof(real));
}

static void empty(Tile *tile, const Batch *batch, const Piece *pieces, int64_t group, int lanes) {
    int64_t at = 0, width = batch->across ? LANES : 1, begin[LANES];
    for (int64_t k = 0; k < batch->num_pieces; k++) {
        const Piece *p = &pieces[batch->piece + k];
        begins(p, group, lanes, begin);
        scatter(p, tile->z + at, p->weight.x, begin, lanes, batch->across);
        at += p->size * width;
    }
}

/* Return the step of all entries, -1 where they differ. */
static real even_step(const Batch *batch, const Piece *pieces, const Pass *pass, real ridge) {
    const Piece *p = &pieces[batch->piece];
    real rate = (real)param_of(&p->weight, pass)[PARAM_RATE];
    for (int64_t k = 0; k < batch->num_pieces; k++)
        if (root_of(&p[k].weight) || (real)param_of(&p[k].weight, pass)[PARAM_RATE] != rate)
            return -1;
    return rate / (1 + rate * ridge);
}

/* Say of each lane whether its group has to stay zero; of one long group, all lanes say it. */
static inline void closed_lanes(const Batch *batch, int64_t group, int lanes, int *closed) {
    FOR_LANES closed[g] = 0;
    if (batch->gate && batch->across)
        for (int g = 0; g < lanes; g++) closed[g] = is_closed(batch->gate[group + g]);
    else if (batch->gate)
        FOR_LANES closed[g] = is_closed(batch->gate[group]);
}

/* Put back the groups that may not wake, and note which are zero. By masks: of selected floats GCC
 * makes branches, and the loop stays scalar. */
static inline void keep_zeros(Tile *tile, const Batch *batch, int64_t group, int lanes,
                              const int *closed) {
    integer alive[LANES] = {0}, any = 0;
    for (int64_t i = 0; i < tile->rows; i++) {
        real *z = tile->z + i * LANES;
#pragma omp simd
        FOR_LANES {
            Word word = {load(rounded(z[g]))};
            integer stays = closed[g] & (z[g] == z[g]);
            word.bits &= stays - 1;
            z[g] = word.number;
            alive[g] |= word.bits & ~SIGN;
        }
    }
    FOR_LANES any |= alive[g];
    for (int g = 0; g < lanes; g++) {
        uint8_t *gate = &batch->gate[group + g];
        *gate = recorded(*gate, (batch->across ? alive[g] : any) == 0);
    }
}

/* Tell the tile where a row lies that comes next; of other groups, something near. */
static inline void look_ahead(Tile *tile, const Batch *batch, const Piece *pieces, int64_t group) {
    const Weight *w = &pieces[batch->piece].weight;
    const stored *arrays[AHEAD] = {w->x, w->grad, w->first, root_of(w)};
    int64_t at = batch->across ? 0 : group * pieces[batch->piece].stride2;
    for (int k = 0; k < AHEAD; k++) tile->ahead[k] = (arrays[k] ? arrays[k] : w->x) + at;
}

static void prox_batch(const Batch *batch, const Piece *pieces, int64_t kind, const Pass *pass,
                       real *room) {
    const double *c = coefficients(param_of(&pieces[batch->piece].weight, pass), 0);
    double l1 = kind == SHRINK ? c[0] : 0, ridge = kind == SHRINK ? c[2] : 0;
    double norm = kind == SHRINK ? c[1] : kind == FOLD ? c[0] : 0, price = kind == KEEP ? c[0] : 0;
    real concavity = (real)(kind == FOLD ? 1 / c[1] : 0);
    int64_t rows = batch->across ? batch->size : (batch->size + LANES - 1) / LANES;
    Tile tile = {.z = room, .step = room + rows * LANES, .rows = rows, .across = batch->across};
    real even = even_step(batch, pieces, pass, (real)ridge);
    for (int64_t group = batch->begin; group < batch->end; group += batch->across ? LANES : 1) {
        int64_t left = batch->end - group;
        int lanes = !batch->across ? 1 : left < LANES ? (int)left : LANES;
        int closed[LANES];
        closed_lanes(batch, group, lanes, closed);
        fill(&tile, batch, pieces, pass, group, lanes);
        look_ahead(&tile, batch, pieces, left > 1 ? group + 1 : group);
        if (l1 > 0) soften(tile.z, tile.step, rows * LANES, (real)l1);
        if (ridge > 0) add_ridge(tile.z, tile.step, rows * LANES, (real)ridge);
        find_scale(&tile);
        if (norm > 0) shrink(&tile, norm, concavity, even);
        if (price > 0) keep(&tile, price);
        if (batch->gate) keep_zeros(&tile, batch, group, lanes, closed);
        empty(&tile, batch, pieces, group, lanes);
    }
}

/* room: numbers that a thread needs. Return 1 without memory, and nothing is written then. */
int64_t regkit_groups(const Batch *batches, int64_t num_batches, const Piece *pieces, int64_t kind,
                      int64_t update, double grad_scale, const double *params, int64_t room,
                      int64_t threads) {
    Pass pass = {update, grad_scale, params};
    size_t one = (size_t)(room + LANES - room % LANES) * sizeof(real);
    char *memory = aligned_alloc(ALIGNMENT, one * (size_t)threads);
    if (memory == NULL) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        real *own = (real *)(memory + one * (size_t)omp_get_thread_num());
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_batches; i++)
            prox_batch(&batches[i], pieces, kind, &pass, own);
    }
    free(memory);
    return 0;
}
