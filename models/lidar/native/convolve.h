// Sparse convolution: out[o] = sum over pairs (i, o) of offset k of features[i] @ weight[k].
//
// The rows of the result are cut into tiles that stay in the second-level cache. A tile takes its pairs offset by
// offset (they ascend in the output row, so a tile's pairs are a range), copies a few input rows at a time into the
// first-level cache and multiplies them there; sums are rounded to the result's type once, at the end. Each sum runs
// over offsets, then channels, in one order, so results do not depend on tiles or threads.
//
// The gradient of the input is the same with the pairs turned round and the weight's matrices transposed.
#pragma once

#include <algorithm>

#include "convolve_block.h"
#include "convolve_tiles.h"
#include "pool.h"

namespace tandem {

// The pairs of each offset k are [starts[k], starts[k + 1]), ascending in `out`. Under the offset `center` (-1: none)
// every row meets itself instead, unlisted.
struct Pairs {
    int64_t offsets;
    const int64_t* starts;
    const int32_t* in;
    const int32_t* out;
    int64_t center;
};

// Rows that are copied and multiplied together: whole blocks of every kind.
constexpr int64_t kRowsTogether = 96;
constexpr int64_t kTileBytes = 256 * 1024;
constexpr int64_t kSmallestTile = 64, kLargestTile = 1024;

// Rows of a tile: its sums take up to `kTileBytes`, and there is work for every thread.
inline int64_t tile_rows(int64_t rows, int64_t bytes_of_a_row, int threads) {
    const int64_t fits = std::min(kTileBytes / bytes_of_a_row, kLargestTile);
    const int64_t shared = threads > 1 ? rows / (4 * threads) : rows;
    return std::max(std::min(fits, shared), kSmallestTile);
}

// Steps that so many numbers take.
template <typename A>
constexpr int64_t steps_of(int64_t numbers) {
    constexpr int64_t kNumbers = int64_t(A::kPerElement) * A::kStepMultiple;
    return (numbers + kNumbers - 1) / kNumbers * A::kStepMultiple;
}

// Weights [K, left, right], or its transpose [K, right, left], as elements: offset by offset, panel by panel of the
// right channels, step by step of the left ones. Channels beyond the last are zero.
template <typename A, typename Storage>
class PackedWeight {
  public:
    using Element = typename A::Element;

    PackedWeight(int64_t left, int64_t right)
        : left_(left), right_(right), panels_(right), steps_(steps_of<A>(left)) {}

    const Panels<A>& panels() const { return panels_; }
    int64_t steps() const { return steps_; }

    void pack(const Storage* weight, int64_t offsets, bool transposed, int threads) {
        const int64_t size = steps_ * panels_.columns();
        Element* to = scratch<PackedWeight, Element>(size_t(offsets * size));
        elements_ = to;
        Pool::instance().run(offsets, threads, [&](int64_t k) {
            pack_offset(weight + k * left_ * right_, transposed, to + k * size);
        });
    }

    // Where the elements of an offset's panel begin at a step.
    const Element* at(int64_t offset, int64_t panel, int64_t step) const {
        const int64_t before = steps_ * (offset * panels_.columns() + Panels<A>::first_column(panel));
        return elements_ + before + step * panels_.vectors_of(panel) * Panels<A>::kLanesOfSum;
    }

  private:
    void pack_offset(const Storage* weight, bool transposed, Element* to) const {
        constexpr int64_t kPer = A::kPerElement;
        const int64_t of_left = transposed ? 1 : right_, of_right = transposed ? left_ : 1;
        for (int64_t panel = 0; panel < panels_.count(); ++panel) {
            const int64_t first = Panels<A>::first_column(panel);
            const int64_t width = panels_.vectors_of(panel) * Panels<A>::kLanesOfSum;
            const int64_t filled = std::min(width, right_ - first);
            // Squares, so that also a transposed weight is read along its rows.
            constexpr int64_t kSquare = 16;
            for (int64_t from = 0; from < steps_; from += kSquare) {
                const int64_t until = std::min(from + kSquare, steps_);
                for (int64_t column = 0; column < filled; column += kSquare) {
                    const int64_t columns = std::min(kSquare, filled - column);
                    for (int64_t step = from; step < until; ++step) {
                        const Storage* source = weight + step * kPer * of_left + (first + column) * of_right;
                        Element* target = to + step * width + column;
                        const int64_t numbers = left_ - step * kPer;
                        if (numbers <= 0) std::fill(target, target + columns, Element(0));
                        else
                            for (int64_t c = 0; c < columns; ++c)
                                target[c] = A::element(source + c * of_right, of_left, numbers);
                    }
                }
                for (int64_t step = from; step < until; ++step)
                    std::fill(to + step * width + filled, to + (step + 1) * width, Element(0));
            }
            to += steps_ * width;
        }
    }

