// Vectors of float32, whole or in part, read from and written to float32 or bf16 memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "convolve_vectors.h"
#include "inline.h"

namespace tandem::lanes {

using Lanes = Vector<float>;
using Bits = Vector<uint32_t>;
constexpr int64_t kWidth = kLanes<float>;
typedef uint16_t Shorts __attribute__((vector_size(2 * kWidth)));

// Whole: all lanes are there; else the first `width` of them, the others 0 and never stored.
template <bool Whole>
TANDEM_INLINE Lanes load(const float* from, int64_t width) {
    Lanes lanes = {};
    std::memcpy(&lanes, from, Whole ? sizeof lanes : width * sizeof(float));
    return lanes;
}

template <bool Whole>
TANDEM_INLINE Lanes load(const Bf16* from, int64_t width) {
    Shorts shorts = {};
    std::memcpy(&shorts, from, Whole ? sizeof shorts : width * sizeof(Bf16));
    return (Lanes)(__builtin_convertvector(shorts, Bits) << 16);
}

template <bool Whole>
TANDEM_INLINE void store(float* to, const Lanes& lanes, int64_t width) {
    std::memcpy(to, &lanes, Whole ? sizeof lanes : width * sizeof(float));
}

// To the nearest, ties to even; what is not a number stays so, whatever its payload.
template <bool Whole>
TANDEM_INLINE void store(Bf16* to, const Lanes& lanes, int64_t width) {
#ifdef __AVX512BF16__
    const Shorts shorts = (Shorts)_mm512_cvtneps_pbh((__m512)lanes);
#else
    const Bits bits = (Bits)lanes;
    const Bits nearest = bits + 0x7fff + ((bits >> 16) & 1);
    const Bits kept = lanes != lanes ? bits | 0x400000 : nearest;
    const Shorts shorts = __builtin_convertvector(kept >> 16, Shorts);
#endif
    std::memcpy(to, &shorts, Whole ? sizeof shorts : width * sizeof(Bf16));
}

}  // namespace tandem::lanes
