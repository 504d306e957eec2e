// The fit of a folding sketch (fold_fit.h has the method): rounding with error feedback, a warp a
// row, and the changes of single levels, a block a row.
#include <cmath>
#include <cstdint>

#include "engine/compress/cuda/fit_kernels.h"
#include "engine/compress/cuda/reduce.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 256;

unsigned Blocks(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

// Sum over the columns c of group p and d of group q of s(c) s(d) input[c][d].
__device__ double FoldedElement(const FoldGroups& groups, const double* input, int64_t cols,
                                double prior, int64_t p, int64_t q) {
  double sum = 0;
  for (int i = groups.first[p]; i < groups.first[p + 1]; ++i) {
    const double* const row = input + static_cast<int64_t>(groups.columns[i]) * cols;
    double row_sum = 0;
    for (int j = groups.first[q]; j < groups.first[q + 1]; ++j) {
      row_sum += static_cast<double>(groups.signs[j]) * row[groups.columns[j]];
    }
    sum += static_cast<double>(groups.signs[i]) * row_sum;
  }
  return p == q ? sum + prior * (groups.first[p + 1] - groups.first[p]) : sum;
}

__global__ void FoldDiagonalKernel(const FoldGroups groups, const double* input, int64_t cols,
                                   double prior, double* diagonal) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (group < groups.groups) {
    diagonal[group] = FoldedElement(groups, input, cols, prior, group, group);
  }
}

__global__ void FoldInputKernel(const FoldGroups groups, const double* input, int64_t cols,
                                double prior, double* folded) {
  const int64_t q = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t p = blockIdx.y;
  if (q < groups.groups) {
    folded[p * groups.groups + q] = FoldedElement(groups, input, cols, prior, p, q);
  }
}

__global__ void FoldCrossKernel(const FoldGroups groups, const double* cross, const float* weights,
                                int64_t cols, double prior, double* folded) {
  const int64_t group = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (group >= groups.groups) return;
  const int64_t row = blockIdx.x;
  double sum = 0;
  for (int i = groups.first[group]; i < groups.first[group + 1]; ++i) {
    const int64_t place = row * cols + groups.columns[i];
    sum += static_cast<double>(groups.signs[i]) *
           (cross[place] + prior * static_cast<double>(weights[place]));
  }
  folded[row * groups.groups + group] = sum;
}

__global__ void MeanMagnitudesKernel(const double* matrix, int64_t width, double* scales) {
  __shared__ double scratch[kThreads / 32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    sum += fabs(matrix[blockIdx.x * width + i]);
  }
  sum = BlockSum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) scales[blockIdx.x] = sum / static_cast<double>(width);
}

// The odd number nearest to `value`, at most `limit` in magnitude.
__device__ __forceinline__ double NearestLevel(double value, double limit) {
  return fmin(fmax(2 * floor(value / 2) + 1, -limit), limit);
}

constexpr int kRound = static_cast<int>(kRoundBlock);
constexpr int kRoundWarps = 8;

