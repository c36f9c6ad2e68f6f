// Products of bf16 in Intel's matrix tiles (AMX): 32 rows times 32 columns, summed in four tiles of 16 x 16 floats.
//
// A tile has 16 rows of 64 bytes. The left factor's row holds 16 elements of two bf16 numbers, and so does a row of the
// right factor, whose rows are steps; so both are read where `convolve.h` puts the elements of `PairsOfBf16`.
// With TANDEM_TILES_EMULATED set, the same algorithm runs on any processor, the tiles being arrays: for tests.
#pragma once

#include "convolve_block.h"

#if defined(TANDEM_TILES_EMULATED) || (defined(__AMX_BF16__) && defined(__AMX_TILE__))
#define TANDEM_TILES 1

#if !defined(TANDEM_TILES_EMULATED)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tandem {
namespace tiles {

constexpr int kSide = 16;  // rows, elements of a row
static_assert(kLanes<uint32_t> == kSide, "panels are whole tiles");

#if defined(TANDEM_TILES_EMULATED)

struct State {
    float sums[2][2][kSide][kSide];
    uint32_t left[2][kSide][kSide], right[2][kSide][kSide];
};

inline State& state() {
    thread_local State here;
    return here;
}

inline bool allowed() { return true; }

// While it lives, this thread's tiles have the shapes above.
class Configured {};

inline void zero_sums() { std::memset(state().sums, 0, sizeof state().sums); }

inline void load_tile(uint32_t (&tile)[kSide][kSide], const uint32_t* from, int64_t row) {
    for (int r = 0; r < kSide; ++r) std::memcpy(tile[r], from + r * row, sizeof tile[r]);
}

// 32 rows of 16 elements, `row` elements apart.
inline void load_left(const uint32_t* from, int64_t row) {
    load_tile(state().left[0], from, row);
    load_tile(state().left[1], from + kSide * row, row);
}

// 16 steps of 16 columns: the first half of the columns, or the second.
template <int Half>
void load_right(const uint32_t* from, int64_t row) {
    load_tile(state().right[Half], from, row);
}

// sums += left * right, of half of the columns.
template <int Half>
void multiply() {
    State& s = state();
    for (int half = 0; half < 2; ++half)
        for (int r = 0; r < kSide; ++r)
            for (int e = 0; e < kSide; ++e)
                for (int c = 0; c < kSide; ++c)
                    for (int part = 0; part < 2; ++part) {
                        const Bf16 x{uint16_t(s.left[half][r][e] >> (16 * part))};
                        const Bf16 y{uint16_t(s.right[Half][e][c] >> (16 * part))};
                        s.sums[half][Half][r][c] += widened(x) * widened(y);
                    }
}

// [32, 32] floats, rows `row` apart.
inline void store_sums(float* to, int64_t row) {
    for (int r = 0; r < 2 * kSide; ++r)
        for (int half = 0; half < 2; ++half)
            std::memcpy(to + r * row + half * kSide, state().sums[r / kSide][half][r % kSide], kSide * sizeof(float));
}

#else

// Linux gives a process the tiles' registers on request. Asked once.
inline bool allowed() {
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
    return granted;
}

// While it lives, this thread's tiles have the shapes above; then again those that they had (oneDNN's).
class Configured {
  public:
    Configured() {
        _tile_storeconfig(&before_);
        Layout wanted{};
        wanted.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            wanted.rows[tile] = kSide;
            wanted.row_bytes[tile] = kSide * sizeof(uint32_t);
        }
        _tile_loadconfig(&wanted);
    }
    ~Configured() {
        if (before_.palette == 0) _tile_release();
        else _tile_loadconfig(&before_);
    }
    Configured(const Configured&) = delete;
    Configured& operator=(const Configured&) = delete;

