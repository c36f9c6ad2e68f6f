// BatchNorm over rows, then a residual added, then ReLU, each of the latter two by option: forward and backward in two
// passes over memory each, one for the sums and one that applies them.
//
// Sums: float32 within a block of rows whose size depends on the number of channels alone, blocks in order in double.
// The variance is that of the block around the block's own mean, joined with the distances of the blocks' means (Chan,
// Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979): no difference of
// large numbers, also where the mean is large. Results are equal to the last bit at any number of threads.
//
// Source of the gradient: Ioffe & Szegedy, "Batch normalization", ICML 2015, section 3.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "lanes.h"
#include "pool.h"

namespace tandem::norm {

using namespace lanes;

constexpr int64_t kBlock = 8192;  // numbers of a block: 32 KiB of float32, which the second look finds in the cache

// Rows of channels, cut into blocks, and their channels, cut into vectors: the last one overlaps the one before it, so
// some channels are computed twice, with the same result. Fewer channels than lanes are one vector that is not whole.
struct Shape {
    int64_t rows, channels;

    int64_t block_rows() const { return std::max<int64_t>(kBlock / channels, 16); }
    int64_t blocks() const { return (rows + block_rows() - 1) / block_rows(); }
    int64_t vectors() const { return (channels + kWidth - 1) / kWidth; }
    int64_t at(int64_t vector) const { return std::max<int64_t>(std::min(vector * kWidth, channels - kWidth), 0); }
    int64_t rows_of(int64_t block) const { return std::min(block_rows(), rows - block * block_rows()); }
    int64_t start_of(int64_t block) const { return block * block_rows() * channels; }
};

// Numbers of each channel, float32. `gain` is weight / standard deviation.
struct Channels {
    const float *mean, *inv_std, *gain, *bias;
};

// What decides whether the gradient passes the ReLU.
enum class Mask { none, input, output };

// Calls work(first vector, number of vectors as a constant) until all vectors of a row are done, four at a time at most.
template <int Most, typename Work>
TANDEM_INLINE void each_group(int64_t vectors, const Work& work) {
    int64_t v = 0;
    if constexpr (Most >= 4)
        for (; v + 4 <= vectors; v += 4) work(v, std::integral_constant<int, 4>{});
    for (; v + 2 <= vectors; v += 2) work(v, std::integral_constant<int, 2>{});
    if (v < vectors) work(v, std::integral_constant<int, 1>{});
}

// Sums of a block, and of its squared distances from its own mean.
template <int G, bool Whole, typename Number>
void moments(const Number* x, int64_t rows, const Shape& shape, int64_t first, float* sum, float* squares) {
    const int64_t width = shape.channels;
    int64_t at[G];
    Lanes total[G], mean[G], apart[G];
    for (int g = 0; g < G; ++g) {
        at[g] = shape.at(first + g);
        total[g] = apart[g] = Lanes{};
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int g = 0; g < G; ++g) total[g] += load<Whole>(x + r * width + at[g], width);
    for (int g = 0; g < G; ++g) mean[g] = total[g] / static_cast<float>(rows);
    for (int64_t r = 0; r < rows; ++r)
        for (int g = 0; g < G; ++g) {
            const Lanes distance = load<Whole>(x + r * width + at[g], width) - mean[g];
            apart[g] += distance * distance;
        }
    for (int g = 0; g < G; ++g) {
        store<Whole>(sum + at[g], total[g], width);
        store<Whole>(squares + at[g], apart[g], width);
    }
}

// Mean and biased variance of each channel; both in double.
template <bool Whole, typename Number>
void statistics(const Number* x, const Shape& shape, double* mean, double* variance, int threads) {
    const int64_t blocks = shape.blocks(), channels = shape.channels;
    float* parts = scratch<struct Moments, float>(2 * blocks * channels);
    Pool::instance().run(blocks, threads, [&](int64_t block) {
        float *sum = parts + 2 * block * channels, *squares = sum + channels;
        const Number* from = x + shape.start_of(block);
        each_group<4>(shape.vectors(), [&](int64_t v, auto group) {
            moments<decltype(group)::value, Whole>(from, shape.rows_of(block), shape, v, sum, squares);
        });
    });
    std::fill(mean, mean + channels, 0.0);
    std::fill(variance, variance + channels, 0.0);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t c = 0; c < channels; ++c) mean[c] += parts[2 * block * channels + c];
    for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<double>(shape.rows);
    for (int64_t block = 0; block < blocks; ++block) {
        const float *sum = parts + 2 * block * channels, *squares = sum + channels;
        const double rows = static_cast<double>(shape.rows_of(block)), share = 1.0 / rows;
        for (int64_t c = 0; c < channels; ++c) {
            const double distance = sum[c] * share - mean[c];
            variance[c] += squares[c] + rows * distance * distance;
        }
    }
    for (int64_t c = 0; c < channels; ++c) variance[c] /= static_cast<double>(shape.rows);
}

