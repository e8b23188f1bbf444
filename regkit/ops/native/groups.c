/* Groups: each is gathered into a tile of the thread's own, solved there and put back. */
#include "tile.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* What one parameter holds of the groups, as in kernel_args.py's GroupAxis; the offset is in the addresses. */
typedef struct {
    float *x;
    const float *second, *count;
    int64_t param_row, count2, stride1, stride2, size, size1, step1, size2, step2, size3, step3;
} Piece;

/* Groups begin to end of a bundle. size: entries in each. gate: of the bundle's first group; NULL
 * where every group may wake. */
typedef struct {
    int64_t piece, num_pieces, begin, end, size, across;
    uint8_t *gate;
} Batch;

static inline void pass(float *restrict tile, float *restrict memory, int back) {
    if (back) *memory = *tile;
    else *tile = *memory;
}

/* Copy the groups that begin at `begin` into the tile or, where `back`, out of it. Compiled for
 * each answer to `across` and `back`. */
static inline __attribute__((always_inline)) void carry(const Piece *p, float *tile, float *memory,
                                                        const int64_t *begin, int lanes, int across,
                                                        int back) {
    int beside = across && lanes == LANES; /* the lanes lie side by side in memory, too */
    for (int g = 1; g < lanes; g++) beside &= begin[g] == begin[0] + g;
    for (int64_t i = 0; i < p->size1; i++)
        for (int64_t j = 0; j < p->size2; j++) {
            float *from = memory + i * p->step1 + j * p->step2;
            if (!across && p->step3 == 1) {
                float *run = from + begin[0];
#pragma omp simd
                for (int64_t k = 0; k < p->size3; k++) pass(&tile[k], &run[k], back);
                tile += p->size3;
            } else if (!across) {
                float *run = from + begin[0];
                for (int64_t k = 0; k < p->size3; k++) pass(tile++, &run[k * p->step3], back);
            } else if (beside) {
                float *row = from + begin[0];
                for (int64_t k = 0; k < p->size3; k++, tile += LANES, row += p->step3)
                    FOR_LANES pass(&tile[g], &row[g], back);
            } else {
                for (int g = 0; g < lanes; g++)
                    for (int64_t k = 0; k < p->size3; k++)
                        pass(&tile[k * LANES + g], &from[begin[g] + k * p->step3], back);
                tile += p->size3 * LANES;
            }
        }
}

static void gather(const Piece *p, float *tile, const float *memory, const int64_t *begin,
                   int lanes, int64_t across) {
    float *from = (float *)memory; /* it is only read */
    if (across) carry(p, tile, from, begin, lanes, 1, 0);
    else carry(p, tile, from, begin, 1, 0, 0);
}

static void scatter(const Piece *p, float *tile, float *memory, const int64_t *begin, int lanes,
                    int64_t across) {
    if (across) carry(p, tile, memory, begin, lanes, 1, 1);
    else carry(p, tile, memory, begin, 1, 0, 1);
}

static void begins(const Piece *p, int64_t group, int lanes, int64_t *begin) {
    for (int g = 0; g < lanes; g++)
        begin[g] = (group + g) / p->count2 * p->stride1 + (group + g) % p->count2 * p->stride2;
}

/* Gather values and steps; lanes and rows that hold nothing become 0. */
static void fill(Tile *tile, const Batch *batch, const Piece *pieces, const double *params,
                 int64_t group, int lanes) {
    int64_t at = 0, whole = tile->rows * LANES, width = batch->across ? LANES : 1, begin[LANES];
    if (lanes < LANES && batch->across) memset(tile->z, 0, whole * sizeof(float));
    for (int64_t k = 0; k < batch->num_pieces; k++) {
        const Piece *p = &pieces[batch->piece + k];
        Metric metric = metric_of(params + p->param_row * NUM_PARAMS, p->count);
        int64_t n = p->size * width;
        float *z = tile->z + at, *step = tile->step + at;
        begins(p, group, lanes, begin);
        gather(p, z, p->x, begin, lanes, batch->across);
        int direct = !batch->across && p->size1 == 1 && p->size2 == 1 && p->step3 == 1;
        if (p->second && !direct) {
            if (lanes < LANES && batch->across) memset(step, 0, n * sizeof(float));
            gather(p, step, p->second, begin, lanes, batch->across);
            steps(step, step, n, metric);
        } else {
            steps(step, p->second ? p->second + begin[0] : NULL, n, metric);
        }
        at += n;
    }
    memset(tile->z + at, 0, (whole - at) * sizeof(float));
    memset(tile->step + at, 0, (whole - at) * sizeof(float));
}

