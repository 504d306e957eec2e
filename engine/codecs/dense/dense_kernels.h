// Products with uncompressed weights, one implementation per instruction set.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_KERNELS_H_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_KERNELS_H_

#include <cstdint>

namespace ultrasketch {

// y[t][r] = sum over k of w[r][k] * x[t][k], or added to y. `weights` is row-major
// [num_rows, cols] at any alignment; x has x_stride floats between tokens, y y_stride.
//
// Each output is summed in sixteen lanes, lane k % 16 taking the terms k in ascending order, and
// the lanes in a fixed tree: the same to the bit for any num_rows and num_tokens.
using DenseMultiply = void (*)(const uint8_t* weights, int64_t num_rows, int64_t cols,
                               const float* x, int64_t x_stride, int64_t num_tokens,
                               bool accumulate, float* y, int64_t y_stride);

struct DenseKernels {
  const char* name;  // "avx512", "avx2", "portable"
  DenseMultiply multiply_f32;
  DenseMultiply multiply_bf16;
  DenseMultiply multiply_f16;
};

// The fastest that this processor can run.
const DenseKernels& GetDenseKernels();

// Those of a given instruction set; null when this processor cannot run it.
const DenseKernels* FindDenseKernels(const char* name);

extern const DenseKernels kAvx512DenseKernels;
extern const DenseKernels kAvx2DenseKernels;
extern const DenseKernels kPortableDenseKernels;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_KERNELS_H_