// A warp has a row: its lanes have positions lane and lane + 32 of the block.
__global__ void __launch_bounds__(32 * kRoundWarps)
    RoundKernel(int64_t first, int count, int64_t rows, int64_t size, const double* inverse_factor,
                const double* units, const double* limits, const double* scales,
                const double* theta, int16_t* levels, double* errors) {
  __shared__ double factor[kRound][kRound];
  __shared__ double unit[kRound];
  __shared__ double limit[kRound];
  for (int i = static_cast<int>(threadIdx.x); i < kRound * kRound; i += 32 * kRoundWarps) {
    const int row = i / kRound;
    const int column = i % kRound;
    factor[row][column] =
        row < count && column < count ? inverse_factor[(first + row) * size + first + column] : 0.0;
  }
  for (int i = static_cast<int>(threadIdx.x); i < count; i += 32 * kRoundWarps) {
    unit[i] = units[first + i];
    limit[i] = limits[first + i];
  }
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRoundWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double scale = scales[row];
  const double* const row_theta = theta + row * size + first;
  double low = lane < count ? row_theta[lane] : 0.0;
  double high = lane + 32 < count ? row_theta[lane + 32] : 0.0;
  double low_error = 0;
  double high_error = 0;
  double low_level = 0;
  double high_level = 0;
  for (int position = 0; position < count; ++position) {
    const double value = __shfl_sync(0xffffffffu, position < 32 ? low : high, position % 32);
    const double step = scale * unit[position];
    const double level = NearestLevel(step > 0 ? value / step : value, limit[position]);
    const double error = (value - step * level) / factor[position][position];
    if (lane > position) low -= error * factor[position][lane];
    if (lane + 32 > position) high -= error * factor[position][lane + 32];
    if (lane == position) {
      low_error = error;
      low_level = level;
    } else if (lane + 32 == position) {
      high_error = error;
      high_level = level;
    }
  }
  if (lane < count) {
    levels[row * size + first + lane] = static_cast<int16_t>(low_level);
    errors[row * kRound + lane] = low_error;
  }
  if (lane + 32 < count) {
    levels[row * size + first + lane + 32] = static_cast<int16_t>(high_level);
    errors[row * kRound + lane + 32] = high_error;
  }
}

__global__ void LevelWeightsKernel(const int16_t* levels, const double* units, int64_t size,
                                   int64_t count, double* weights) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < count) weights[index] = units[index % size] * static_cast<double>(levels[index]);
}

constexpr int kImproveThreads = 128;
constexpr int kImproveWarps = kImproveThreads / 32;

// Coordinate descent on a row's levels, in order of positions: a thread looks at one of
// kImproveThreads positions; the first that is to change does, and those behind it look again. A
// product is only touched by the thread that looks at its position.
__global__ void __launch_bounds__(kImproveThreads)
    ImproveKernel(const double* input, const double* cross_rows, const double* units,
                  const double* limits, int64_t size, int num_passes, bool in_shared,
                  double* product_rows, int16_t* level_rows, float* scales) {
  extern __shared__ double shared[];
  __shared__ double scratch[kImproveWarps];
  __shared__ int first_of_warp[2][kImproveWarps];
  __shared__ double change;
  const int64_t row = blockIdx.x;
  const int tid = static_cast<int>(threadIdx.x);
  const double* const cross = cross_rows + row * size;
  int16_t* const levels = level_rows + row * size;
  double* products = product_rows + row * size;
  if (in_shared) {
    for (int64_t i = tid; i < size; i += kImproveThreads) shared[i] = products[i];
    products = shared;
  }
  const auto best_scale = [&] {
    double norm = 0;
    double dot = 0;
    for (int64_t i = tid; i < size; i += kImproveThreads) {
      const double weight = units[i] * static_cast<double>(levels[i]);
      norm += weight * products[i];
      dot += weight * cross[i];
    }
    norm = BlockSum<kImproveThreads>(norm, scratch);
    dot = BlockSum<kImproveThreads>(dot, scratch);
    return norm > 0 ? fmax(0.0, dot / norm) : 0.0;
  };
  double scale = best_scale();
  int turn = 0;
  for (int pass = 0; pass < num_passes && scale > 0; ++pass) {
    bool changed = false;
    for (int64_t first = 0; first < size; first += kImproveThreads) {
      const int64_t k = first + tid;
      const bool inside = k < size;
      const double unit = inside ? units[k] : 1.0;
      const double limit = inside ? limits[k] : 1.0;
      const double wanted = inside ? cross[k] / scale : 0.0;
      const double curvature = inside ? unit * input[k * size + k] : 1.0;
      double level = inside ? static_cast<double>(levels[k]) : 0.0;
      int next = 0;  // positions before it have been looked at
      while (true) {
        double to = level;
        if (inside && tid >= next) {
          const double best = level + (wanted - products[k]) / curvature;
          to = NearestLevel(best, limit);
          if (to != level && fabs(to - best) >= fabs(level - best)) to = level;
        }
        const unsigned wants = __ballot_sync(0xffffffffu, to != level);
        turn ^= 1;
        if (tid % 32 == 0) {
          first_of_warp[turn][tid / 32] =
              wants != 0 ? tid + __ffs(static_cast<int>(wants)) - 1 : kImproveThreads;
        }
        __syncthreads();
        int chosen = kImproveThreads;
#pragma unroll
        for (int warp = 0; warp < kImproveWarps; ++warp) {
          chosen = min(chosen, first_of_warp[turn][warp]);
        }
        if (chosen == kImproveThreads) break;
        if (tid == chosen) {
          change = (to - level) * unit;
          level = to;
          levels[k] = static_cast<int16_t>(level);
        }
        __syncthreads();
        const double factor = change;
        const double* const input_row = input + (first + chosen) * size;
        for (int64_t i = tid; i < size; i += kImproveThreads) products[i] += factor * input_row[i];
        next = chosen + 1;
        changed = true;
      }
    }
    __syncthreads();
    scale = best_scale();
    if (!changed) break;
  }
  if (tid == 0) {
    const auto value = static_cast<float>(scale);
    scales[row] = isfinite(value) ? value : 0.0f;
  }
}