static void empty(Tile *tile, const Batch *batch, const Piece *pieces, int64_t group, int lanes) {
    int64_t at = 0, width = batch->across ? LANES : 1, begin[LANES];
    for (int64_t k = 0; k < batch->num_pieces; k++) {
        const Piece *p = &pieces[batch->piece + k];
        begins(p, group, lanes, begin);
        scatter(p, tile->z + at, p->x, begin, lanes, batch->across);
        at += p->size * width;
    }
}

/* Return the step of all entries, -1 where they differ. */
static float even_step(const Batch *batch, const Piece *pieces, const double *params, float ridge) {
    const Piece *p = &pieces[batch->piece];
    float rate = (float)params[p->param_row * NUM_PARAMS + PARAM_RATE];
    for (int64_t k = 0; k < batch->num_pieces; k++)
        if (p[k].second || (float)params[p[k].param_row * NUM_PARAMS + PARAM_RATE] != rate) return -1;
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

/* Put back the groups that may not wake, and note which are zero. */
static inline void keep_zeros(Tile *tile, const Batch *batch, int64_t group, int lanes,
                              const int *closed) {
    int alive[LANES] = {0}, any = 0;
    for (int64_t i = 0; i < tile->rows; i++) {
        float *z = tile->z + i * LANES;
#pragma omp simd
        FOR_LANES {
            z[g] = closed[g] & (z[g] == z[g]) ? 0 : z[g];
            alive[g] |= z[g] != 0;
        }
    }
    FOR_LANES any |= alive[g];
    for (int g = 0; g < lanes; g++) {
        uint8_t *gate = &batch->gate[group + g];
        *gate = recorded(*gate, batch->across ? !alive[g] : !any);
    }
}

static void prox_batch(const Batch *batch, const Piece *pieces, const double *params, float *room) {
    const double *c = coefficients(params + pieces[batch->piece].param_row * NUM_PARAMS, 0);
    float l1 = (float)c[0], norm = (float)c[1], ridge = (float)c[2];
    int64_t rows = batch->across ? batch->size : (batch->size + LANES - 1) / LANES;
    Tile tile = {.z = room, .step = room + rows * LANES, .rows = rows, .across = batch->across};
    float even = even_step(batch, pieces, params, ridge);
    for (int64_t group = batch->begin; group < batch->end; group += batch->across ? LANES : 1) {
        int64_t left = batch->end - group;
        int lanes = !batch->across ? 1 : left < LANES ? (int)left : LANES;
        int closed[LANES];
        closed_lanes(batch, group, lanes, closed);
        fill(&tile, batch, pieces, params, group, lanes);
        if (l1 > 0) soften(tile.z, tile.step, rows * LANES, l1);
        if (ridge > 0) add_ridge(tile.z, tile.step, rows * LANES, ridge);
        find_scale(&tile);
        if (norm > 0) shrink(&tile, norm, even);
        if (batch->gate) keep_zeros(&tile, batch, group, lanes, closed);
        empty(&tile, batch, pieces, group, lanes);
    }
}

/* floats: room that a thread needs. Return 1 without memory, and nothing is written then. */
int64_t regkit_groups(const Batch *batches, int64_t num_batches, const Piece *pieces,
                      const double *params, int64_t floats, int64_t threads) {
    size_t one = (size_t)(floats + LANES - floats % LANES) * sizeof(float);
    char *room = aligned_alloc(ALIGNMENT, one * (size_t)threads);
    if (room == NULL) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        float *own = (float *)(room + one * (size_t)omp_get_thread_num());
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < num_batches; i++) prox_batch(&batches[i], pieces, params, own);
    }
    free(room);
    return 0;
}
