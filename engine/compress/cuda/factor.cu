// Cholesky factors and their inverses in double.
//
// H^-1 = R^T R for the upper R = J (U^-1)^T J, where J H J = U^T U and J reverses the order of
// rows: one factorization and one inverse of a triangle, where factorizing the inverse of H takes
// two factorizations and the inverse of a full matrix, and loses digits twice.
#include <cstdint>

#include "engine/compress/cuda/fit_kernels.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kBlock = static_cast<int>(kFactorBlock);

__global__ void ReverseKernel(const double* matrix, int64_t size, double damping, double* out) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = blockIdx.y;
  if (column >= size) return;
  const double value = matrix[(size - 1 - row) * size + size - 1 - column];
  out[row * size + column] = row == column ? value + damping : value;
}

// Replaces the block of count x count at `matrix` by its factor U, and writes the inverse of U,
// zero-filled to kBlock x kBlock. One block of threads.
__global__ void FactorBlockKernel(double* matrix, int64_t stride, int count, double* inverse,
                                  int* failed) {
  __shared__ double block[kBlock][kBlock + 1];
  const int tid = static_cast<int>(threadIdx.x);
  const int num_threads = static_cast<int>(blockDim.x);
  for (int i = tid; i < kBlock * kBlock; i += num_threads) {
    const int row = i / kBlock;
    const int column = i % kBlock;
    block[row][column] =
        row < count && column < count && row <= column ? matrix[row * stride + column] : 0.0;
  }
  __syncthreads();
  for (int k = 0; k < count; ++k) {
    double pivot = block[k][k];
    if (!(pivot > 0)) {
      if (tid == 0) *failed = 1;
      pivot = 1;
    }
    const double root = sqrt(pivot);
    __syncthreads();
    for (int column = k + tid; column < count; column += num_threads) {
      block[k][column] = column == k ? root : block[k][column] / root;
    }
    __syncthreads();
    for (int i = tid; i < kBlock * kBlock; i += num_threads) {
      const int row = i / kBlock;
      const int column = i % kBlock;
      if (row > k && column >= row && column < count) {
        block[row][column] -= block[k][row] * block[k][column];
      }
    }
    __syncthreads();
  }
  for (int i = tid; i < count * count; i += num_threads) {
    const int row = i / count;
    const int column = i % count;
    if (row <= column) matrix[row * stride + column] = block[row][column];
  }
  // A thread has a column of the inverse.
  if (tid < kBlock) {
    double column[kBlock];
#pragma unroll
    for (int row = kBlock - 1; row >= 0; --row) {
      double sum = row == tid ? 1.0 : 0.0;
#pragma unroll
      for (int k = row + 1; k < kBlock; ++k) sum -= block[row][k] * column[k];
      column[row] = row < count && tid < count && row <= tid ? sum / block[row][row] : 0.0;
    }
#pragma unroll
    for (int row = 0; row < kBlock; ++row) inverse[row * kBlock + tid] = column[row];
  }
}

// Puts the blocks' inverses on the diagonal of a matrix that is zero elsewhere.
__global__ void SetDiagonalBlocksKernel(const double* inverses, int64_t size, double* matrix) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlock;
  const double* const inverse = inverses + blockIdx.x * kBlock * kBlock;
  for (int i = static_cast<int>(threadIdx.x); i < kBlock * kBlock;
       i += static_cast<int>(blockDim.x)) {
    const int64_t row = first + i / kBlock;
    const int64_t column = first + i % kBlock;
    if (row < size && column < size) matrix[row * size + column] = inverse[i];
  }
}

// out[i][j] = matrix[size - 1 - j][size - 1 - i], by tiles that are read and written in rows.
__global__ void ReverseTransposedKernel(const double* matrix, int64_t size, double* out) {
  __shared__ double tile[32][33];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * 32;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * 32;
  for (int y = static_cast<int>(threadIdx.y); y < 32; y += static_cast<int>(blockDim.y)) {
    const int64_t row = column0 + y;
    const int64_t column = row0 + threadIdx.x;
    if (row < size && column < size) {
      tile[y][threadIdx.x] = matrix[(size - 1 - row) * size + size - 1 - column];
    }
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < 32; y += static_cast<int>(blockDim.y)) {
    const int64_t row = row0 + y;
    const int64_t column = column0 + threadIdx.x;
    if (row < size && column < size) out[row * size + column] = tile[threadIdx.x][y];
  }
}

