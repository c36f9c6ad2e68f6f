/* The loops of slic.py: the nearest centre of each pixel, the centres' means, and the joining of small pieces.

Same results as `_cluster` and `_Pieces` there, bit for bit: distances are single precision in the same order of
operations; sums are of multiples of 2^-16 below 2^8, which double precision adds up without rounding.

Pixels lie in blocks of ROWS x COLUMNS, one colour channel after the other. For each block it is first told which centres
can be the nearest of any of its pixels; most blocks have one. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 8, COLUMNS = 16, PIXELS = ROWS * COLUMNS, MIXED = -1 };

/* Of a sum of five squares in single precision, whose terms are rounded too: some 8 roundings of 2^-24 each. */
static const double ROUNDING = 1.0 / (1 << 20);

typedef struct {
    int64_t top, left, rows, columns; /* of the image, without what the last blocks have beyond it */
    float colour[3][PIXELS];
    float low[3], high[3];
    double sums[3];
    int32_t nearest[PIXELS];
    int32_t whole; /* the centre of all its pixels, or MIXED */
} Block;

typedef struct {
    double row, column;
    float colour[3];
    int64_t top, bottom, left, right; /* pixels that it is compared with, ends included */
} Centre;

typedef struct {
    int32_t centre;
    double from_middle; /* of a block: its squared distance */
} Candidate;

static void fill_block(Block *block, const float *lab, int64_t height, int64_t width, int64_t top, int64_t left) {
    block->top = top;
    block->left = left;
    block->rows = height - top < ROWS ? height - top : ROWS;
    block->columns = width - left < COLUMNS ? width - left : COLUMNS;
    for (int c = 0; c < 3; c++) {
        float low = INFINITY, high = -INFINITY;
        double sum = 0;
        for (int64_t r = 0; r < ROWS; r++)
            for (int64_t q = 0; q < COLUMNS; q++) {
                int inside = r < block->rows && q < block->columns;
                float value = inside ? lab[((top + r) * width + left + q) * 3 + c] : 0;
                block->colour[c][r * COLUMNS + q] = value;
                if (!inside)
                    continue;
                low = value < low ? value : low;
                high = value > high ? value : high;
                sum += value;
            }
        block->low[c] = low;
        block->high[c] = high;
        block->sums[c] = sum;
    }
    memset(block->nearest, 0, sizeof block->nearest);
    block->whole = 0;
}

static int covers(const Centre *centre, const Block *block) {
    return centre->top <= block->top && centre->bottom >= block->top + block->rows - 1 &&
           centre->left <= block->left && centre->right >= block->left + block->columns - 1;
}

static double square(double value) { return value * value; }

/* Smallest value of |p - k|^2 - |p - b|^2 over the block's box, a linear function of p; and, by `far`, a bound on what
both can be, for rounding. `flat`: colours do not count. */
static double least_lead(const Centre *k, const Centre *b, const Block *block, double weight, int flat, double *far) {
    double ends[5][4] = {
        {k->row, b->row, (double)block->top, (double)(block->top + block->rows - 1)},
        {k->column, b->column, (double)block->left, (double)(block->left + block->columns - 1)},
    };
    double lead = 0;
    int dimensions = flat ? 2 : 5;
    *far = 0;
    for (int c = 0; c < 3; c++) {
        ends[2 + c][0] = k->colour[c];
        ends[2 + c][1] = b->colour[c];
        ends[2 + c][2] = block->low[c];
        ends[2 + c][3] = block->high[c];
    }
    for (int d = 0; d < dimensions; d++) {
        double scale = d < 2 ? weight : 1, at_k = ends[d][0], at_b = ends[d][1], low = ends[d][2], high = ends[d][3];
        double at_low = (at_b - at_k) * (2 * low - at_k - at_b), at_high = (at_b - at_k) * (2 * high - at_k - at_b);
        lead += scale * (at_low < at_high ? at_low : at_high);
        *far += scale * (square(low - at_k) + square(high - at_k) + square(low - at_b) + square(high - at_b));
    }
    return lead;
}

/* Half the diagonal of the block's box in places and colours. */
static double radius(const Block *block, double weight, int flat) {
    double sum = weight * (square((block->rows - 1) / 2.0) + square((block->columns - 1) / 2.0));
    for (int c = 0; c < 3 && !flat; c++)
        sum += square((block->high[c] - block->low[c]) / 2.0);
    return sqrt(sum);
}

/* Squared distance of a centre from the middle of the block's box. */
static double from_middle(const Centre *centre, const Block *block, double weight, int flat) {
    double sum = weight * (square(block->top + (block->rows - 1) / 2.0 - centre->row) +
                           square(block->left + (block->columns - 1) / 2.0 - centre->column));
    for (int c = 0; c < 3 && !flat; c++)
        sum += square((block->low[c] + block->high[c]) / 2.0 - centre->colour[c]);
    return sum;
}

