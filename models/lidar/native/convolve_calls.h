// What Python calls of sparse convolution. Types of numbers: 0 float, 1 double, 2 bf16.
#pragma once

#include "convolve.h"
#include "convolve_weight.h"

namespace tandem {

// bf16 without tiles.
#if defined(__AVX512BF16__)
using ForBf16 = PairsOfBf16;
#else
using ForBf16 = Plain<float>;
#endif

// Memory that is short is an error for the caller to report: 1; other results are 0.
template <typename Call>
int guarded(const Call& call) {
    try {
        call();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

using Convolve = void (*)(const Pairs&, const void*, int64_t, const void*, bool, void*, int64_t, int64_t, int);
using Gradient = void (*)(const Pairs&, const void*, int64_t, const void*, int64_t, int64_t, void*, int);

template <typename A, typename Storage>
void convolve(const Pairs& pairs, const void* features, int64_t in_channels, const void* weight, bool transposed,
              void* out, int64_t rows, int64_t out_channels, int threads) {
    Convolution<A, Storage>(pairs, static_cast<const Storage*>(features), in_channels, static_cast<Storage*>(out),
                            out_channels)
        .run(static_cast<const Storage*>(weight), transposed, rows, threads);
}

template <typename A, typename Storage>
void weight_gradient(const Pairs& pairs, const void* features, int64_t in_channels, const void* grad, int64_t rows,
                     int64_t out_channels, void* out, int threads) {
    WeightGradient<A, Storage>(pairs, static_cast<const Storage*>(features), in_channels,
                               static_cast<const Storage*>(grad), out_channels)
        .run(rows, static_cast<Storage*>(out), threads);
}

inline Convolve convolve_of(int type) {
    if (type == 0) return convolve<Plain<float>, float>;
    if (type == 1) return convolve<Plain<double>, double>;
#if defined(TANDEM_TILES)
    if (tiles::allowed()) return convolve<TilesOfBf16, Bf16>;
#endif
    return convolve<ForBf16, Bf16>;
}

inline Gradient gradient_of(int type) {
    if (type == 0) return weight_gradient<Plain<float>, float>;
    if (type == 1) return weight_gradient<Plain<double>, double>;
#if defined(TANDEM_TILES)
    if (tiles::allowed()) return weight_gradient<TilesOfBf16, Bf16>;
#endif
    return weight_gradient<ForBf16, Bf16>;
}

}  // namespace tandem

extern "C" {

// out [rows, out_channels] from features [_, in_channels] and weight [offsets, in_channels, out_channels], or, where
// `transposed` is set, [offsets, out_channels, in_channels].
int tandem_convolve(int type, int64_t offsets, const int64_t* starts, const int32_t* in, const int32_t* out_rows,
                    int64_t center, const void* features, int64_t in_channels, const void* weight, int transposed,
                    void* out, int64_t rows, int64_t out_channels, int threads) {
    using namespace tandem;
    const Pairs pairs{offsets, starts, in, out_rows, center};
    return guarded([&] {
        convolve_of(type)(pairs, features, in_channels, weight, transposed != 0, out, rows, out_channels, threads);
    });
}

// out [offsets, in_channels, out_channels] from features [_, in_channels] and grad [rows, out_channels].
int tandem_convolve_weight_gradient(int type, int64_t offsets, const int64_t* starts, const int32_t* in,
                                    const int32_t* out_rows, int64_t center, const void* features,
                                    int64_t in_channels, const void* grad, int64_t rows, int64_t out_channels,
                                    void* out, int threads) {
    using namespace tandem;
    const Pairs pairs{offsets, starts, in, out_rows, center};
    return guarded(
        [&] { gradient_of(type)(pairs, features, in_channels, grad, rows, out_channels, out, threads); });
}

// Whether each offset's part of a list of rows ascends.
int tandem_ascends(int64_t offsets, const int64_t* starts, const int32_t* rows) {
    for (int64_t k = 0; k < offsets; ++k)
        if (!std::is_sorted(rows + starts[k], rows + starts[k + 1])) return 0;
    return 1;
}
}
