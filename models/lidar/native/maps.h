// Neighbour maps by merging sorted keys, see models/lidar/neighbors.py for keys, offsets and the order of pairs.
//
// Keys ascend, so the keys that lie at one and the same step from each of them ascend too: one pass over both lists
// finds all pairs of a column of offsets, where a search would begin anew for each voxel. Pieces of the passes are
// independent of each other and their results are integers, so the lists are the same at any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "inline.h"
#include "pool.h"

namespace tandem {

constexpr int AXIS_BITS = 17;
constexpr int64_t AXIS_MASK = (int64_t(1) << AXIS_BITS) - 1;
constexpr int64_t BIAS = int64_t(1) << (AXIS_BITS - 1);

inline int64_t x_of(int64_t key) { return ((key >> (2 * AXIS_BITS)) & AXIS_MASK) - BIAS; }
inline int64_t y_of(int64_t key) { return ((key >> AXIS_BITS) & AXIS_MASK) - BIAS; }
inline int64_t z_of(int64_t key) { return (key & AXIS_MASK) - BIAS; }
inline int64_t floor_div(int64_t a, int64_t b) {  // b > 0; divisions are slow, and strides are 1 or 2
    return b == 1 ? a : b == 2 ? a >> 1 : a / b - (a % b < 0);
}

constexpr int64_t NONE = std::numeric_limits<int64_t>::max();
constexpr int SENTINELS = 8;  // of NONE, after the last key

// The first place from `at` on whose key is not below `lowest`, in a list that ends in SENTINELS.
inline int64_t advance(const int64_t* keys, int64_t at, int64_t lowest) {
#if defined(__AVX512F__)
    for (;;) {
        const unsigned below = _mm512_cmplt_epi64_mask(_mm512_loadu_si512(keys + at), _mm512_set1_epi64(lowest));
        at += __builtin_popcount(below);
        if (below != 0xff) return at;
    }
#else
    // Mostly there is little to go; without jumps, which could not be foreseen.
    for (int step = 0; step < 3; ++step) at += keys[at] < lowest;
    while (keys[at] < lowest) ++at;
    return at;
#endif
}

// ---- stride 1, output voxels = input voxels

// Sizes of arrays; models/lidar/native/maps.py refuses kernels beyond them.
constexpr int MOST_COLUMNS = 128, MOST_LISTS = 2048;

// The columns (x, y) of offsets that come after the centre or hold it; the others mirror them.
struct Columns {
    int size, reach, num;
    explicit Columns(int size_) : size(size_), reach(size_ / 2), num((size_ * size_ + 1) / 2) {}
    int x(int column) const { return (column + reach) / size; }
    int y(int column) const { return (column + reach) % size - reach; }
    int first_z(int column) const { return column == 0 ? 1 : -reach; }  // in the own column: what lies above it
    // Place of a column's first list among those of all columns.
    int first(int column) const { return column == 0 ? 0 : reach + (column - 1) * size; }
    int lists() const { return reach + (num - 1) * size; }
    int offset(int x, int y, int z) const { return (x + reach) + size * ((y + reach) + size * (z + reach)); }
};

// Pairs of the voxels [begin, end) with their neighbours. List l, with room for end - begin rows, begins at voxels +
// l * stride and neighbours + l * stride; found[l] is how many it holds then. `keys` end in SENTINELS.
//
// SIZE is the kernel's, or 0: then columns.size is. All columns are passed over at once, as the steps of one wait for
// memory and for its last step, and not for those of the others.
template <int SIZE>
inline void merge_columns(const int64_t* keys, int64_t num, int64_t begin, int64_t end, const Columns& columns,
                          int64_t stride, int32_t* voxels, int32_t* neighbours, int64_t* found) {
    const Columns c = SIZE ? Columns(SIZE) : columns;
    int64_t shift[MOST_COLUMNS], at[MOST_COLUMNS];
    for (int column = 0; column < c.num; ++column) {
        shift[column] = ((int64_t(c.x(column)) << AXIS_BITS) + c.y(column)) * (AXIS_MASK + 1) +
                        (column == 0 ? 1 : -c.reach);
        at[column] = std::lower_bound(keys, keys + num, keys[begin] + shift[column]) - keys;
    }
    int64_t count[SIZE ? SIZE * SIZE * SIZE : MOST_LISTS] = {};
    for (int64_t row = begin; row < end; ++row) {
        for (int column = 0, list = 0; column < c.num; ++column) {
            const int64_t lowest = keys[row] + shift[column];
            at[column] = advance(keys, at[column], lowest);
            int64_t place = at[column];
            const int lists = column == 0 ? c.reach : c.size;
            for (int l = 0; l < lists; ++l, ++list) {
                // Written whether it is one or not, and overwritten if not: a jump here could not be foreseen.
                voxels[list * stride + count[list]] = int32_t(row);
                neighbours[list * stride + count[list]] = int32_t(place);
                const int64_t hit = keys[place] == lowest + l;
                count[list] += hit;
                place += hit;
            }
        }
    }
    std::copy(count, count + c.lists(), found);
}

// ---- strided, with a kernel, stride and padding of its own along each axis

// What a piece of the work is: output cells of which (sample, x) are in [begin, end), as whole numbers
// sample << AXIS_BITS | x + BIAS, and the input voxels [first, last) that they read.
struct Slab {
    int64_t begin, end, first, last;
};

struct Strided {
    int32_t kernel[3], stride[3], padding[3];
    int32_t low[3], high[3];  // output cells are those in [low, high)
    int offsets() const { return kernel[0] * kernel[1] * kernel[2]; }
    int columns() const { return kernel[0] * kernel[1]; }
    bool halves() const {
        return kernel[0] == 2 && kernel[1] == 2 && kernel[2] == 2 && stride[0] == 2 && stride[1] == 2 && stride[2] == 2;
    }
    // Cells along an axis that may read one and the same.
    int64_t most(int axis) const { return (kernel[axis] - 1) / stride[axis] + 1; }
    // Pairs that a slab may have.
    int64_t room(const Slab& slab) const { return (slab.last - slab.first) * most(0) * most(1) * most(2); }
};

inline int64_t slab_of(int64_t sample, int64_t x) { return (sample << AXIS_BITS) | (x + BIAS); }

// The output cells along one axis that read a cell: the lowest, how many (0 or less: none), and under which offset the
// lowest reads it.
struct Span {
    int64_t low, num, offset;
    Span(int64_t place, const Strided& s, int axis, int64_t limit_low, int64_t limit_high) {
        const int64_t reach = place + s.padding[axis], stride = s.stride[axis];
        // cell * stride + offset = reach with 0 <= offset < kernel.
        low = std::max(floor_div(reach - s.kernel[axis] + stride, stride), limit_low);
        num = std::min(floor_div(reach, stride) + 1, limit_high) - low;
        offset = reach - low * stride;
    }
};

// A voxel as the output cells of one (x, y) column see it: the keys of the lowest that reads it, how many do, and under
// which offset along z the lowest.
struct Seen {
    int64_t low;
    int32_t row;
    int16_t num, offset;
};

// Where the work is cut: slab t begins at the first cell that reads voxel t * num / pieces.
inline void cut(const int64_t* keys, int64_t num, const Strided& s, int64_t pieces, Slab* slabs) {
    const int64_t stride = s.stride[0];
    // The first voxel of a sample with x >= place.
    const auto row_of = [&](int64_t sample, int64_t place) {
        const int64_t x = std::max<int64_t>(place + BIAS, 0);
        return std::lower_bound(keys, keys + num, (sample << (3 * AXIS_BITS)) + (x << (2 * AXIS_BITS))) - keys;
    };
    for (int64_t t = 0; t < pieces; ++t) {
        Slab& slab = slabs[t];
        slab = {0, std::numeric_limits<int64_t>::max(), 0, num};
        if (t == 0) continue;
        const int64_t key = keys[t * num / pieces], sample = key >> (3 * AXIS_BITS);
        const int64_t cell =
            std::max(floor_div(x_of(key) + s.padding[0] - s.kernel[0] + stride, stride), 1 - BIAS);
        slab.begin = std::max(slab_of(sample, cell), slabs[t - 1].begin);
        slab.first = row_of(sample, cell * stride - s.padding[0]);
        slabs[t - 1].end = slab.begin;
        // A slab without cells may begin behind that.
        slabs[t - 1].last = std::max(row_of(sample, (cell - 1) * stride - s.padding[0] + s.kernel[0]), slabs[t - 1].first);
    }
}

// Two ascending lists that end in NONE as one without repetitions, that ends in NONE; returns how many before that.
inline int64_t merged(const int64_t* a, const int64_t* b, int64_t* to) {
    int64_t num = 0;
    for (;;) {
        const int64_t left = *a, right = *b;
        to[num] = std::min(left, right);
        if (to[num] == NONE) return num;
        ++num;
        a += left <= right;
        b += right <= left;
    }
}

// What a slab gives: output cells, ascending, and pairs, offset by offset; output rows counted from the slab's first.
struct Found {
    int64_t *keys, *counts;
    int32_t *in_rows, *out_rows;
    int64_t cells = 0, pairs = 0;
};

// The voxels that one column (x, y) of offsets reads ascend as their output cells do: `lengths` of them, each column's
// from seen + column * room on.
TANDEM_INLINE void list_seen(const int64_t* keys, const Strided s, const Slab& slab, int64_t room, Seen* seen,
                      int64_t* lengths) {
    std::fill(lengths, lengths + s.columns(), 0);
    const int64_t most_x = s.most(0), most_y = s.most(1);
    for (int64_t row = slab.first; row < slab.last; ++row) {
        const int64_t key = keys[row], sample = key >> (3 * AXIS_BITS), origin = slab_of(sample, 0);
        const Span x(x_of(key), s, 0, std::max<int64_t>(slab.begin - origin, s.low[0]),
                     std::min<int64_t>(slab.end - origin, s.high[0]));
        const Span y(y_of(key), s, 1, s.low[1], s.high[1]), z(z_of(key), s, 2, s.low[2], s.high[2]);
        // No jumps, which could not be foreseen: what reads nothing is written as well, and overwritten.
        for (int64_t b = 0; b < most_y; ++b)
            for (int64_t a = 0; a < most_x; ++a) {
                const bool any = (a < x.num) & (b < y.num) & (z.num > 0);
                const int64_t column =
                    any ? x.offset - a * s.stride[0] + s.kernel[0] * (y.offset - b * s.stride[1]) : 0;
                const int64_t low =
                    (((slab_of(sample, x.low + a) << AXIS_BITS) + y.low + b + BIAS) << AXIS_BITS) + z.low + BIAS;
                seen[column * room + lengths[column]] = {low, int32_t(row), int16_t(z.num), int16_t(z.offset)};
                lengths[column] += any;
            }
    }
}

// The output cells of all columns, ascending, without repetitions, then SENTINELS. Returns where they are, in one of two
// buffers, and how many.
TANDEM_INLINE std::pair<const int64_t*, int64_t> list_cells(const Strided s, const Seen* seen, int64_t room,
                                                     const int64_t* lengths, int64_t* from, int64_t* to) {
    int64_t begins[MOST_COLUMNS], num = 0;
    for (int column = 0; column < s.columns(); ++column) {
        begins[column] = num;
        int64_t last = -1;
        for (const Seen *voxel = seen + column * room, *end = voxel + lengths[column]; voxel < end; ++voxel)
            for (int64_t n = 0; n < s.most(2); ++n) {  // if there are fewer, the last again and again
                const int64_t cell = voxel->low + std::min<int64_t>(n, voxel->num - 1);
                from[num] = cell;
                num += cell > last;
                last = std::max(last, cell);
            }
        from[num++] = NONE;
    }
    int64_t cells = num - 1;  // where there is one list alone
    for (int lists = s.columns(); lists > 1; lists = (lists + 1) / 2, std::swap(from, to)) {
        static const int64_t nothing = NONE;
        int64_t end = 0;
        for (int i = 0; i < lists; i += 2) {
            cells = merged(from + begins[i], i + 1 < lists ? from + begins[i + 1] : &nothing, to + end);
            begins[i / 2] = end;
            end += cells + 1;
        }
    }
    std::fill(from + cells, from + cells + SENTINELS, NONE);
    return {from, cells};
}

TANDEM_INLINE void list_pairs(const Strided s, const Seen* seen, int64_t room, const int64_t* lengths, const int64_t* cells,
                       Found& found) {
    const int columns = s.columns(), offsets = s.offsets();
    std::fill(found.counts, found.counts + offsets, 0);
    for (int column = 0; column < columns; ++column)
        for (const Seen *voxel = seen + column * room, *end = voxel + lengths[column]; voxel < end; ++voxel)
            for (int64_t n = 0; n < s.most(2); ++n) {
                const int64_t offset = std::max<int64_t>(voxel->offset - n * s.stride[2], 0);
                found.counts[column + columns * offset] += n < voxel->num;
            }
    int64_t ends[MOST_LISTS];
    for (int k = 0; k < offsets; ++k) ends[k] = found.pairs, found.pairs += found.counts[k];
    for (int column = 0; column < columns; ++column) {
        int64_t at = 0;
        for (const Seen *voxel = seen + column * room, *last = voxel + lengths[column]; voxel < last; ++voxel) {
            at = advance(cells, at, voxel->low);
            for (int n = 0; n < voxel->num; ++n) {
                int64_t& end = ends[column + columns * (voxel->offset - n * s.stride[2])];
                found.in_rows[end] = voxel->row;
                found.out_rows[end++] = int32_t(at + n);  // all cells that read it exist, one after another
            }
        }
    }
}

TANDEM_INLINE void find_in(const int64_t* keys, const Strided s, const Slab& slab, Found& found) {
    struct SeenTag;
    struct CellsTag;
    const int64_t room = slab.last - slab.first + 1, half = s.room(slab) + s.columns() + SENTINELS;
    Seen* const seen = scratch<SeenTag, Seen>(size_t(s.columns() * room));
    int64_t* const cells = scratch<CellsTag, int64_t>(size_t(2 * half));
    int64_t lengths[MOST_COLUMNS];
    list_seen(keys, s, slab, room, seen, lengths);
    const auto [listed, num] = list_cells(s, seen, room, lengths, cells, cells + half);
    list_pairs(s, seen, room, lengths, listed, found);
    std::copy(listed, listed + num, found.keys);
    found.cells = num;
}

// The same, and for 2 x 2 x 2 with numbers that are known when this is compiled.
inline void find_in_slab(const int64_t* keys, const Strided& s, const Slab& slab, Found& found) {
    if (!s.halves()) return find_in(keys, s, slab, found);
    Strided halves = s;
    for (int axis = 0; axis < 3; ++axis) halves.kernel[axis] = halves.stride[axis] = 2;
    find_in(keys, halves, slab, found);
}

}  // namespace tandem