/* Those of `count` centres that can be the nearest of a pixel of the block, in order; how many. Out are those that the
best centre for the middle, which has all pixels of the block in its window, rules out: by a triangle's inequality,
which is quick, or by `least_lead`. */
static int64_t candidates(const Block *block, const Centre *centres, const int32_t *near, int64_t count, double weight,
                          int flat, Candidate *found) {
    int64_t number = 0, kept = 0;
    int32_t best = MIXED;
    double least = INFINITY;
    for (int64_t i = 0; i < count; i++) {
        const Centre *centre = &centres[near[i]];
        if (centre->left > block->left + block->columns - 1 || centre->right < block->left)
            continue;
        double distance = from_middle(centre, block, weight, flat);
        found[number].centre = near[i];
        found[number++].from_middle = distance;
        if (distance < least && covers(centre, block)) {
            least = distance;
            best = near[i];
        }
    }
    if (best == MIXED)
        return number;
    double limit = square(sqrt(least) + 2 * radius(block, weight, flat)) * (1 + 1e-3);
    for (int64_t i = 0; i < number; i++) {
        if (found[i].from_middle > limit)
            continue;
        double far, lead = least_lead(&centres[found[i].centre], &centres[best], block, weight, flat, &far);
        if (found[i].centre == best || lead <= ROUNDING * far)
            found[kept++] = found[i];
    }
    return kept;
}

static void assign_pixels(Block *block, const Centre *centres, const Candidate *found, int64_t count, double weight,
                          int flat) {
    float least[PIXELS];
    int32_t nearest[PIXELS];
    memcpy(nearest, block->nearest, sizeof nearest);
    for (int i = 0; i < PIXELS; i++)
        least[i] = INFINITY;
    for (int64_t i = 0; i < count; i++) {
        const int32_t own = found[i].centre;
        const Centre centre = centres[own];
        float columns[COLUMNS];
        for (int64_t q = 0; q < COLUMNS; q++) {
            int64_t x = block->left + q;
            columns[q] = x < centre.left || x > centre.right ? INFINITY : (float)(weight * square(x - centre.column));
        }
        for (int64_t r = 0; r < block->rows; r++) {
            int64_t y = block->top + r, at = r * COLUMNS;
            if (y < centre.top || y > centre.bottom)
                continue;
            const float row = (float)(weight * square(y - centre.row));
            const float *l = &block->colour[0][at], *a = &block->colour[1][at], *b = &block->colour[2][at];
            for (int q = 0; q < COLUMNS; q++) {
                float dl = l[q] - centre.colour[0], da = a[q] - centre.colour[1], db = b[q] - centre.colour[2];
                float colour = flat ? 0 : dl * dl + da * da + db * db;
                float distance = colour + row + columns[q];
                int nearer = distance < least[at + q];
                least[at + q] = nearer ? distance : least[at + q];
                nearest[at + q] = nearer ? own : nearest[at + q];
            }
        }
    }
    memcpy(block->nearest, nearest, sizeof nearest);
}

/* Sums over the pixels of each centre: number, rows, columns, three colours. */
static void add_block(const Block *block, double *sums) {
    if (block->whole != MIXED) {
        double *own = sums + 6 * block->whole, n = (double)(block->rows * block->columns);
        own[0] += n;
        own[1] += n * (block->top + (block->rows - 1) / 2.0);
        own[2] += n * (block->left + (block->columns - 1) / 2.0);
        for (int c = 0; c < 3; c++)
            own[3 + c] += block->sums[c];
        return;
    }
    for (int64_t r = 0; r < block->rows; r++)
        for (int64_t q = 0; q < block->columns; q++) {
            int64_t at = r * COLUMNS + q;
            double *own = sums + 6 * block->nearest[at];
            own[0] += 1;
            own[1] += block->top + r;
            own[2] += block->left + q;
            for (int c = 0; c < 3; c++)
                own[3 + c] += block->colour[c][at];
        }
}

/* The pixels that each centre is compared with. */
static void set_windows(Centre *centres, int64_t count, int64_t reach_rows, int64_t reach_columns) {
    for (int64_t k = 0; k < count; k++) {
        centres[k].top = (int64_t)floor(centres[k].row - reach_rows);
        centres[k].bottom = (int64_t)floor(centres[k].row + reach_rows);
        centres[k].left = (int64_t)floor(centres[k].column - reach_columns);
        centres[k].right = (int64_t)floor(centres[k].column + reach_columns);
    }
}

/* The nearest centre of each pixel, for blocks in reading order. `near`, `found`: room for all centres. */
static void assign(Block *blocks, int64_t number, const Centre *centres, int64_t count, double weight, int flat,
                   int32_t *near, Candidate *found) {
    int64_t beside = 0;
    for (int64_t i = 0; i < number; i++) {
        Block *block = &blocks[i];
        if (block->left == 0) { /* a new row of blocks */
            beside = 0;
            for (int64_t k = 0; k < count; k++)
                if (centres[k].top <= block->top + block->rows - 1 && centres[k].bottom >= block->top)
                    near[beside++] = (int32_t)k;
        }
        int64_t kept = candidates(block, centres, near, beside, weight, flat, found);
        if (kept == 1 && covers(&centres[found[0].centre], block)) {
            block->whole = found[0].centre;
            for (int p = 0; p < PIXELS; p++)
                block->nearest[p] = found[0].centre;
        } else {
            block->whole = MIXED;
            assign_pixels(block, centres, found, kept, weight, flat);
        }
    }
}

