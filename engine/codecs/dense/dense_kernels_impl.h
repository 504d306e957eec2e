// The dense product, for the instruction set of the file that includes this.
//
//   tile of R rows and T tokens: R * T accumulators of 16 lanes
//   per 16 columns: R loads and widenings of weights, T loads of x, R * T multiply-adds
//
// One token: bound by reading the weights; 8 rows are read at once, as 8 streams. Many tokens:
// bound by the multiply-adds; tokens are taken in blocks whose inputs stay in the second-level
// cache, and the weights of a tile are read from the first-level cache for every tile of tokens but
// the first.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_KERNELS_IMPL_H_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_KERNELS_IMPL_H_

#include "engine/base/vector16.h"
#include "engine/codecs/dense/dense_kernels.h"

namespace ultrasketch {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorRows = 8;  // for one token
constexpr int kTileRows = 4;
constexpr int kTileTokens = 6;
#else
constexpr int kVectorRows = 4;
constexpr int kTileRows = 2;
constexpr int kTileTokens = 3;
#endif

// One token and short rows: the processor's own prefetching starts anew with every row and comes
// too late, so the weights are asked for this far ahead, in the order in which they lie. Of long
// rows it keeps up by itself.
constexpr int64_t kShortRowBytes = 4096;
constexpr int64_t kBytesAhead = 16384;

// For the step at byte `offset` of the rows of a tile, `step_bytes` of each.
template <int kRows>
inline void PrefetchAhead(const uint8_t* weights, int64_t offset, int64_t step_bytes) {
  const uint8_t* ahead = weights + kRows * offset + kBytesAhead;
  for (int64_t byte = 0; byte < kRows * step_bytes; byte += 64) {
    __builtin_prefetch(ahead + byte, /*rw=*/0, /*locality=*/2);
  }
}

// Floats of x that a block of tokens may have: 512 KiB.
constexpr int64_t kBlockFloats = 128 * 1024;

template <typename Elements, int kRows, int kTokens>
void MultiplyTile(const uint8_t* weights, int64_t cols, const float* x, int64_t x_stride,
                  bool accumulate, float* y, int64_t y_stride) {
  const int64_t row_bytes = cols * Elements::kBytes;
  Float16 sums[kTokens][kRows] = {};
  int64_t k = 0;
  for (; k + 16 <= cols; k += 16) {
    Float16 w[kRows];
    if constexpr (kTokens == 1 && kRows == kVectorRows) {
      if (row_bytes < kShortRowBytes) {
        PrefetchAhead<kRows>(weights, k * Elements::kBytes, 16 * Elements::kBytes);
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      w[row] = Elements::LoadAsFloat(weights + row * row_bytes + k * Elements::kBytes);
    }
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
      const Float16 values = Load(x + token * x_stride + k);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        sums[token][row] = MultiplyAdd(w[row], values, sums[token][row]);
      }
    }
  }
  if (k < cols) {
    uint8_t tails[kRows][16 * Elements::kBytes] = {};
    for (int row = 0; row < kRows; ++row) {
      __builtin_memcpy(tails[row], weights + row * row_bytes + k * Elements::kBytes,
                       static_cast<uint64_t>((cols - k) * Elements::kBytes));
    }
    for (int token = 0; token < kTokens; ++token) {
      const Float16 values = LoadPartial(x + token * x_stride + k, cols - k);
      for (int row = 0; row < kRows; ++row) {
        sums[token][row] = MultiplyAdd(Elements::LoadAsFloat(tails[row]), values, sums[token][row]);
      }
    }
  }
  for (int token = 0; token < kTokens; ++token) {
    float* out = y + token * y_stride;
    for (int row = 0; row < kRows; ++row) {
      const float sum = Sum(sums[token][row]);
      out[row] = accumulate ? out[row] + sum : sum;
    }
  }
}

template <typename Elements, int kRows, int kTokens>
void MultiplyRows(const uint8_t* weights, int64_t cols, const float* x, int64_t x_stride,
                  int64_t num_tokens, bool accumulate, float* y, int64_t y_stride) {
  int64_t token = 0;
  for (; token + kTokens <= num_tokens; token += kTokens) {
    MultiplyTile<Elements, kRows, kTokens>(weights, cols, x + token * x_stride, x_stride,
                                           accumulate, y + token * y_stride, y_stride);
  }
  for (; token < num_tokens; ++token) {
    MultiplyTile<Elements, kRows, 1>(weights, cols, x + token * x_stride, x_stride, accumulate,
                                     y + token * y_stride, y_stride);
  }
}

template <typename Elements>
void Multiply(const uint8_t* weights, int64_t num_rows, int64_t cols, const float* x,
              int64_t x_stride, int64_t num_tokens, bool accumulate, float* y, int64_t y_stride) {
  const int64_t row_bytes = cols * Elements::kBytes;
  if (num_tokens == 1) {
    int64_t row = 0;
    for (; row + kVectorRows <= num_rows; row += kVectorRows) {
      MultiplyTile<Elements, kVectorRows, 1>(weights + row * row_bytes, cols, x, x_stride,
                                             accumulate, y + row, y_stride);
    }
    for (; row < num_rows; ++row) {
      MultiplyTile<Elements, 1, 1>(weights + row * row_bytes, cols, x, x_stride, accumulate,
                                   y + row, y_stride);
    }
    return;
  }
  int64_t block_tokens = kBlockFloats / cols / kTileTokens * kTileTokens;
  if (block_tokens < kTileTokens) block_tokens = kTileTokens;
  for (int64_t first = 0; first < num_tokens; first += block_tokens) {
    const int64_t count = num_tokens - first < block_tokens ? num_tokens - first : block_tokens;
    const float* block_x = x + first * x_stride;
    float* block_y = y + first * y_stride;
    int64_t row = 0;
    for (; row + kTileRows <= num_rows; row += kTileRows) {
      MultiplyRows<Elements, kTileRows, kTileTokens>(weights + row * row_bytes, cols, block_x,
                                                     x_stride, count, accumulate, block_y + row,
                                                     y_stride);
    }
    for (; row < num_rows; ++row) {
      MultiplyRows<Elements, 1, kTileTokens>(weights + row * row_bytes, cols, block_x, x_stride,
                                             count, accumulate, block_y + row, y_stride);
    }
  }
}

}  // namespace
}  // namespace ultrasketch

// Defines the table of kernels called `variable`.
#define US_DEFINE_DENSE_KERNELS(variable, name)                                       \
  namespace ultrasketch {                                                             \
  const DenseKernels variable = {name, Multiply<F32Elements>, Multiply<Bf16Elements>, \
                                 Multiply<F16Elements>};                              \
  }

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_KERNELS_IMPL_H_
