// Matrix products in float and double on the plain cores: the fit wants the roundings of float and
// double, and its products are large in all three extents, so that arithmetic bounds them. A block
// has a tile of kRows x kColumns sums in registers, kThreadRows x kThreadColumns a thread; the next
// kDepth columns of a and rows of b come to registers while the ones before are multiplied, and
// go to the other half of the shared memory.
//
//            n0 .. kColumns                     a thread's sums: vectors of 16 bytes, kVector wide,
//         +-----------+                         thread (ty, tx) has rows ty * kVector of every
//   k     |  b tile   |                         band and columns tx * kVector of every strip, so
//         +-----------+                         that a warp reads shared memory without conflicts
//   +---+ +-----------+
//   | a | |   sums    |  m0 .. kRows
//   +---+ +-----------+
//
// Bound of an H200: 67 TFLOP/s in float, 34 in double.
#include <algorithm>
#include <cstdint>

#include "engine/compress/cuda/fit_kernels.h"

namespace ultrasketch::cuda {
namespace {

template <typename Sum>
struct TileOf;
template <>
struct TileOf<float> {
  static constexpr int kRows = 128, kColumns = 128, kDepth = 16, kThreadRows = 8,
                       kThreadColumns = 8;
};
template <>
struct TileOf<double> {
  static constexpr int kRows = 128, kColumns = 64, kDepth = 8, kThreadRows = 8, kThreadColumns = 4;
};

constexpr int kThreads = 256;

// Which part of the sum over k is not zero.
enum class Range {
  kAll,
  kUpToColumn,  // k <= n: b is upper triangular
  kFromColumn,  // k >= n: b is the transpose of one
};

template <typename A, typename B, typename Out>
struct Arguments {
  int64_t m, n, k;
  double factor;
  const A* a;
  int64_t a_stride;
  const B* b;
  int64_t b_stride;
  double keep;
  Out* out;
  int64_t out_stride;
  const float* bias;  // [n] or null
  bool upper;         // leave out tiles below the diagonal
  int64_t slice;      // rows of the sum over k for each blockIdx.z; 0: all
  int64_t out_slice;  // elements between the slices' outputs
};

template <int kWidth, typename Sum>
__device__ __forceinline__ void LoadVector(const Sum* from, Sum (&to)[kWidth]) {
  if constexpr (sizeof(Sum) == 4) {
    const float4 value = *reinterpret_cast<const float4*>(from);
    to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
  } else {
    const double2 value = *reinterpret_cast<const double2*>(from);
    to[0] = value.x, to[1] = value.y;
  }
}

// kATransposed: a is [k, m]; kBTransposed: b is [n, k].
template <typename A, typename B, typename Sum, typename Out, bool kATransposed, bool kBTransposed,
          Range kRange>
__global__ void __launch_bounds__(kThreads, 2) ProductKernel(const Arguments<A, B, Out> arguments) {
  using Tile = TileOf<Sum>;
  constexpr int kVector = 16 / sizeof(Sum);
  constexpr int kBands = Tile::kThreadRows / kVector;
  constexpr int kStrips = Tile::kThreadColumns / kVector;
  constexpr int kBandRows = Tile::kRows / kBands;
  constexpr int kStripColumns = Tile::kColumns / kStrips;
  constexpr int kThreadsAcross = Tile::kColumns / Tile::kThreadColumns;
  static_assert(kThreadsAcross * (Tile::kRows / Tile::kThreadRows) == kThreads);
  constexpr int kALoads = Tile::kRows * Tile::kDepth / kThreads;
  constexpr int kBLoads = Tile::kColumns * Tile::kDepth / kThreads;
  // Padded against conflicts of the stores, which for one of the two orders go down a column.
  __shared__ __align__(16) Sum a_tile[2][Tile::kDepth][Tile::kRows + kVector];
  __shared__ __align__(16) Sum b_tile[2][Tile::kDepth][Tile::kColumns + kVector];

  const int64_t m0 = static_cast<int64_t>(blockIdx.y) * Tile::kRows;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x) * Tile::kColumns;
  if (arguments.upper && m0 >= n0 + Tile::kColumns) return;
  int64_t k_begin = 0;
  int64_t k_end = arguments.k;
  if constexpr (kRange == Range::kUpToColumn) k_end = min(k_end, n0 + Tile::kColumns);
  if constexpr (kRange == Range::kFromColumn) k_begin = min(n0, k_end);
  if (arguments.slice > 0) {
    k_begin = blockIdx.z * arguments.slice;
    k_end = min(k_end, k_begin + arguments.slice);
  }

  const int tid = static_cast<int>(threadIdx.x);
  const int tx = tid % kThreadsAcross;
  const int ty = tid / kThreadsAcross;
  Sum sums[Tile::kThreadRows][Tile::kThreadColumns] = {};
  Sum a_next[kALoads];
  Sum b_next[kBLoads];