/* Centres become the means of their pixels; one without any stays where it is. `sums`: room for 6 a centre. */
static void move_centres(const Block *blocks, int64_t number, Centre *centres, int64_t count, double *sums) {
    memset(sums, 0, (size_t)count * 6 * sizeof *sums);
    for (int64_t i = 0; i < number; i++)
        add_block(&blocks[i], sums);
    for (int64_t k = 0; k < count; k++) {
        const double *own = sums + 6 * k;
        if (own[0] == 0)
            continue;
        centres[k].row = own[1] / own[0];
        centres[k].column = own[2] / own[0];
        for (int c = 0; c < 3; c++)
            centres[k].colour[c] = (float)(own[3 + c] / own[0]);
    }
}

/* k-means of SLIC. `lab`: H x W x 3, multiples of 2^-16 below 2^8. `places`: K x 2, rows and columns of the seeds.
`weight`: of a squared distance in pixels against one of colours. `labels`: H x W, written. 0; 1 without memory. */
int tandem_slic_cluster(const float *lab, int64_t height, int64_t width, const double *places, int64_t count,
                        int64_t reach_rows, int64_t reach_columns, double weight, int64_t iterations, int32_t *labels) {
    int64_t across = (width + COLUMNS - 1) / COLUMNS, number = (height + ROWS - 1) / ROWS * across;
    Block *blocks = malloc((size_t)number * sizeof *blocks);
    Centre *centres = calloc((size_t)count, sizeof *centres);
    double *sums = malloc((size_t)count * 6 * sizeof *sums);
    int32_t *near = malloc((size_t)count * sizeof *near);
    Candidate *found = malloc((size_t)count * sizeof *found);
    int failed = !blocks || !centres || !sums || !near || !found;
    if (!failed) {
        for (int64_t k = 0; k < count; k++) {
            centres[k].row = places[2 * k];
            centres[k].column = places[2 * k + 1];
        }
        for (int64_t i = 0; i < number; i++)
            fill_block(&blocks[i], lab, height, width, i / across * ROWS, i % across * COLUMNS);
        for (int64_t turn = 0; turn < iterations; turn++) {
            if (turn > 0)
                move_centres(blocks, number, centres, count, sums);
            set_windows(centres, count, reach_rows, reach_columns);
            assign(blocks, number, centres, count, weight, turn == 0, near, found);
        }
        for (int64_t i = 0; i < number; i++)
            for (int64_t r = 0; r < blocks[i].rows; r++)
                memcpy(labels + (blocks[i].top + r) * width + blocks[i].left, blocks[i].nearest + r * COLUMNS,
                       (size_t)blocks[i].columns * sizeof *labels);
    }
    free(blocks);
    free(centres);
    free(sums);
    free(near);
    free(found);
    return failed;
}

/* Pieces of equal labels in reading order, each grown breadth first to at most `largest` pixels; one of fewer than
`smallest` gets the id that its growth met last. `ids`: H x W, written. How many ids; -1 without memory. */
int64_t tandem_slic_join(const int32_t *labels, int64_t height, int64_t width, int64_t smallest, int64_t largest,
                         int32_t *ids) {
    int64_t pixels = height * width, following = 0;
    int64_t *piece = malloc((size_t)(pixels < largest ? pixels : largest) * sizeof *piece);
    if (!piece)
        return -1;
    for (int64_t i = 0; i < pixels; i++)
        ids[i] = -1;
    for (int64_t first = 0; first < pixels; first++) {
        if (ids[first] >= 0)
            continue;
        int64_t size = 1;
        int32_t met = 0;
        piece[0] = first;
        ids[first] = (int32_t)following;
        for (int64_t next = 0; next < size && size < largest; next++) {
            int64_t at = piece[next], x = at % width;
            const int64_t around[4] = {x + 1 < width ? at + 1 : -1, x > 0 ? at - 1 : -1,
                                       at + width < pixels ? at + width : -1, at - width};
            for (int n = 0; n < 4; n++) {
                int64_t other = around[n];
                if (other < 0)
                    continue;
                if (ids[other] >= 0) {
                    if (ids[other] != following)
                        met = ids[other];
                } else if (labels[other] == labels[first] && size < largest) {
                    ids[other] = (int32_t)following;
                    piece[size++] = other;
                }
            }
        }
        if (size >= smallest) {
            following++;
            continue;
        }
        for (int64_t i = 0; i < size; i++)
            ids[piece[i]] = met;
    }
    free(piece);
    return following;
}
