// Pieces of keys and values in shared memory, copied there asynchronously and laid out so that
// lanes read them without bank conflicts. For head dimensions of up to kDims, multiples of 8.
//
//   keys    [64 keys][kDims]    16-byte parts of a row; odd keys swap their halves of 64 bytes
//   values  [kDims][64 keys]    16-byte parts of a row; odd dimensions swap neighbours
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_STAGE_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_STAGE_CUH_

#include "engine/backends/cuda/attention_tile.cuh"

namespace ultrasketch::cuda {

template <int kDims>
struct PieceStage {
  static constexpr int kPartBytes = 16;
  static constexpr int kKeyBytes = kAttentionPiece * kDims * 2;
  static constexpr int kBytes = 2 * kKeyBytes;

  static __device__ int KeyOffset(int key, int part) {
    const int swap = kDims % 64 == 0 ? key % 2 * 4 : 0;
    return key * kDims * 2 + (part ^ swap) * kPartBytes;
  }
  static __device__ int ValueOffset(int dim, int part) {
    return kKeyBytes + dim * kAttentionPiece * 2 + (part ^ (dim % 2)) * kPartBytes;
  }
};

// Dimensions of keys past head_dim are multiplied by zeros, so they must be numbers.
template <int kDims>
__device__ inline void ClearPadding(int head_dim, uint8_t* stage, int thread, int num_threads) {
  const int first = head_dim / 8;
  const int count = kDims / 8 - first;
  for (int index = thread; index < kAttentionPiece * count; index += num_threads) {
    *reinterpret_cast<uint4*>(
        stage + PieceStage<kDims>::KeyOffset(index / count, first + index % count)) = {};
  }
}

// Begins to copy runs [first_run, end_run) of the piece from `first_key` on, as far as they hold
// keys of the tile's sequence before `most_keys`.
template <int kDims>
__device__ inline void CopyRuns(const Tile& tile, const AttentionArguments& arguments,
                                int first_key, int most_keys, int first_run, int end_run,
                                uint8_t* stage, int thread, int num_threads) {
  using Stage = PieceStage<kDims>;
  const int head_dim = tile.geometry.head_dim;
  const int block_size = tile.geometry.block_size;
  const int parts = head_dim / 8;
  for (int run = first_run; run < end_run; ++run) {
    const int position = first_key + run * kRunKeys;
    if (position >= most_keys) return;
    const int64_t base = RunBase(tile, arguments.block_table, position);
    const int slot = position % block_size;
    const __half* keys =
        static_cast<const __half*>(arguments.cache.keys) + base + int64_t{slot} * head_dim;
    const __half* values = static_cast<const __half*>(arguments.cache.values) + base + slot;
    for (int index = thread; index < kRunKeys * parts; index += num_threads) {
      CopyAsync16(stage + Stage::KeyOffset(run * kRunKeys + index / parts, index % parts),
                  keys + index * 8);
      const int dim = index / 2;
      const int part = index % 2;
      CopyAsync16(stage + Stage::ValueOffset(dim, 2 * run + part),
                  values + int64_t{dim} * block_size + part * 8);
    }
  }
}

// One warp: the scores of a piece in `stage` for the tile's queries.
template <int kDims>
__device__ inline void ScorePiece(const __half* queries, const uint8_t* stage,
                                  float (&scores)[kKeyTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int low_row = lane / 4;
  const int quad = lane % 4;
#pragma unroll
  for (int part = 0; part < kDims / kHeadDimStep; ++part) {
    const __half* query = queries + low_row * RowStride(kDims) + part * kHeadDimStep + quad * 8;
    const uint4 low = *reinterpret_cast<const uint4*>(query);
    const uint4 high = *reinterpret_cast<const uint4*>(query + 8 * RowStride(kDims));
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      const uint4 key = *reinterpret_cast<const uint4*>(
          stage + PieceStage<kDims>::KeyOffset(KeyOfColumn(j, low_row), part * 4 + quad));
      AddScores(low, high, key, scores[j]);
    }
  }
}

// One warp: calls `take(tile of eight dimensions, sums)` with the weighted values of a piece in
// `stage`. Of its keys those from `count` on are not the sequence's.
template <int kDims, typename Take>
__device__ inline void WeighPiece(const PieceWeights& weights, const uint8_t* stage, int count,
                                  const Take& take) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int quad = lane % 4;
  const bool is_whole = count >= kAttentionPiece;
  const int run_count = count - quad * kRunKeys;
#pragma unroll
  for (int tile = 0; tile < kDims / 8; ++tile) {
    const int dim = tile * 8 + lane / 4;
    uint4 low =
        *reinterpret_cast<const uint4*>(stage + PieceStage<kDims>::ValueOffset(dim, 2 * quad));
    uint4 high =
        *reinterpret_cast<const uint4*>(stage + PieceStage<kDims>::ValueOffset(dim, 2 * quad + 1));
    if (!is_whole) {
      low = KeepHalves(low, run_count);
      high = KeepHalves(high, run_count - 8);
    }
    float sums[4] = {};
    WeighValues(weights, low, high, sums);
    take(tile, sums);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_STAGE_CUH_
