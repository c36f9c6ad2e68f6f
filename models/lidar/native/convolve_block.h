// The innermost product: a few rows times a few vectors of columns, summed in registers.
#pragma once

#include <cstddef>

#include "convolve_vectors.h"

namespace tandem {

// Steps whose factors lie in the first-level cache together: 64 x 64 floats of the right factor are 16 KiB.
constexpr int kSteps = 64;
// Vectors of columns in a block, at most.
constexpr int kPanel = kRegisters == 32 ? 4 : 2;

// Rows of a block of V vectors: sums, one row of the right factor and one number of the left fill the registers.
template <int V>
constexpr int kBlockRows = kRegisters == 32 ? (V == 1 ? 24 : V == 2 ? 12 : V == 3 ? 8 : 6) : (V == 1 ? 12 : 6);
// Of the smaller blocks that follow the last full one.
template <int V>
constexpr int kSomeRows = kBlockRows<V> == 8 ? 4 : kBlockRows<V> * 2 / 3;
template <int V>
constexpr int kFewRows = kBlockRows<V> == 8 ? 2 : kBlockRows<V> / 3;
constexpr int kMostRows = 32;  // at least of any block

// Columns of a matrix of C in panels of `kPanel` vectors; the last may be narrower. Each panel's rows lie together.
template <typename A>
struct Panels {
    static constexpr int kLanesOfSum = kLanes<typename A::Sum>;
    int64_t vectors;

    explicit Panels(int64_t columns) : vectors((columns + kLanesOfSum - 1) / kLanesOfSum) {}
    int64_t count() const { return (vectors + kPanel - 1) / kPanel; }
    int64_t columns() const { return vectors * kLanesOfSum; }
    int vectors_of(int64_t panel) const {
        return int(vectors - panel * kPanel < kPanel ? vectors - panel * kPanel : kPanel);
    }
    static int64_t first_column(int64_t panel) { return panel * kPanel * kLanesOfSum; }
};

// sums[places[r]][v] += sum over steps of left(r, step) * right[step][v], for R rows and V vectors.
// Left: the row's neighbour lies RowStride elements on, the step's `step_stride`. Each sum is taken from zero step by
// step and then added, so the result does not depend on R, V or on how rows are shared out, and the rounding of a few
// long sums of short ones is less than of one long sum.
template <typename A, int R, int V, int RowStride>
void multiply_block(const typename A::Element* left, int64_t step_stride, const typename A::Element* right,
                    int64_t steps, typename A::Sum* sums, int64_t row_of_sums, const int32_t* __restrict places) {
    using Sum = typename A::Sum;
    constexpr int L = kLanes<Sum>;
    Vector<Sum> sum[R][V];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = Vector<Sum>{};
    for (int64_t step = 0; step < steps; ++step) {
        Vector<typename A::Element> row[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) row[v] = load(right + v * L);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[r][v] = A::multiply_add(sum[r][v], left[r * RowStride], row[v]);
        left += step_stride;
        right += V * L;
    }
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
        Sum* to = sums + places[r] * row_of_sums;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(to + v * L, load(to + v * L) + sum[r][v]);
    }
}

// The same for any number of rows. Left and places must be readable `kMostRows` further: what the places there name is
// overwritten.
template <typename A, int V, int RowStride>
void multiply_rows(int64_t rows, const typename A::Element* left, int64_t step_stride,
                   const typename A::Element* right, int64_t steps, typename A::Sum* sums, int64_t row_of_sums,
                   const int32_t* places) {
    while (rows > 0) {
        const int rows_here = rows > kSomeRows<V> ? kBlockRows<V> : rows > kFewRows<V> ? kSomeRows<V> : kFewRows<V>;
        const auto block = rows_here == kBlockRows<V>  ? multiply_block<A, kBlockRows<V>, V, RowStride>
                           : rows_here == kSomeRows<V> ? multiply_block<A, kSomeRows<V>, V, RowStride>
                                                       : multiply_block<A, kFewRows<V>, V, RowStride>;
        block(left, step_stride, right, steps, sums, row_of_sums, places);
        rows -= rows_here;
        left += rows_here * RowStride;
        places += rows_here;
    }
}

// The same for one panel of columns.
template <typename A, int RowStride>
void multiply_panel(int vectors, int64_t rows, const typename A::Element* left, int64_t step_stride,
                    const typename A::Element* right, int64_t steps, typename A::Sum* sums, int64_t row_of_sums,
                    const int32_t* places) {
    const auto multiply = [&] {
        if (vectors == 1) return multiply_rows<A, 1, RowStride>;
        if (vectors == 2) return multiply_rows<A, 2, RowStride>;
        if constexpr (kPanel > 2) {
            if (vectors == 3) return multiply_rows<A, 3, RowStride>;
        }
        return multiply_rows<A, kPanel, RowStride>;
    }();
    multiply(rows, left, step_stride, right, steps, sums, row_of_sums, places);
}

}  // namespace tandem
