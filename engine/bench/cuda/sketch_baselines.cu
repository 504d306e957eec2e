#include "engine/bench/cuda/sketch_baselines.h"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_product.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = 256;

unsigned NumBlocks(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

// Two neighbouring elements a thread.
__global__ void IndexSelect(const __nv_bfloat16* values, const int64_t* indices, int64_t rows,
                            int64_t cols, int64_t buckets, __nv_bfloat162* out) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair >= rows * cols / 2) return;
  const int64_t row = pair / (cols / 2);
  const int64_t column = pair % (cols / 2) * 2;
  const __nv_bfloat16* source = values + row * buckets;
  out[pair] = __halves2bfloat162(source[indices[column]], source[indices[column + 1]]);
}

__global__ void Abs(const __nv_bfloat162* in, int64_t num_pairs, __nv_bfloat162* out) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair < num_pairs) out[pair] = __habs2(in[pair]);
}

__global__ void Greater(const __nv_bfloat162* a, const __nv_bfloat162* b, int64_t num_pairs,
                        uchar2* out) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair >= num_pairs) return;
  const __nv_bfloat162 x = a[pair];
  const __nv_bfloat162 y = b[pair];
  out[pair] = make_uchar2(x.x > y.x, x.y > y.y);
}

__global__ void Where(const uchar2* which, const __nv_bfloat162* yes, const __nv_bfloat162* no,
                      int64_t num_pairs, __nv_bfloat162* out) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair >= num_pairs) return;
  const uchar2 take = which[pair];
  const __nv_bfloat162 a = yes[pair];
  const __nv_bfloat162 b = no[pair];
  out[pair] = __halves2bfloat162(take.x != 0 ? a.x : b.x, take.y != 0 ? a.y : b.y);
}

__global__ void ScaleRows(const __nv_bfloat16* scales, int64_t rows, int64_t cols,
                          __nv_bfloat162* matrix) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair >= rows * cols / 2) return;
  const __nv_bfloat16 scale = scales[pair / (cols / 2)];
  matrix[pair] = __hmul2(matrix[pair], __halves2bfloat162(scale, scale));
}

constexpr int kDecodeWarps = 8;
constexpr int kHalves = kKTileColumns / kHalfKTile;

// A block decodes 32 rows: their sketch in shared memory, half a K tile at a time a warp. Grid:
// (splits of the K tiles, row blocks).
__global__ void WholeDecode(const __grid_constant__ PackedMatrix matrix, __nv_bfloat16* out) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ __align__(16) uint8_t tiles[kDecodeWarps / kHalves][kWeightBlockBytes];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int64_t block = blockIdx.y;
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  auto* words = reinterpret_cast<uint32_t*>(shared);
  CopyBuckets(matrix, block, 1, thread, kDecodeWarps * 32, words);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();

  const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
  const int half = warp % kHalves;
  const int column = half * kHalfKTile + lane;
  const int stride = kDecodeWarps / kHalves * static_cast<int>(gridDim.x);
  const int first_k_tile = static_cast<int>(blockIdx.x) * (kDecodeWarps / kHalves) + warp / kHalves;
  ColumnQueue columns(matrix.buckets, num_k_tiles, shared + words_per_block * 4, warp, lane, column,
                      first_k_tile, stride);
  uint8_t* tile = tiles[warp / kHalves];
  int k_tile = first_k_tile;
  const auto begin_k_tile = [&](int) { return tile; };
  const auto write_half = [&] {
    __syncwarp();
    // 16 lanes a row.
    const int pair = half * kHalfKTile + lane % 16 * 2;
    for (int row = lane / 16; row < kBucketBlockRows; row += 2) {
      const int64_t matrix_row = block * kBucketBlockRows + row;
      if (matrix_row >= matrix.rows) break;
      const auto weight = [&](int at) {
        const auto* value =
            reinterpret_cast<const __half*>(tile + WeightPieceOffset(at, row / 8) + row % 8 * 2);
        return __float2bfloat16(__half2float(*value));
      };
      *reinterpret_cast<__nv_bfloat162*>(out + (matrix_row * num_k_tiles + k_tile) * kKTileColumns +
                                         pair) = __halves2bfloat162(weight(pair), weight(pair + 1));
    }
    __syncwarp();
    k_tile += stride;
  };
  DecodeKTiles<1>(static_cast<const BucketPart*>(matrix.buckets.parts), matrix.buckets.num_parts,
                  words, words_per_block, column, first_k_tile, stride, columns, begin_k_tile,
                  write_half);
}

}  // namespace

cudaError_t LaunchNaiveDecode(const NaiveSketch& sketch, cudaStream_t stream) {
  const int64_t num_pairs = sketch.rows * sketch.cols / 2;
  const unsigned blocks = NumBlocks(num_pairs);
  const auto pairs = [](__nv_bfloat16* matrix) {
    return reinterpret_cast<__nv_bfloat162*>(matrix);
  };
  auto* larger = reinterpret_cast<uchar2*>(sketch.larger);
  for (int64_t hash_row = 0; hash_row < sketch.hash_rows; ++hash_row) {
    __nv_bfloat162* gathered = pairs(hash_row == 0 ? sketch.best : sketch.gathered);
    IndexSelect<<<blocks, kThreads, 0, stream>>>(
        sketch.values + hash_row * sketch.rows * sketch.buckets,
        sketch.indices + hash_row * sketch.cols, sketch.rows, sketch.cols, sketch.buckets,
        gathered);
    if (hash_row == 0) continue;
    Abs<<<blocks, kThreads, 0, stream>>>(gathered, num_pairs, pairs(sketch.magnitudes[0]));
    Abs<<<blocks, kThreads, 0, stream>>>(pairs(sketch.best), num_pairs,
                                         pairs(sketch.magnitudes[1]));
    Greater<<<blocks, kThreads, 0, stream>>>(pairs(sketch.magnitudes[0]),
                                             pairs(sketch.magnitudes[1]), num_pairs, larger);
    Where<<<blocks, kThreads, 0, stream>>>(larger, gathered, pairs(sketch.best), num_pairs,
                                           pairs(sketch.best));
  }
  ScaleRows<<<blocks, kThreads, 0, stream>>>(sketch.scales, sketch.rows, sketch.cols,
                                             pairs(sketch.best));
  return cudaGetLastError();
}

cudaError_t LaunchWholeDecode(const PackedMatrix& matrix, __nv_bfloat16* out, cudaStream_t stream) {
  constexpr unsigned kShares = 4;
  const auto shared_bytes =
      static_cast<int>(matrix.buckets.words_per_block * 4 +
                       ColumnQueue::SharedBytes(kDecodeWarps, matrix.buckets.entry_words));
  const cudaError_t error =
      cudaFuncSetAttribute(WholeDecode, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(kShares,
                  static_cast<unsigned>((matrix.rows + kBucketBlockRows - 1) / kBucketBlockRows));
  WholeDecode<<<grid, kDecodeWarps * 32, static_cast<size_t>(shared_bytes), stream>>>(matrix, out);
  return cudaGetLastError();
}

}  // namespace ultrasketch::cuda