template <int G, bool Whole, bool Residual, bool Relu, typename Number>
void apply_block(const Number* x, const Number* residual, Number* out, int64_t rows, const Shape& shape, int64_t first,
                 const Channels& of) {
    const int64_t width = shape.channels;
    int64_t at[G];
    Lanes mean[G], gain[G], bias[G];
    for (int g = 0; g < G; ++g) {
        at[g] = shape.at(first + g);
        mean[g] = load<Whole>(of.mean + at[g], width);
        gain[g] = load<Whole>(of.gain + at[g], width);
        bias[g] = load<Whole>(of.bias + at[g], width);
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int g = 0; g < G; ++g) {
            const int64_t i = r * width + at[g];
            Lanes y = (load<Whole>(x + i, width) - mean[g]) * gain[g] + bias[g];
            if (Residual) y += load<Whole>(residual + i, width);
            if (Relu) y = y < 0.0f ? Lanes{} : y;
            store<Whole>(out + i, y, width);
        }
}

// out = relu((x - mean) * gain + bias + residual). The ReLU keeps what is not a number: a network that diverges says so.
template <bool Whole, bool Residual, bool Relu, typename Number>
void apply(const Number* x, const Number* residual, Number* out, const Shape& shape, const Channels& of, int threads) {
    Pool::instance().run(shape.blocks(), threads, [&](int64_t block) {
        const int64_t i = shape.start_of(block), rows = shape.rows_of(block);
        const Number* added = Residual ? residual + i : nullptr;
        each_group<4>(shape.vectors(), [&](int64_t v, auto group) {
            apply_block<decltype(group)::value, Whole, Residual, Relu>(x + i, added, out + i, rows, shape, v, of);
        });
    });
}

// The gradient behind the ReLU.
template <Mask M, bool Whole, typename Number>
TANDEM_INLINE Lanes passed(const Number* grad, const Number* out, int64_t width, const Lanes& centred,
                           const Lanes& gain, const Lanes& bias) {
    const Lanes g = load<Whole>(grad, width);
    if (M == Mask::none) return g;
    const Lanes y = M == Mask::output ? load<Whole>(out, width) : centred * gain + bias;
    return y <= 0.0f ? Lanes{} : g;
}

// Sums of a block over the gradient behind the ReLU, and over it times the centred input; the gradient of the residual.
template <int G, Mask M, bool Whole, bool Residual, typename Number>
void gradient_sums(const Number* grad, const Number* x, const Number* out, Number* residual, int64_t rows,
                   const Shape& shape, int64_t first, const Channels& of, float* sum, float* dot) {
    const int64_t width = shape.channels;
    int64_t at[G];
    Lanes total[G], product[G], mean[G], gain[G], bias[G];
    for (int g = 0; g < G; ++g) {
        at[g] = shape.at(first + g);
        total[g] = product[g] = Lanes{};
        mean[g] = load<Whole>(of.mean + at[g], width);
        gain[g] = load<Whole>(of.gain + at[g], width);
        bias[g] = load<Whole>(of.bias + at[g], width);
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int g = 0; g < G; ++g) {
            const int64_t i = r * width + at[g];
            const Lanes centred = load<Whole>(x + i, width) - mean[g];
            const Lanes passing = passed<M, Whole>(grad + i, out + i, width, centred, gain[g], bias[g]);
            total[g] += passing;
            product[g] += passing * centred;
            if (Residual) store<Whole>(residual + i, passing, width);
        }
    for (int g = 0; g < G; ++g) {
        store<Whole>(sum + at[g], total[g], width);
        store<Whole>(dot + at[g], product[g], width);
    }
}