    int64_t left_, right_;
    Panels<A> panels_;
    int64_t steps_;
    const Element* elements_ = nullptr;
};

template <typename A, typename Storage>
class Convolution {
  public:
    using Element = typename A::Element;
    using Sum = typename A::Sum;

    Convolution(const Pairs& pairs, const Storage* features, int64_t in_channels, Storage* out, int64_t out_channels)
        : pairs_(pairs), features_(features), in_channels_(in_channels), out_(out), out_channels_(out_channels),
          weight_(in_channels, out_channels) {}

    // `transposed`: the weight is [K, out_channels, in_channels].
    void run(const Storage* weight, bool transposed, int64_t rows, int threads) {
        weight_.pack(weight, pairs_.offsets, transposed, threads);
        const int64_t row = weight_.panels().columns();
        const int64_t tile = tile_rows(rows, row * int64_t(sizeof(Sum)), threads);
        Pool::instance().run((rows + tile - 1) / tile, threads, [&](int64_t i) {
            [[maybe_unused]] const typename A::Here here;
            make_tile(i * tile, std::min(rows, (i + 1) * tile));
        });
    }

  private:
    void make_tile(int64_t first, int64_t last) const {
        const int64_t row = weight_.panels().columns();
        // One row more takes what blocks compute beyond the last pair.
        Sum* sums = scratch<Convolution, Sum>(size_t((last - first + 1) * row));
        std::fill(sums, sums + (last - first + 1) * row, Sum(0));
        for (int64_t k = 0; k < pairs_.offsets; ++k) {
            if (k == pairs_.center) {
                add_pairs(k, nullptr, nullptr, last - first, first, last, sums);
                continue;
            }
            const int32_t* begin = pairs_.out + pairs_.starts[k];
            const int32_t* end = pairs_.out + pairs_.starts[k + 1];
            const int32_t* from = std::lower_bound(begin, end, first);
            const int32_t* until = std::lower_bound(from, end, last);
            add_pairs(k, pairs_.in + (from - pairs_.out), from, until - from, first, last, sums);
        }
        for (int64_t r = first; r < last; ++r) {
            const Sum* from = sums + (r - first) * row;
            Storage* to = out_ + r * out_channels_;
            for (int64_t c = 0; c < out_channels_; ++c) narrow(from[c], to[c]);
        }
    }

    // Pairs of one offset and tile; without lists every row of the tile meets itself.
    void add_pairs(int64_t k, const int32_t* in, const int32_t* out, int64_t count, int64_t first, int64_t last,
                   Sum* sums) const {
        alignas(64) Element left[(kRowsTogether + kMostRows) * kSteps];
        int32_t places[kRowsTogether + kMostRows];
        const int64_t row = weight_.panels().columns();
        for (int64_t begin = 0; begin < count; begin += kRowsTogether) {
            const int64_t rows = std::min(kRowsTogether, count - begin);
            for (int64_t r = 0; r < rows; ++r) places[r] = int32_t(out ? out[begin + r] - first : begin + r);
            std::fill(places + rows, places + rows + kMostRows, int32_t(last - first));
            for (int64_t step = 0; step < weight_.steps(); step += kSteps) {
                const int64_t steps = std::min<int64_t>(kSteps, weight_.steps() - step);
                const int64_t channel = step * A::kPerElement;
                const int64_t channels = std::min<int64_t>(steps * A::kPerElement, in_channels_ - channel);
                for (int64_t r = 0; r < rows; ++r) {
                    const int64_t source = in ? in[begin + r] : first + begin + r;
                    Element* to = left + r * kSteps;
                    A::along(features_ + source * in_channels_ + channel, channels, to);
                    if constexpr (A::kStepMultiple > 1)
                        std::fill(to + (channels + A::kPerElement - 1) / A::kPerElement, to + steps, Element(0));
                }
                // Full blocks of every kind end with the last row.
                const int64_t filled = rows == kRowsTogether ? rows : rows + kMostRows;
                for (int64_t r = rows; r < filled; ++r)
                    std::fill(left + r * kSteps, left + r * kSteps + steps, Element(0));
                for (int64_t panel = 0; panel < weight_.panels().count(); ++panel) {
                    multiply_panel<A, kSteps>(weight_.panels().vectors_of(panel), rows, left, 1,
                                              weight_.at(k, panel, step), steps,
                                              sums + Panels<A>::first_column(panel), row, places);
                }
            }
        }
    }

    Pairs pairs_;
    const Storage* features_;
    int64_t in_channels_;
    Storage* out_;
    int64_t out_channels_;
    PackedWeight<A, Storage> weight_;
};

}  // namespace tandem
