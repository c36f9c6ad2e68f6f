// The gradient of sparse convolution's weight: grad[k] = sum over pairs (i, o) of offset k of features[i]^T @ grad_out[o].
//
// As in `convolve.h` the rows are taken tile by tile, so that an input row is still near when the next offset needs it;
// a group of offsets, as many as have their sums in the second-level cache, runs over the tiles together. For threads
// the rows are cut into spans whose length depends on their number alone; the spans' sums are added in order.
#pragma once

#include "convolve.h"

namespace tandem {

constexpr int64_t kSmallestSpan = 4096, kMostSpans = 16;
// What the sums of all spans may take together.
constexpr int64_t kPartsBytes = 32 * 1024 * 1024;
constexpr int64_t kGroupBytes = 256 * 1024, kRowsBytes = 256 * 1024;

template <typename A, typename Storage>
class WeightGradient {
  public:
    using Element = typename A::Element;
    using Sum = typename A::Sum;

    WeightGradient(const Pairs& pairs, const Storage* features, int64_t in_channels, const Storage* grad,
                   int64_t out_channels)
        : pairs_(pairs), features_(features), in_channels_(in_channels), grad_(grad), out_channels_(out_channels),
          panels_(out_channels) {}

    // Into out [K, in_channels, out_channels]; `rows`: of grad.
    void run(int64_t rows, Storage* out, int threads) {
        const int64_t size = in_channels_ * out_channels_, all = pairs_.offsets * size;
        const int64_t fit = std::max<int64_t>(kPartsBytes / std::max<int64_t>(all * int64_t(sizeof(Sum)), 1), 1);
        const int64_t most = std::min(kMostSpans, fit);
        const int64_t span = std::max((rows + most - 1) / most, kSmallestSpan);
        const int64_t spans = std::max<int64_t>((rows + span - 1) / span, 1);
        const int64_t group = std::max<int64_t>(kGroupBytes / (sums_of_offset() * int64_t(sizeof(Sum))), 1);
        const int64_t groups = (pairs_.offsets + group - 1) / group;
        Sum* parts = scratch<struct Parts, Sum>(spans > 1 ? size_t(spans * all) : 0);
        Pool::instance().run(spans * groups, threads, [&](int64_t i) {
            [[maybe_unused]] const typename A::Here here;
            const int64_t part = i / groups, k = i % groups * group, end = std::min(k + group, pairs_.offsets);
            const Sum* sums = add_span(k, end, part * span, std::min(rows, (part + 1) * span));
            if (spans == 1) write(sums, end - k, out + k * size);
            else write(sums, end - k, parts + part * all + k * size);
        });
        if (spans == 1) return;
        Pool::instance().run(pairs_.offsets, threads, [&](int64_t k) {
            for (int64_t c = k * size; c < (k + 1) * size; ++c) {
                Sum sum = 0;
                for (int64_t part = 0; part < spans; ++part) sum += parts[part * all + c];
                narrow(sum, out[c]);
            }
        });
    }

  private:
    static constexpr int64_t kPairs = kSteps * A::kPerElement;  // multiplied together

    // Some rows more take what blocks compute beyond the last channel.
    int64_t sums_of_offset() const { return (in_channels_ + kMostRows) * panels_.columns(); }

    // A row of the left factor is a line longer than needed: at a power of two its steps would share few places of the
    // cache.
    int64_t left_row() const { return (in_channels_ + kMostRows + 15) / 16 * 16 + 16; }

    template <typename To>
    void write(const Sum* sums, int64_t offsets, To* to) const {
        for (int64_t k = 0; k < offsets; ++k)
            for (int64_t r = 0; r < in_channels_; ++r)
                for (int64_t c = 0; c < out_channels_; ++c)
                    narrow(sums[k * sums_of_offset() + r * panels_.columns() + c], *to++);
    }