// Gradients of weight and bias, before the weight: sums over all rows of g and of g * (x - mean) / std.
template <Mask M, bool Whole, bool Residual, typename Number>
void reduce(const Number* grad, const Number* x, const Number* out, Number* residual, const Shape& shape,
            const Channels& of, double* sum, double* dot, int threads) {
    const int64_t blocks = shape.blocks(), channels = shape.channels;
    float* parts = scratch<struct Gradients, float>(2 * blocks * channels);
    Pool::instance().run(blocks, threads, [&](int64_t block) {
        float *sums = parts + 2 * block * channels, *dots = sums + channels;
        const int64_t i = shape.start_of(block), rows = shape.rows_of(block);
        Number* to = Residual ? residual + i : nullptr;
        const Number* y = M == Mask::output ? out + i : x + i;  // unread but for Mask::output
        each_group<2>(shape.vectors(), [&](int64_t v, auto group) {
            gradient_sums<decltype(group)::value, M, Whole, Residual>(grad + i, x + i, y, to, rows, shape, v, of, sums,
                                                                      dots);
        });
    });
    std::fill(sum, sum + channels, 0.0);
    std::fill(dot, dot + channels, 0.0);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t c = 0; c < channels; ++c) {
            sum[c] += parts[2 * block * channels + c];
            dot[c] += parts[(2 * block + 1) * channels + c];
        }
    for (int64_t c = 0; c < channels; ++c) dot[c] *= static_cast<double>(of.inv_std[c]);
}

template <int G, Mask M, bool Whole, typename Number>
void gradient_block(const Number* grad, const Number* x, const Number* out, Number* dx, int64_t rows,
                    const Shape& shape, int64_t first, const Channels& of, const float* slope, const float* offset) {
    const int64_t width = shape.channels;
    int64_t at[G];
    Lanes mean[G], gain[G], bias[G], tilt[G], moved[G];
    for (int g = 0; g < G; ++g) {
        at[g] = shape.at(first + g);
        mean[g] = load<Whole>(of.mean + at[g], width);
        gain[g] = load<Whole>(of.gain + at[g], width);
        bias[g] = load<Whole>(of.bias + at[g], width);
        tilt[g] = load<Whole>(slope + at[g], width);
        moved[g] = load<Whole>(offset + at[g], width);
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int g = 0; g < G; ++g) {
            const int64_t i = r * width + at[g];
            const Lanes centred = load<Whole>(x + i, width) - mean[g];
            const Lanes passing = passed<M, Whole>(grad + i, out + i, width, centred, gain[g], bias[g]);
            store<Whole>(dx + i, gain[g] * passing + centred * tilt[g] + moved[g], width);
        }
}

// dx = gain * g + (x - mean) * slope + offset; where the residual has g already, `grad` is that and M is none.
template <Mask M, bool Whole, typename Number>
void apply_gradient(const Number* grad, const Number* x, const Number* out, Number* dx, const Shape& shape,
                    const Channels& of, const float* slope, const float* offset, int threads) {
    Pool::instance().run(shape.blocks(), threads, [&](int64_t block) {
        const int64_t i = shape.start_of(block), rows = shape.rows_of(block);
        const Number* y = M == Mask::output ? out + i : x + i;  // unread but for Mask::output
        each_group<2>(shape.vectors(), [&](int64_t v, auto group) {
            gradient_block<decltype(group)::value, M, Whole>(grad + i, x + i, y, dx + i, rows, shape, v, of, slope,
                                                             offset);
        });
    });
}