__global__ void CompleteSymmetricKernel(int64_t size, double* matrix) {
  __shared__ double tile[32][33];
  if (blockIdx.y > blockIdx.x) return;
  // The tile at (y, x) above the diagonal goes to (x, y).
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * 32;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * 32;
  for (int y = static_cast<int>(threadIdx.y); y < 32; y += static_cast<int>(blockDim.y)) {
    const int64_t row = row0 + y;
    const int64_t column = column0 + threadIdx.x;
    if (row < size && column < size) tile[y][threadIdx.x] = matrix[row * size + column];
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < 32; y += static_cast<int>(blockDim.y)) {
    const int64_t row = column0 + y;
    const int64_t column = row0 + threadIdx.x;
    if (row < size && column < row) matrix[row * size + column] = tile[threadIdx.x][y];
  }
}

__global__ void AddToDiagonalKernel(int64_t size, double value, double* matrix) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) matrix[i * size + i] += value;
}

__global__ void CopyDiagonalKernel(const double* matrix, int64_t size, double* diagonal) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) diagonal[i] = matrix[i * size + i];
}

unsigned Blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace

int64_t InverseFactorScratchBytes(int64_t size) {
  const int64_t blocks = (size + kFactorBlock - 1) / kFactorBlock;
  return static_cast<int64_t>(sizeof(double)) *
         (2 * size * size + blocks * kFactorBlock * kFactorBlock + size * kFactorBlock);
}

void LaunchInverseFactor(const double* matrix, int64_t size, double damping, void* scratch,
                         double* factor, int* failed, cudaStream_t stream) {
  const int64_t blocks = (size + kFactorBlock - 1) / kFactorBlock;
  constexpr int64_t kBlockSize = kFactorBlock * kFactorBlock;
  auto* const upper = static_cast<double*>(scratch);
  double* const inverse = upper + size * size;
  double* const block_inverses = inverse + size * size;
  double* const column = block_inverses + blocks * kBlockSize;

  ReverseKernel<<<dim3(Blocks(size, 256), static_cast<unsigned>(size)), 256, 0, stream>>>(
      matrix, size, damping, upper);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kFactorBlock;
    const int64_t count = size - first < kFactorBlock ? size - first : kFactorBlock;
    const int64_t left = size - first - count;
    double* const diagonal = upper + first * size + first;
    double* const block_inverse = block_inverses + block * kBlockSize;
    FactorBlockKernel<<<1, 256, 0, stream>>>(diagonal, size, static_cast<int>(count), block_inverse,
                                             failed);
    if (left == 0) break;
    // The rows beside it, by the block's inverse; then what is below them.
    double* const beside = diagonal + count;
    LaunchTransposedProduct(count, left, count, 1, block_inverse, kFactorBlock, beside, size, false,
                            0, beside, size, stream);
    LaunchTransposedProduct(left, left, count, -1, beside, size, beside, size, true, 1,
                            beside + count * size, size, stream);
  }
  // The inverse, a column of blocks at a time: X[0:j, j] = -X[0:j, 0:j] (U[0:j, j] X[j, j]).
  static_cast<void>(
      cudaMemsetAsync(inverse, 0, static_cast<size_t>(size * size) * sizeof(double), stream));
  SetDiagonalBlocksKernel<<<static_cast<unsigned>(blocks), 256, 0, stream>>>(block_inverses, size,
                                                                             inverse);
  for (int64_t block = 1; block < blocks; ++block) {
    const int64_t first = block * kFactorBlock;
    const int64_t count = size - first < kFactorBlock ? size - first : kFactorBlock;
    LaunchProduct(first, count, count, 1.0, upper + first, size,
                  block_inverses + block * kBlockSize, kFactorBlock, 0.0, column, kFactorBlock,
                  stream);
    LaunchProduct(first, count, first, -1.0, inverse, size, column, kFactorBlock, 0.0,
                  inverse + first, size, stream);
  }
  ReverseTransposedKernel<<<dim3(Blocks(size, 32), Blocks(size, 32)), dim3(32, 8), 0, stream>>>(
      inverse, size, factor);
}

void LaunchCompleteSymmetric(int64_t size, double* matrix, cudaStream_t stream) {
  CompleteSymmetricKernel<<<dim3(Blocks(size, 32), Blocks(size, 32)), dim3(32, 8), 0, stream>>>(
      size, matrix);
}

void LaunchAddToDiagonal(int64_t size, double value, double* matrix, cudaStream_t stream) {
  AddToDiagonalKernel<<<Blocks(size, 256), 256, 0, stream>>>(size, value, matrix);
}

void LaunchCopyDiagonal(const double* matrix, int64_t size, double* diagonal, cudaStream_t stream) {
  CopyDiagonalKernel<<<Blocks(size, 256), 256, 0, stream>>>(matrix, size, diagonal);
}

}  // namespace ultrasketch::cuda