__global__ void PermuteLevelsKernel(const int16_t* levels, const int* order, int64_t size,
                                    int64_t count, int16_t* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < count) out[index / size * size + order[index % size]] = levels[index];
}

__global__ void RowDotsKernel(const double* products, const float* weights, int64_t cols,
                              double* sums) {
  __shared__ double scratch[kThreads / 32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    const int64_t place = blockIdx.x * cols + i;
    sum += products[place] * static_cast<double>(weights[place]);
  }
  sum = BlockSum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// A block of 32 x 8 threads has 32 columns, every eighth row a thread.
__global__ void ColumnDotsKernel(const float* weights, const double* cross, int64_t rows,
                                 int64_t cols, double* sums) {
  __shared__ double partial[8][32];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double sum = 0;
  if (column < cols) {
    for (int64_t row = threadIdx.y; row < rows; row += 8) {
      sum += static_cast<double>(weights[row * cols + column]) * cross[row * cols + column];
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < cols) {
    for (int part = 1; part < 8; ++part) sum += partial[part][threadIdx.x];
    sums[column] = sum;
  }
}

__global__ void MultiplyKernel(const double* values, int64_t count, double* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < count) out[index] *= values[index];
}

__global__ void MatrixVectorKernel(const double* matrix, int64_t size, const double* x, double* y) {
  __shared__ double scratch[kThreads / 32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    sum += matrix[blockIdx.x * size + i] * x[i];
  }
  sum = BlockSum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

__global__ void TransposedMatrixVectorKernel(const double* matrix, int64_t size, const double* x,
                                             double* y) {
  __shared__ double partial[8][32];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double sum = 0;
  if (column < size) {
    for (int64_t row = threadIdx.y; row < size; row += 8)
      sum += matrix[row * size + column] * x[row];
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < size) {
    for (int part = 1; part < 8; ++part) sum += partial[part][threadIdx.x];
    y[column] = sum;
  }
}

}  // namespace

void LaunchFoldDiagonal(const FoldGroups& groups, const double* input, int64_t cols, double prior,
                        double* diagonal, cudaStream_t stream) {
  FoldDiagonalKernel<<<Blocks(groups.groups), kThreads, 0, stream>>>(groups, input, cols, prior,
                                                                     diagonal);
}

void LaunchFoldInput(const FoldGroups& groups, const double* input, int64_t cols, double prior,
                     double* folded, cudaStream_t stream) {
  FoldInputKernel<<<dim3(Blocks(groups.groups), static_cast<unsigned>(groups.groups)), kThreads, 0,
                    stream>>>(groups, input, cols, prior, folded);
}

void LaunchFoldCross(const FoldGroups& groups, const double* cross, const float* weights,
                     int64_t rows, int64_t cols, double prior, double* folded,
                     cudaStream_t stream) {
  FoldCrossKernel<<<dim3(static_cast<unsigned>(rows), Blocks(groups.groups)), kThreads, 0,
                    stream>>>(groups, cross, weights, cols, prior, folded);
}

void LaunchMeanMagnitudes(const double* matrix, int64_t rows, int64_t width, double* scales,
                          cudaStream_t stream) {
  MeanMagnitudesKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(matrix, width, scales);
}

void LaunchRound(int64_t first, int64_t count, int64_t rows, int64_t size,
                 const double* inverse_factor, const double* units, const double* limits,
                 const double* scales, const double* theta, int16_t* levels, double* errors,
                 cudaStream_t stream) {
  RoundKernel<<<static_cast<unsigned>((rows + kRoundWarps - 1) / kRoundWarps), 32 * kRoundWarps, 0,
                stream>>>(first, static_cast<int>(count), rows, size, inverse_factor, units, limits,
                          scales, theta, levels, errors);
}

void LaunchLevelWeights(const int16_t* levels, const double* units, int64_t rows, int64_t size,
                        double* weights, cudaStream_t stream) {
  LevelWeightsKernel<<<Blocks(rows * size), kThreads, 0, stream>>>(levels, units, size, rows * size,
                                                                   weights);
}

void LaunchImprove(const double* input, const double* cross, const double* units,
                   const double* limits, int64_t rows, int64_t size, int num_passes,
                   double* products, int16_t* levels, float* scales, int max_shared_bytes,
                   cudaStream_t stream) {
  // Some is the kernel's own.
  const int64_t bytes = size * static_cast<int64_t>(sizeof(double));
  const bool in_shared = bytes + 1024 <= max_shared_bytes;
  if (in_shared) {
    static_cast<void>(cudaFuncSetAttribute(
        ImproveKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  ImproveKernel<<<static_cast<unsigned>(rows), kImproveThreads,
                  in_shared ? static_cast<size_t>(bytes) : 0, stream>>>(
      input, cross, units, limits, size, num_passes, in_shared, products, levels, scales);
}

void LaunchPermuteLevels(const int16_t* levels, const int* order, int64_t rows, int64_t size,
                         int16_t* out, cudaStream_t stream) {
  PermuteLevelsKernel<<<Blocks(rows * size), kThreads, 0, stream>>>(levels, order, size,
                                                                    rows * size, out);
}

void LaunchRowDots(const double* products, const float* weights, int64_t rows, int64_t cols,
                   double* sums, cudaStream_t stream) {
  RowDotsKernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(products, weights, cols,
                                                                      sums);
}

void LaunchColumnDots(const float* weights, const double* cross, int64_t rows, int64_t cols,
                      double* sums, cudaStream_t stream) {
  ColumnDotsKernel<<<static_cast<unsigned>((cols + 31) / 32), dim3(32, 8), 0, stream>>>(
      weights, cross, rows, cols, sums);
}

void LaunchMultiply(const double* values, int64_t count, double* out, cudaStream_t stream) {
  MultiplyKernel<<<Blocks(count), kThreads, 0, stream>>>(values, count, out);
}

void LaunchMatrixVector(const double* matrix, int64_t size, bool transposed, const double* x,
                        double* y, cudaStream_t stream) {
  if (transposed) {
    TransposedMatrixVectorKernel<<<static_cast<unsigned>((size + 31) / 32), dim3(32, 8), 0,
                                   stream>>>(matrix, size, x, y);
  } else {
    MatrixVectorKernel<<<static_cast<unsigned>(size), kThreads, 0, stream>>>(matrix, size, x, y);
  }
}

}  // namespace ultrasketch::cuda