// Gain and bias of each channel; a missing weight counts 1, a missing bias 0.
inline void affine(const float* weight, const float* bias, const float* inv_std, int64_t channels, float* gain,
                   float* shift) {
    for (int64_t c = 0; c < channels; ++c) {
        gain[c] = inv_std[c] * (weight == nullptr ? 1.0f : weight[c]);
        shift[c] = bias == nullptr ? 0.0f : bias[c];
    }
}

// Arguments as of `tandem_norm_forward`.
template <typename Number>
void forward(const Number* x, const Number* residual, Number* out, const Shape& shape, bool relu, const float* weight,
             const float* bias, float* running_mean, float* running_var, double rate, double eps, bool training,
             float* mean, float* inv_std, int threads) {
    const int64_t channels = shape.channels;
    double* sums = scratch<struct Statistics, double>(2 * channels);
    double *middle = sums, *variance = sums + channels;
    const bool whole = channels >= kWidth;
    if (training) {
        if (whole) statistics<true>(x, shape, middle, variance, threads);
        else statistics<false>(x, shape, middle, variance, threads);
        const double unbiased = static_cast<double>(shape.rows) / static_cast<double>(shape.rows - 1);
        for (int64_t c = 0; running_mean != nullptr && c < channels; ++c) {
            running_mean[c] = static_cast<float>((1 - rate) * running_mean[c] + rate * middle[c]);
            running_var[c] = static_cast<float>((1 - rate) * running_var[c] + rate * unbiased * variance[c]);
        }
    } else {
        std::copy(running_mean, running_mean + channels, middle);
        std::copy(running_var, running_var + channels, variance);
    }
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] = static_cast<float>(middle[c]);
        inv_std[c] = static_cast<float>(1.0 / std::sqrt(variance[c] + eps));
    }
    float* gain = scratch<struct Affine, float>(2 * channels);
    affine(weight, bias, inv_std, channels, gain, gain + channels);
    const Channels of{mean, inv_std, gain, gain + channels};
    const auto act = [&](auto is_whole) {
        constexpr bool W = decltype(is_whole)::value;
        if (residual != nullptr && relu) apply<W, true, true>(x, residual, out, shape, of, threads);
        else if (residual != nullptr) apply<W, true, false>(x, residual, out, shape, of, threads);
        else if (relu) apply<W, false, true>(x, residual, out, shape, of, threads);
        else apply<W, false, false>(x, residual, out, shape, of, threads);
    };
    if (whole) act(std::true_type{});
    else act(std::false_type{});
}