  private:
    // Intel's manual, volume 1, section 18.3 (palette 1).
    struct alignas(64) Layout {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    Layout before_{};
};

// Tiles 0 to 3: sums, two rows of two; 4 and 5: left; 6 and 7: right.
inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

inline void load_left(const uint32_t* from, int64_t row) {
    _tile_loadd(4, from, row * sizeof(uint32_t));
    _tile_loadd(5, from + kSide * row, row * sizeof(uint32_t));
}

template <int Half>
void load_right(const uint32_t* from, int64_t row) {
    if constexpr (Half == 0) _tile_loadd(6, from, row * sizeof(uint32_t));
    else _tile_loadd(7, from, row * sizeof(uint32_t));
}

template <int Half>
void multiply() {
    if constexpr (Half == 0) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
    } else {
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
}

inline void store_sums(float* to, int64_t row) {
    _tile_stored(0, to, row * sizeof(float));
    _tile_stored(1, to + kSide, row * sizeof(float));
    _tile_stored(2, to + kSide * row, row * sizeof(float));
    _tile_stored(3, to + kSide * row + kSide, row * sizeof(float));
}

#endif

// to[c][r] = from[r][c] of 16 x 16 elements.
inline void turn(const uint32_t* from, int64_t from_row, uint32_t* to, int64_t to_row) {
#if defined(__GNUC__) && !defined(__clang__)
    using Row = Vector<uint32_t>;
    Row rows[kSide];
    for (int r = 0; r < kSide; ++r) rows[r] = load(from + r * from_row);
    // Halves of rows h apart change places, for h = 8, 4, 2, 1.
#pragma GCC unroll 4
    for (int h = kSide / 2; h > 0; h /= 2) {
        Row upper, lower;
        for (int lane = 0; lane < kSide; ++lane) {
            upper[lane] = uint32_t(lane & h ? kSide + lane - h : lane);
            lower[lane] = uint32_t(lane & h ? kSide + lane : lane + h);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kSide; ++r) {
            if (r & h) continue;
            const Row a = rows[r], b = rows[r + h];
            rows[r] = __builtin_shuffle(a, b, upper);
            rows[r + h] = __builtin_shuffle(a, b, lower);
        }
    }
    for (int r = 0; r < kSide; ++r) store(to + r * to_row, rows[r]);
#else
    for (int r = 0; r < kSide; ++r)
        for (int c = 0; c < kSide; ++c) to[c * to_row + r] = from[r * from_row + c];
#endif
}

}  // namespace tiles

// bf16 by tiles. Left rows and steps come in multiples of what a tile holds, filled up with zeros.
struct TilesOfBf16 : ElementsOfBf16 {
    static constexpr int kStepMultiple = tiles::kSide;
    static constexpr bool kByTiles = true;
    using Here = tiles::Configured;
};

template <>
inline void multiply_panel<TilesOfBf16, kSteps>(int vectors, int64_t rows, const uint32_t* left, int64_t,
                                                const uint32_t* right, int64_t steps, float* sums,
                                                int64_t row_of_sums, const int32_t* places) {
    constexpr int L = kLanes<float>, kColumns = 2 * tiles::kSide, kRows = 2 * tiles::kSide;
    alignas(64) float product[kRows * kColumns];
    const int64_t width = vectors * L;
    for (int64_t row = 0; row < rows; row += kRows) {
        const int64_t rows_here = rows - row < kRows ? rows - row : kRows;
        for (int64_t column = 0; column < width; column += kColumns) {
            const bool both = width - column > tiles::kSide;
            tiles::zero_sums();
            for (int64_t step = 0; step < steps; step += tiles::kSide) {
                const uint32_t* from = right + step * width + column;
                tiles::load_left(left + row * kSteps + step, kSteps);
                tiles::load_right<0>(from, width);
                tiles::multiply<0>();
                if (!both) continue;
                tiles::load_right<1>(from + tiles::kSide, width);
                tiles::multiply<1>();
            }
            tiles::store_sums(product, kColumns);
            const int64_t columns = both ? kColumns : tiles::kSide;
            for (int64_t r = 0; r < rows_here; ++r) {
                float* to = sums + places[row + r] * row_of_sums + column;
                for (int64_t c = 0; c < columns; c += L)
                    store(to + c, load(to + c) + load(product + r * kColumns + c));
            }
        }
    }
}

}  // namespace tandem
#endif