extern "C" {

// Pairs of each list and piece of `chunk` voxels, [lists, pieces] in counts; the pairs themselves in found, [lists, 2,
// num], each piece's from its first voxel on.
void tandem_find_neighbours(const int64_t* keys, int64_t num, int size, int64_t chunk, int32_t* found, int64_t* counts,
                            int threads) {
    using namespace tandem;
    struct KeysTag;
    int64_t* const padded = scratch<KeysTag, int64_t>(size_t(num + SENTINELS));
    std::fill(std::copy(keys, keys + num, padded), padded + num + SENTINELS, NONE);
    const Columns columns(size);
    const int64_t pieces = (num + chunk - 1) / chunk;
    const auto merge = size == 3 ? merge_columns<3> : merge_columns<0>;
    Pool::instance().run(pieces, threads, [&](int64_t piece) {
        const int64_t begin = piece * chunk, end = std::min(begin + chunk, num);
        int64_t hits[MOST_LISTS];
        merge(padded, num, begin, end, columns, 2 * num, found + begin, found + num + begin, hits);
        for (int list = 0; list < columns.lists(); ++list) counts[list * pieces + piece] = hits[list];
    });
}

// What was found as lists by offset: an offset's pairs begin at starts[offset] (the centre has none).
void tandem_list_neighbours(int64_t num, int size, int64_t chunk, const int32_t* found, const int64_t* counts,
                            const int64_t* starts, int32_t* in_rows, int32_t* out_rows, int threads) {
    using namespace tandem;
    const Columns columns(size);
    const int64_t pieces = (num + chunk - 1) / chunk;
    Pool::instance().run(columns.num, threads, [&](int64_t i) {
        const int column = int(i), x = columns.x(column), y = columns.y(column), first = columns.first_z(column);
        for (int z = first; z <= columns.reach; ++z) {
            const int64_t list = columns.first(column) + z - first;
            int64_t to = starts[columns.offset(x, y, z)], mirrored = starts[columns.offset(-x, -y, -z)];
            for (int64_t piece = 0; piece < pieces; ++piece) {
                const int32_t* const voxels = found + 2 * num * list + piece * chunk;
                const int64_t count = counts[list * pieces + piece];
                const size_t bytes = size_t(count) * sizeof(int32_t);
                std::memcpy(in_rows + to, voxels + num, bytes);
                std::memcpy(out_rows + to, voxels, bytes);
                std::memcpy(in_rows + mirrored, voxels, bytes);
                std::memcpy(out_rows + mirrored, voxels + num, bytes);
                to += count, mirrored += count;
            }
        }
    });
}

// Finds output cells and pairs, in memory of this thread that the next call overwrites: found [pieces], of which slabs
// [pieces] says what each is. Returns the number of pairs under each offset in counts, and of output cells.
int64_t tandem_find_strided(const int64_t* keys, int64_t num, const tandem::Strided* s, int64_t pieces,
                            tandem::Found* found, int64_t* counts, int threads) {
    using namespace tandem;
    struct SlabsTag;
    struct KeysTag;
    struct RowsTag;
    struct CountsTag;
    Slab* const slabs = scratch<SlabsTag, Slab>(size_t(pieces));
    cut(keys, num, *s, pieces, slabs);
    int64_t room = 0;
    for (int64_t i = 0; i < pieces; ++i) room += s->room(slabs[i]);
    int64_t* of_keys = scratch<KeysTag, int64_t>(size_t(room));
    int32_t* of_rows = scratch<RowsTag, int32_t>(size_t(2 * room));
    int64_t* const of_counts = scratch<CountsTag, int64_t>(size_t(pieces * s->offsets()));
    for (int64_t i = 0; i < pieces; ++i) {
        const int64_t most = s->room(slabs[i]);
        found[i] = {of_keys, of_counts + i * s->offsets(), of_rows, of_rows + most};
        of_keys += most, of_rows += 2 * most;
    }
    Pool::instance().run(pieces, threads, [&](int64_t i) { find_in_slab(keys, *s, slabs[i], found[i]); });
    int64_t cells = 0;
    std::fill(counts, counts + s->offsets(), 0);
    for (int64_t i = 0; i < pieces; ++i) {
        cells += found[i].cells;
        for (int k = 0; k < s->offsets(); ++k) counts[k] += found[i].counts[k];
    }
    return cells;
}

// What was found as one list of cells and lists of pairs by offset.
void tandem_list_strided(const tandem::Found* found, int64_t pieces, int64_t offsets, int64_t* out_keys,
                         int32_t* in_rows, int32_t* out_rows, int threads) {
    using namespace tandem;
    struct BeginsTag;
    int64_t* const begins = scratch<BeginsTag, int64_t>(size_t(pieces * (offsets + 1)));
    int64_t end = 0;
    for (int64_t k = 0; k < offsets; ++k)
        for (int64_t i = 0; i < pieces; ++i) begins[i * (offsets + 1) + k] = end, end += found[i].counts[k];
    end = 0;
    for (int64_t i = 0; i < pieces; ++i) begins[i * (offsets + 1) + offsets] = end, end += found[i].cells;
    Pool::instance().run(pieces, threads, [&](int64_t i) {
        const Found& piece = found[i];
        const int64_t* const begin = begins + i * (offsets + 1);
        const int64_t first = begin[offsets];
        std::copy(piece.keys, piece.keys + piece.cells, out_keys + first);
        const int32_t *from = piece.in_rows, *cell = piece.out_rows;
        for (int64_t k = 0; k < offsets; from += piece.counts[k], cell += piece.counts[k], ++k) {
            std::copy(from, from + piece.counts[k], in_rows + begin[k]);
            for (int64_t j = 0; j < piece.counts[k]; ++j) out_rows[begin[k] + j] = cell[j] + int32_t(first);
        }
    });
}
}