// Arguments as of `tandem_norm_backward`.
template <bool Whole, typename Number>
void backward(const Number* grad, const Number* x, const Number* out, Number* dx, Number* residual,
              const Shape& shape, bool relu, const float* weight, const float* bias, const float* mean,
              const float* inv_std, bool training, float* d_weight, float* d_bias, int threads) {
    const int64_t channels = shape.channels;
    float* gain = scratch<struct Affine, float>(4 * channels);
    float *shift = gain + channels, *slope = shift + channels, *offset = slope + channels;
    affine(weight, bias, inv_std, channels, gain, shift);
    const Channels of{mean, inv_std, gain, shift};
    double* sums = scratch<struct Statistics, double>(2 * channels);
    double *sum = sums, *dot = sums + channels;
    if (!relu) reduce<Mask::none, Whole, false>(grad, x, out, residual, shape, of, sum, dot, threads);
    else if (residual != nullptr) reduce<Mask::output, Whole, true>(grad, x, out, residual, shape, of, sum, dot, threads);
    else if (out != nullptr) reduce<Mask::output, Whole, false>(grad, x, out, residual, shape, of, sum, dot, threads);
    else reduce<Mask::input, Whole, false>(grad, x, out, residual, shape, of, sum, dot, threads);
    for (int64_t c = 0; c < channels; ++c) {
        if (d_weight != nullptr) d_weight[c] = static_cast<float>(dot[c]);
        if (d_bias != nullptr) d_bias[c] = static_cast<float>(sum[c]);
        // In evaluation mode the statistics are constants, and nothing is taken off.
        const double share = training ? -static_cast<double>(gain[c]) / static_cast<double>(shape.rows) : 0.0;
        slope[c] = static_cast<float>(share * dot[c] * inv_std[c]);
        offset[c] = static_cast<float>(share * sum[c]);
    }
    if (dx == nullptr) return;
    if (!relu) apply_gradient<Mask::none, Whole>(grad, x, out, dx, shape, of, slope, offset, threads);
    else if (residual != nullptr) apply_gradient<Mask::none, Whole>(residual, x, out, dx, shape, of, slope, offset, threads);
    else if (out != nullptr) apply_gradient<Mask::output, Whole>(grad, x, out, dx, shape, of, slope, offset, threads);
    else apply_gradient<Mask::input, Whole>(grad, x, out, dx, shape, of, slope, offset, threads);
}

}  // namespace tandem::norm

extern "C" {

// Rows that are normalised, with a residual added (null: none) and a ReLU (by `relu`).
//
// x, residual, out: [rows, channels], float32 or, by `bfloat16`, bfloat16; out is none of the others.
// weight, bias: [channels] or null. running_mean, running_var: [channels] or null; in training moved by `rate` towards
// the batch's mean and unbiased variance, else the statistics to normalise with.
// statistics: [2, channels], receives mean and 1 / standard deviation as they were used.
// At least one channel; in training at least two rows.
void tandem_norm_forward(const void* x, const void* residual, void* out, int64_t rows, int64_t channels, int bfloat16,
                         int relu, const float* weight, const float* bias, float* running_mean, float* running_var,
                         double rate, double eps, int training, float* statistics, int threads) {
    using namespace tandem::norm;
    const auto run = [&](auto number) {
        using Number = decltype(number);
        forward(static_cast<const Number*>(x), static_cast<const Number*>(residual), static_cast<Number*>(out),
                Shape{rows, channels}, relu != 0, weight, bias, running_mean, running_var, rate, eps, training != 0,
                statistics, statistics + channels, threads);
    };
    if (bfloat16) run(tandem::Bf16{});
    else run(float{});
}

// Gradients of what `tandem_norm_forward` took.
//
// grad, x, dx, residual: [rows, channels] of the same type; `grad` is that of the output. dx receives the gradient of x
// (null: not wanted). Where there are both a residual and a ReLU, `residual` receives the residual's gradient and `out`
// is the output, which says what the ReLU let through; else they may be null (without ReLU the residual's gradient is
// `grad` itself).
// statistics: as they came. d_weight, d_bias: [channels], receive gradients (null: not wanted).
void tandem_norm_backward(const void* grad, const void* x, const void* out, void* dx, void* residual, int64_t rows,
                          int64_t channels, int bfloat16, int relu, const float* weight, const float* bias,
                          const float* statistics, int training, float* d_weight, float* d_bias, int threads) {
    using namespace tandem::norm;
    const auto run = [&](auto number) {
        using Number = decltype(number);
        const auto with = [&](auto whole) {
            backward<decltype(whole)::value>(
                static_cast<const Number*>(grad), static_cast<const Number*>(x), static_cast<const Number*>(out),
                static_cast<Number*>(dx), static_cast<Number*>(residual), Shape{rows, channels}, relu != 0, weight,
                bias, statistics, statistics + channels, training != 0, d_weight, d_bias, threads);
        };
        if (channels >= kWidth) with(std::true_type{});
        else with(std::false_type{});
    };
    if (bfloat16) run(tandem::Bf16{});
    else run(float{});
}
}