  const auto fetch = [&](int64_t k0) {
#pragma unroll
    for (int i = 0; i < kALoads; ++i) {
      const int index = tid + i * kThreads;
      const int row = kATransposed ? index % Tile::kRows : index / Tile::kDepth;
      const int depth = kATransposed ? index / Tile::kRows : index % Tile::kDepth;
      const int64_t m = m0 + row;
      const int64_t k = k0 + depth;
      const bool inside = m < arguments.m && k < k_end;
      const int64_t place = kATransposed ? k * arguments.a_stride + m : m * arguments.a_stride + k;
      a_next[i] = inside ? static_cast<Sum>(arguments.a[place]) : Sum{0};
    }
#pragma unroll
    for (int i = 0; i < kBLoads; ++i) {
      const int index = tid + i * kThreads;
      const int column = kBTransposed ? index / Tile::kDepth : index % Tile::kColumns;
      const int depth = kBTransposed ? index % Tile::kDepth : index / Tile::kColumns;
      const int64_t n = n0 + column;
      const int64_t k = k0 + depth;
      const bool inside = n < arguments.n && k < k_end;
      const int64_t place = kBTransposed ? n * arguments.b_stride + k : k * arguments.b_stride + n;
      b_next[i] = inside ? static_cast<Sum>(arguments.b[place]) : Sum{0};
    }
  };
  const auto store = [&](int half) {
#pragma unroll
    for (int i = 0; i < kALoads; ++i) {
      const int index = tid + i * kThreads;
      const int row = kATransposed ? index % Tile::kRows : index / Tile::kDepth;
      const int depth = kATransposed ? index / Tile::kRows : index % Tile::kDepth;
      a_tile[half][depth][row] = a_next[i];
    }
#pragma unroll
    for (int i = 0; i < kBLoads; ++i) {
      const int index = tid + i * kThreads;
      const int column = kBTransposed ? index / Tile::kDepth : index % Tile::kColumns;
      const int depth = kBTransposed ? index % Tile::kDepth : index / Tile::kColumns;
      b_tile[half][depth][column] = b_next[i];
    }
  };

  fetch(k_begin);
  store(0);
  __syncthreads();
  int half = 0;
  for (int64_t k0 = k_begin; k0 < k_end; k0 += Tile::kDepth) {
    const bool more = k0 + Tile::kDepth < k_end;
    if (more) fetch(k0 + Tile::kDepth);
#pragma unroll
    for (int depth = 0; depth < Tile::kDepth; ++depth) {
      Sum a_values[kBands][kVector];
      Sum b_values[kStrips][kVector];
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        LoadVector<kVector>(&a_tile[half][depth][band * kBandRows + ty * kVector], a_values[band]);
      }
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        LoadVector<kVector>(&b_tile[half][depth][strip * kStripColumns + tx * kVector],
                            b_values[strip]);
      }
#pragma unroll
      for (int row = 0; row < Tile::kThreadRows; ++row) {
#pragma unroll
        for (int column = 0; column < Tile::kThreadColumns; ++column) {
          sums[row][column] +=
              a_values[row / kVector][row % kVector] * b_values[column / kVector][column % kVector];
        }
      }
    }
    half ^= 1;
    if (more) store(half);
    __syncthreads();
  }

  Out* const out = arguments.out + blockIdx.z * arguments.out_slice;
#pragma unroll
  for (int row = 0; row < Tile::kThreadRows; ++row) {
    const int64_t m = m0 + row / kVector * kBandRows + ty * kVector + row % kVector;
    if (m >= arguments.m) continue;
#pragma unroll
    for (int column = 0; column < Tile::kThreadColumns; ++column) {
      const int64_t n = n0 + column / kVector * kStripColumns + tx * kVector + column % kVector;
      if (n >= arguments.n) continue;
      Out& place = out[m * arguments.out_stride + n];
      if constexpr (sizeof(Out) == 4) {
        float value = sums[row][column];
        if (arguments.bias != nullptr) value += arguments.bias[n];
        place = value;
      } else {
        double value = arguments.factor * static_cast<double>(sums[row][column]);
        if (arguments.keep != 0) value += arguments.keep * place;
        place = value;
      }
    }
  }
}

template <typename Sum, bool kATransposed, bool kBTransposed, Range kRange, typename A, typename B,
          typename Out>
void Launch(const Arguments<A, B, Out>& arguments, int64_t num_slices, cudaStream_t stream) {
  if (arguments.m == 0 || arguments.n == 0) return;
  using Tile = TileOf<Sum>;
  const dim3 grid(static_cast<unsigned>((arguments.n + Tile::kColumns - 1) / Tile::kColumns),
                  static_cast<unsigned>((arguments.m + Tile::kRows - 1) / Tile::kRows),
                  static_cast<unsigned>(num_slices));
  ProductKernel<A, B, Sum, Out, kATransposed, kBTransposed, kRange>
      <<<grid, kThreads, 0, stream>>>(arguments);
}

