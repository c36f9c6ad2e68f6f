// Vectors of numbers, as wide as the processor's registers, and the products that sparse convolution is made of.
//
// GCC's and Clang's vector types: the same source becomes AVX-512, AVX2, SSE2 or NEON by the flags it is compiled with,
// and the compiler fuses `a * b + c` where the processor can.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace tandem {

// Tiles (convolve_tiles.h) go with vectors of 16 floats, also where both are emulated.
#if defined(__AVX512F__) || defined(TANDEM_TILES_EMULATED)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename T>
struct VectorOf {
    typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

// Numbers of a type in a vector.
template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
inline Vector<T> load(const T* from) {
    Vector<T> vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename T>
inline void store(T* to, Vector<T> vector) {
    std::memcpy(to, &vector, sizeof vector);
}

// The upper half of a float.
struct Bf16 {
    uint16_t bits;
};

inline float widened(float x) { return x; }
inline double widened(double x) { return x; }
inline float widened(Bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }
// To the nearest, to the even one of two; what is not a number stays so.
inline void narrow(float x, Bf16& to) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// How products are summed. An Element is what one factor holds at one step of the sum: one number, or several that the
// processor multiplies and adds in one instruction. Steps come in multiples of kStepMultiple, filled up with zeros.
// `Here` lives on a thread while it multiplies.

// One number a step, sums in its own type; bf16 comes in here widened to float.
template <typename T>
struct Plain {
    using Element = T;
    using Sum = T;
    static constexpr int kPerElement = 1;
    static constexpr int kStepMultiple = 1;
    static constexpr bool kByTiles = false;
    struct Here {};

    static Vector<Sum> multiply_add(Vector<Sum> sum, Element x, Vector<Element> y) { return sum + x * y; }

    // The element of the numbers at from[0], from[stride], ... (`count` of them, the others are zero).
    template <typename Storage>
    static Element element(const Storage* from, int64_t, int64_t) {
        return widened(*from);
    }

    // Elements of consecutive numbers.
    template <typename Storage>
    static void along(const Storage* from, int64_t numbers, Element* to) {
        for (int64_t i = 0; i < numbers; ++i) to[i] = widened(from[i]);
    }

    // Elements across `kPerElement` rows (null: zeros).
    template <typename Storage>
    static void across(const Storage* const* rows, int64_t numbers, Element* to) {
        along(rows[0], numbers, to);
    }
};

// Two bf16 numbers a step, sums in float.
struct ElementsOfBf16 {
    using Element = uint32_t;
    using Sum = float;
    static constexpr int kPerElement = 2;

    static Element element(const Bf16* from, int64_t stride, int64_t count) {
        return from[0].bits | (count > 1 ? uint32_t(from[stride].bits) << 16 : 0);
    }

    static void along(const Bf16* from, int64_t numbers, Element* to) {
        if (numbers % 2) to[numbers / 2] = from[numbers - 1].bits;
        std::memcpy(to, from, size_t(numbers / 2) * sizeof(Element));
    }

    static void across(const Bf16* const* rows, int64_t numbers, Element* to) {
        const uint16_t* low = &rows[0]->bits;
        if (rows[1] == nullptr) {
            for (int64_t i = 0; i < numbers; ++i) to[i] = low[i];
            return;
        }
        const uint16_t* high = &rows[1]->bits;
        for (int64_t i = 0; i < numbers; ++i) to[i] = low[i] | uint32_t(high[i]) << 16;
    }
};

#if defined(__AVX512BF16__)
struct PairsOfBf16 : ElementsOfBf16 {
    static constexpr int kStepMultiple = 1;
    static constexpr bool kByTiles = false;
    struct Here {};

    static Vector<Sum> multiply_add(Vector<Sum> sum, Element x, Vector<Element> y) {
        return (Vector<Sum>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(x)), (__m512bh)y);
    }
};
#endif

}  // namespace tandem
