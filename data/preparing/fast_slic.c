/* The loops of fast_slic.py: colours in CIELAB, and k-means of places and colours. Integers throughout, so that
fast_slic_numpy.py gives the same superpixels.

Letters: H, W image; K centres. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { GREYS = 256, ROOT_BITS = 15, NONE_YET = UINT16_MAX };

/* Of a centre; as the caller lays them out. */
enum { ROW, COLUMN, COLOUR, FIELDS = 5 };

/* `rgb`: H x W x 3. `linear`: 3 x 3 x GREYS, what each grey level of each channel adds to X, Y, Z. `root`: cube roots by
X, Y, Z without their last `fine` bits. `scale`: bits of L, a, b in 2^-ROOT_BITS that are dropped.
`planes`: 3 x H x W, written: L, a + 128, b + 128. */
void tandem_fast_slic_lab(const uint8_t *rgb, int64_t pixels, const int32_t *linear, const uint16_t *root, int64_t fine,
                          int64_t scale, uint16_t *planes) {
    uint16_t *luminance = planes, *a = planes + pixels, *b = planes + 2 * pixels;
    const int32_t half = 1 << (scale - 1), lightless = 16 << ROOT_BITS, middle = 128 << ROOT_BITS;
    for (int64_t i = 0; i < pixels; i++) {
        const int32_t red = rgb[3 * i], green = GREYS + rgb[3 * i + 1], blue = 2 * GREYS + rgb[3 * i + 2];
        const int32_t *to_x = linear, *to_y = linear + 3 * GREYS, *to_z = linear + 6 * GREYS;
        const int32_t x = root[(to_x[red] + to_x[green] + to_x[blue]) >> fine];
        const int32_t y = root[(to_y[red] + to_y[green] + to_y[blue]) >> fine];
        const int32_t z = root[(to_z[red] + to_z[green] + to_z[blue]) >> fine];
        luminance[i] = (uint16_t)((116 * y - lightless + half) >> scale);
        a[i] = (uint16_t)((500 * (x - y) + middle + half) >> scale);
        b[i] = (uint16_t)((200 * (y - z) + middle + half) >> scale);
    }
}

static uint16_t apart(uint16_t one, uint16_t other) { return one > other ? one - other : other - one; }

typedef struct {
    uint16_t *restrict least;   /* W: distance of the nearest centre so far */
    uint16_t *restrict nearest; /* W: which centre that is */
} Row;

/* Compare the pixels `left` to `right` - 1 of a row with one centre. `aside`: W distances in columns, from `left` on.
`down`: the distance in rows. */
static void compare(Row row, const uint16_t *luminance, const uint16_t *a, const uint16_t *b, int64_t left,
                    int64_t right, const int32_t *centre, uint16_t number, uint16_t down, const uint16_t *aside) {
    uint16_t *restrict least = row.least + left, *restrict nearest = row.nearest + left;
    const uint16_t *restrict l = luminance + left, *restrict p = a + left, *restrict q = b + left;
    const uint16_t own_l = (uint16_t)centre[COLOUR], own_p = (uint16_t)centre[COLOUR + 1];
    const uint16_t own_q = (uint16_t)centre[COLOUR + 2];
    for (int64_t i = 0; i < right - left; i++) {
        const uint16_t colour = (uint16_t)(apart(l[i], own_l) + apart(p[i], own_p) + apart(q[i], own_q));
        const uint16_t distance = (uint16_t)(colour + down + aside[i]);
        const int nearer = distance < least[i];
        least[i] = nearer ? distance : least[i];
        nearest[i] = nearer ? number : nearest[i];
    }
}

/* Add a row's pixels to the sums of their centres: number, rows, columns, three colours. */
static void add_row(const uint16_t *nearest, const uint16_t *planes, int64_t pixels, int64_t width, int64_t y,
                    int64_t *sums) {
    for (int64_t first = 0, end; first < width; first = end) {
        int64_t colour[3] = {0, 0, 0};
        for (end = first; end < width && nearest[end] == nearest[first]; end++)
            for (int c = 0; c < 3; c++)
                colour[c] += planes[c * pixels + y * width + end];
        int64_t *own = sums + (1 + FIELDS) * nearest[first], count = end - first;
        own[0] += count;
        own[1 + ROW] += count * y;
        own[1 + COLUMN] += count * (first + end - 1) / 2;
        for (int c = 0; c < 3; c++)
            own[1 + COLOUR + c] += colour[c];
    }
}

/* Centres become the rounded means of their pixels; one without any stays where it is. */
static void move_centres(int32_t *centres, int64_t count, const int64_t *sums) {
    for (int64_t k = 0; k < count; k++) {
        const int64_t *own = sums + (1 + FIELDS) * k;
        for (int f = 0; f < FIELDS && own[0] > 0; f++)
            centres[FIELDS * k + f] = (int32_t)((own[1 + f] + own[0] / 2) / own[0]);
    }
}

/* `planes`: 3 x H x W. `centres`: K x FIELDS, the seeds; overwritten. `far`: 2 reach + 1 distances, from `reach` to the
left or above to as many to the right or below. `home_row`, `home_column`: H and W, whose sum is the seed in whose cell a
pixel lies, which it keeps where no centre is within reach. All iterations but the last look at every `stride`-th row.
`labels`: H x W, written. 0; 1 without memory. */
int tandem_fast_slic_cluster(const uint16_t *planes, int64_t height, int64_t width, int32_t *centres, int64_t count,
                             int64_t reach, const uint16_t *far, const int32_t *home_row, const int32_t *home_column,
                             int64_t iterations, int64_t stride, int32_t *labels) {
    const int64_t pixels = height * width;
    uint16_t *least = malloc((size_t)width * sizeof *least), *nearest = malloc((size_t)width * sizeof *nearest);
    int64_t *sums = malloc((size_t)count * (1 + FIELDS) * sizeof *sums);
    const int failed = !least || !nearest || !sums;
    const Row row = {least, nearest};
    for (int64_t turn = 0; turn < iterations && !failed; turn++) {
        const int last = turn == iterations - 1;
        memset(sums, 0, (size_t)count * (1 + FIELDS) * sizeof *sums);
        for (int64_t y = last ? 0 : turn % stride; y < height; y += last ? 1 : stride) {
            for (int64_t x = 0; x < width; x++) {
                least[x] = NONE_YET;
                nearest[x] = (uint16_t)(home_row[y] + home_column[x]);
            }
            for (int64_t k = 0; k < count; k++) {
                const int32_t *centre = centres + FIELDS * k;
                const int64_t down = y - centre[ROW];
                if (down < -reach || down > reach)
                    continue;
                const int64_t first = centre[COLUMN] - reach, left = first > 0 ? first : 0;
                const int64_t end = centre[COLUMN] + reach + 1, right = end < width ? end : width;
                const uint16_t *at = planes + y * width;
                compare(row, at, at + pixels, at + 2 * pixels, left, right, centre, (uint16_t)k, far[down + reach],
                        far + (left - first));
            }
            if (!last)
                add_row(nearest, planes, pixels, width, y, sums);
            for (int64_t x = 0; x < width && last; x++)
                labels[y * width + x] = nearest[x];
        }
        if (!last)
            move_centres(centres, count, sums);
    }
    free(least);
    free(nearest);
    free(sums);
    return failed;
}