// out += the slices' sums, in order.
__global__ void AddSlicesKernel(const float* slices, int64_t num_slices, int64_t size,
                                double* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= size) return;
  double sum = out[index];
  for (int64_t slice = 0; slice < num_slices; ++slice) {
    sum += static_cast<double>(slices[slice * size + index]);
  }
  out[index] = sum;
}

// Tiles that keep all multiprocessors of a large device busy.
constexpr int64_t kManyTiles = 1024;

}  // namespace

void LaunchForward(const float* x, const float* weights, const float* bias, int64_t num_tokens,
                   int64_t rows, int64_t cols, float* y, cudaStream_t stream) {
  Launch<float, false, true, Range::kAll>(
      Arguments<float, float, float>{num_tokens, rows, cols, 1, x, cols, weights, cols, 0, y, rows,
                                     bias, false, 0, 0},
      1, stream);
}

void LaunchOuterProducts(const float* a, int64_t a_width, const float* b, int64_t b_width,
                         int64_t num_tokens, bool upper, double* out, void* workspace,
                         int64_t workspace_bytes, cudaStream_t stream) {
  const int64_t size = a_width * b_width;
  const int64_t tiles = ((a_width + 127) / 128) * ((b_width + 127) / 128);
  const int64_t num_slices = (num_tokens + kSliceTokens - 1) / kSliceTokens;
  const int64_t fitting = workspace_bytes / (size * static_cast<int64_t>(sizeof(float)));
  const int64_t at_once = std::min({num_slices, fitting, std::max<int64_t>(1, kManyTiles / tiles)});
  if (at_once < 2) {
    for (int64_t first = 0; first < num_tokens; first += kSliceTokens) {
      const int64_t count = std::min(kSliceTokens, num_tokens - first);
      Launch<float, true, false, Range::kAll>(
          Arguments<float, float, double>{a_width, b_width, count, 1, a + first * a_width, a_width,
                                          b + first * b_width, b_width, 1, out, b_width, nullptr,
                                          upper, 0, 0},
          1, stream);
    }
    return;
  }
  auto* const slices = static_cast<float*>(workspace);
  for (int64_t first = 0; first < num_slices; first += at_once) {
    const int64_t slices_now = std::min(at_once, num_slices - first);
    const int64_t first_token = first * kSliceTokens;
    const int64_t count = std::min(slices_now * kSliceTokens, num_tokens - first_token);
    // Also below the diagonal: the sums there are read.
    Launch<float, true, false, Range::kAll>(
        Arguments<float, float, float>{a_width, b_width, count, 1, a + first_token * a_width,
                                       a_width, b + first_token * b_width, b_width, 0, slices,
                                       b_width, nullptr, false, kSliceTokens, size},
        slices_now, stream);
    AddSlicesKernel<<<static_cast<unsigned>((size + 255) / 256), 256, 0, stream>>>(
        slices, slices_now, size, out);
  }
}

template <typename A>
void LaunchProduct(int64_t m, int64_t n, int64_t k, double factor, const A* a, int64_t a_stride,
                   const double* b, int64_t b_stride, double keep, double* out, int64_t out_stride,
                   cudaStream_t stream) {
  Launch<double, false, false, Range::kAll>(
      Arguments<A, double, double>{m, n, k, factor, a, a_stride, b, b_stride, keep, out, out_stride,
                                   nullptr, false, 0, 0},
      1, stream);
}
template void LaunchProduct(int64_t, int64_t, int64_t, double, const float*, int64_t, const double*,
                            int64_t, double, double*, int64_t, cudaStream_t);
template void LaunchProduct(int64_t, int64_t, int64_t, double, const double*, int64_t,
                            const double*, int64_t, double, double*, int64_t, cudaStream_t);

void LaunchProductUpper(int64_t m, int64_t n, const double* a, int64_t a_stride, const double* b,
                        int64_t b_stride, bool transposed, double* out, int64_t out_stride,
                        cudaStream_t stream) {
  const Arguments<double, double, double> arguments = {
      m, n, n, 1, a, a_stride, b, b_stride, 0, out, out_stride, nullptr, false, 0, 0};
  if (transposed) {
    Launch<double, false, true, Range::kFromColumn>(arguments, 1, stream);
  } else {
    Launch<double, false, false, Range::kUpToColumn>(arguments, 1, stream);
  }
}

void LaunchTransposedProduct(int64_t m, int64_t n, int64_t k, double factor, const double* a,
                             int64_t a_stride, const double* b, int64_t b_stride, bool upper,
                             double keep, double* out, int64_t out_stride, cudaStream_t stream) {
  Launch<double, true, false, Range::kAll>(
      Arguments<double, double, double>{m, n, k, factor, a, a_stride, b, b_stride, keep, out,
                                        out_stride, nullptr, upper, 0, 0},
      1, stream);
}

}  // namespace ultrasketch::cuda