    const Sum* add_span(int64_t first_offset, int64_t last_offset, int64_t begin, int64_t end) const {
        const int64_t offsets = last_offset - first_offset;
        Sum* sums = scratch<WeightGradient, Sum>(size_t(offsets * sums_of_offset()));
        std::fill(sums, sums + offsets * sums_of_offset(), Sum(0));
        Buffers buffers;
        buffers.left = scratch<struct Left, Element>(size_t(kSteps * left_row()));
        buffers.right = scratch<struct Right, Element>(size_t(kSteps * panels_.columns()));
        if constexpr (A::kByTiles) {
            // Rows of the last block beyond the last channel are multiplied, and left out after.
            const size_t rows = size_t(in_channels_ + kMostRows);
            buffers.turned = scratch<struct Turned, Element>(rows * kSteps);
            std::fill(buffers.turned, buffers.turned + rows * kSteps, Element(0));
        }
        buffers.places = scratch<struct Places, int32_t>(size_t(in_channels_ + kMostRows));
        std::fill(buffers.left, buffers.left + kSteps * left_row(), Element(0));
        std::fill(buffers.right, buffers.right + kSteps * panels_.columns(), Element(0));
        for (int64_t r = 0; r < in_channels_ + kMostRows; ++r) buffers.places[r] = int32_t(r);
        const int64_t row_bytes = (in_channels_ + out_channels_) * int64_t(sizeof(Storage));
        const int64_t tile = std::max(std::min(kRowsBytes / row_bytes, kLargestTile), kSmallestTile);
        for (int64_t first = begin; first < end; first += tile) {
            const int64_t last = std::min(first + tile, end);
            for (int64_t k = first_offset; k < last_offset; ++k) {
                Sum* to = sums + (k - first_offset) * sums_of_offset();
                if (k == pairs_.center) {
                    add_pairs(nullptr, nullptr, first, last - first, buffers, to);
                    continue;
                }
                const int32_t* list = pairs_.out + pairs_.starts[k];
                const int32_t* list_end = pairs_.out + pairs_.starts[k + 1];
                const int32_t* from = std::lower_bound(list, list_end, first);
                const int32_t* until = std::lower_bound(from, list_end, last);
                add_pairs(pairs_.in + (from - pairs_.out), from, 0, until - from, buffers, to);
            }
        }
        return sums;
    }

    struct Buffers {
        Element *left, *right;
        Element* turned = nullptr;  // left [steps, channels] as [channels, steps]
        int32_t* places;
    };

    // Pairs of one offset; without lists the rows from `first` on meet themselves.
    void add_pairs(const int32_t* in, const int32_t* out, int64_t first, int64_t count, const Buffers& buffers,
                   Sum* sums) const {
        for (int64_t begin = 0; begin < count; begin += kPairs) {
            const int64_t until = std::min(begin + kPairs, count);
            int64_t steps = 0;
            for (int64_t pair = begin; pair < until; pair += A::kPerElement, ++steps) {
                const Storage* ins[A::kPerElement];
                const Storage* outs[A::kPerElement];
                for (int e = 0; e < A::kPerElement; ++e) {
                    const int64_t p = pair + e;
                    ins[e] = p < until ? features_ + (in ? in[p] : first + p) * in_channels_ : nullptr;
                    outs[e] = p < until ? grad_ + (out ? out[p] : first + p) * out_channels_ : nullptr;
                }
                A::across(ins, in_channels_, buffers.left + steps * left_row());
                copy_in_panels(outs, buffers.right, steps);
            }
            if constexpr (A::kByTiles) steps = turn_left(steps, buffers);
            for (int64_t panel = 0; panel < panels_.count(); ++panel) {
                const int64_t column = Panels<A>::first_column(panel);
                const int vectors = panels_.vectors_of(panel);
                const Element* right = buffers.right + kSteps * column;
                if constexpr (A::kByTiles) {
                    multiply_panel<A, kSteps>(vectors, in_channels_, buffers.turned, 1, right, steps, sums + column,
                                              panels_.columns(), buffers.places);
                } else {
                    multiply_panel<A, 1>(vectors, in_channels_, buffers.left, left_row(), right, steps, sums + column,
                                         panels_.columns(), buffers.places);
                }
            }
        }
    }

#if defined(TANDEM_TILES)
    // Tiles want the left factor's steps side by side. Steps up to a whole tile are zeros; how many there are then.
    int64_t turn_left(int64_t steps, const Buffers& buffers) const {
        const int64_t whole = (steps + tiles::kSide - 1) / tiles::kSide * tiles::kSide;
        std::fill(buffers.left + steps * left_row(), buffers.left + whole * left_row(), Element(0));
        for (int64_t panel = 0; panel < panels_.count(); ++panel) {
            const int64_t width = panels_.vectors_of(panel) * Panels<A>::kLanesOfSum;
            Element* right = buffers.right + kSteps * Panels<A>::first_column(panel);
            std::fill(right + steps * width, right + whole * width, Element(0));
        }
        for (int64_t channel = 0; channel < in_channels_; channel += tiles::kSide)
            for (int64_t step = 0; step < whole; step += tiles::kSide)
                tiles::turn(buffers.left + step * left_row() + channel, left_row(),
                            buffers.turned + channel * kSteps + step, kSteps);
        return whole;
    }
#endif

    void copy_in_panels(const Storage* const* rows, Element* right, int64_t step) const {
        for (int64_t panel = 0; panel < panels_.count(); ++panel) {
            const int64_t first = Panels<A>::first_column(panel);
            const int64_t width = panels_.vectors_of(panel) * Panels<A>::kLanesOfSum;
            const Storage* shifted[A::kPerElement];
            for (int e = 0; e < A::kPerElement; ++e) shifted[e] = rows[e] ? rows[e] + first : nullptr;
            A::across(shifted, std::min(width, out_channels_ - first), right + kSteps * first + step * width);
        }
    }

    Pairs pairs_;
    const Storage* features_;
    int64_t in_channels_;
    const Storage* grad_;
    int64_t out_channels_;
    Panels<A> panels_;
};

}  // namespace tandem
