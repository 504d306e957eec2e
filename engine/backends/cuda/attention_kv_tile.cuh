// KV tiles in shared memory, copied there asynchronously and laid out so that lanes read them
// without bank conflicts. For head dimensions of up to kDims, multiples of 8.
//
//   keys    [64 keys][kDims]    16-byte parts of a row; odd keys swap their halves of 64 bytes
//   values  [kDims][64 keys]    16-byte parts of a row; part p of dimension d is where (p ^ (2 *
//                               (d % 4) | d % 2)) is, so that neither a run's copies nor the reads
//                               of two dimensions meet in a bank
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_KV_TILE_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_KV_TILE_CUH_

#include "engine/backends/cuda/attention_tile.cuh"

namespace ultrasketch::cuda {

template <int kDims>
struct KvTileLayout {
  static constexpr int kPartBytes = 16;
  static constexpr int kKeyBytes = kKvTileKeys * kDims * 2;
  static constexpr int kBytes = 2 * kKeyBytes;

  static __device__ int KeyOffset(int key, int part) {
    const int swap = kDims % 64 == 0 ? key % 2 * 4 : 0;
    return key * kDims * 2 + (part ^ swap) * kPartBytes;
  }
  static __device__ int ValueOffset(int dim, int part) {
    return kKeyBytes + dim * kKvTileKeys * 2 + (part ^ (2 * (dim % 4) | dim % 2)) * kPartBytes;
  }
};

// Dimensions of keys past head_dim are multiplied by zeros, so they must be numbers.
template <int kDims>
__device__ inline void ClearPadding(int head_dim, uint8_t* stage, int thread, int num_threads) {
  const int first = head_dim / 8;
  const int count = kDims / 8 - first;
#pragma unroll 1
  for (int index = thread; index < kKvTileKeys * count; index += num_threads) {
    *reinterpret_cast<uint4*>(
        stage + KvTileLayout<kDims>::KeyOffset(index / count, first + index % count)) = {};
  }
}

// Copies the keys and values of a sequence to stages: the work of thread `thread` of kThreads. What
// is the same for each run is computed once.
template <int kDims, int kThreads>
class KvTileCopier {
 public:
  __device__ KvTileCopier(const Tile& tile, const AttentionArguments& arguments, int thread)
      : block_table_(arguments.block_table + tile.item.first_block),
        head_dim_(tile.geometry.head_dim),
        block_size_(tile.geometry.block_size) {
    const int64_t head_stride = int64_t{block_size_} * head_dim_;
    block_stride_ = tile.geometry.num_kv_heads * head_stride;
    const int dim = thread / 2;
    const int part = thread % 2;
    keys_ = static_cast<const __half*>(arguments.cache.keys) + tile.kv_head * head_stride +
            thread * kPartHalves;
    values_ = static_cast<const __half*>(arguments.cache.values) + tile.kv_head * head_stride +
              dim * block_size_ + part * kPartHalves;
    value_offset_ = Stage::ValueOffset(dim, part);
    const int parts = head_dim_ / kPartHalves;
    num_passes_ = (kRunKeys * parts - thread + kThreads - 1) / kThreads;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int index = thread + pass * kThreads;
      key_offsets_[pass] = Stage::KeyOffset(index / parts, index % parts);
    }
  }

  // Looks up where the KV tile from `first_key` on lies in the cache, as far as it holds keys
  // before `max_keys`.
  __device__ void Find(int first_key, int max_keys) {
    num_runs_ = (max_keys - first_key + kRunKeys - 1) / kRunKeys;
    int block = first_key / block_size_;
    first_slot_ = first_key - block * block_size_;
    int slot = first_slot_;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      if (run < num_runs_) blocks_[run] = block_table_[block];
      Advance(slot, block);
    }
  }

  // Begins to copy runs [first_run, end_run) of the KV tile that was found.
  __device__ void Copy(int first_run, int end_run, uint8_t* stage) const {
    int slot = first_slot_;
    int block = 0;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      if (run >= first_run && run < end_run && run < num_runs_) {
        const __half* keys = keys_ + blocks_[run] * block_stride_ + slot * head_dim_;
        const __half* values = values_ + blocks_[run] * block_stride_ + slot;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
          if (pass >= num_passes_) break;
          CopyAsync16(stage + key_offsets_[pass] + run * (kRunKeys * kDims * 2),
                      keys + pass * (kThreads * kPartHalves));
          // A run is two parts; which places they trade is within these bits.
          CopyAsync16(stage + (value_offset_ ^ (run * 2 * Stage::kPartBytes)) +
                          pass * (kThreads / 2 * kKvTileKeys * 2),
                      values + pass * (kThreads / 2) * block_size_);
        }
      }
      Advance(slot, block);
    }
  }

 private:
  using Stage = KvTileLayout<kDims>;
  static constexpr int kPartHalves = Stage::kPartBytes / 2;
  static constexpr int kRuns = kKvTileKeys / kRunKeys;
  static constexpr int kPasses = (kRunKeys * kDims / kPartHalves + kThreads - 1) / kThreads;

  // To the next run: blocks hold whole runs.
  __device__ void Advance(int& slot, int& block) const {
    slot += kRunKeys;
    if (slot == block_size_) {
      slot = 0;
      ++block;
    }
  }

  const int32_t* block_table_;
  const __half* keys_;
  const __half* values_;
  int64_t block_stride_;
  int head_dim_;
  int block_size_;
  int num_passes_;
  int key_offsets_[kPasses];
  int value_offset_;
  int num_runs_ = 0;
  int first_slot_ = 0;
  int32_t blocks_[kRuns];
};

// One warp: the scores of a KV tile in `stage` for the tile's queries, of kTiles of its key tiles
// from `first_tile` on. Where a lane reads is one place of each kind and constants from there on.
template <int kDims, int kTiles = kKeyTiles>
__device__ inline void ScoreKvTile(const __half* queries, const uint8_t* stage,
                                   float (&scores)[kTiles][4], int first_tile = 0) {
  constexpr int kTileBytes = 2 * kDims * 2;
  const unsigned lane = threadIdx.x % 32;
  const int low_row = static_cast<int>(lane / 4);
  const int quad = static_cast<int>(lane % 4);
  const __half* const query = queries + low_row * RowStride(kDims) + quad * 8;
  // Key tiles are two keys apart, which trade their parts alike.
  const int first_key =
      KvTileLayout<kDims>::KeyOffset(KeyOfColumn(0, low_row), quad) + first_tile * kTileBytes;
  constexpr int kPartBytes = kHeadDimTile * 2;
#pragma unroll
  for (int part = 0; part < kDims / kHeadDimTile; ++part) {
    const uint4 low = *reinterpret_cast<const uint4*>(query + part * kHeadDimTile);
    const uint4 high =
        *reinterpret_cast<const uint4*>(query + part * kHeadDimTile + 8 * RowStride(kDims));
    const int place = kDims % 64 == 0
                          ? (first_key ^ (part % 2 * kPartBytes)) + part / 2 * (2 * kPartBytes)
                          : first_key + part * kPartBytes;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const uint4 key = *reinterpret_cast<const uint4*>(stage + place + j * kTileBytes);
      AddScores(low, high, key, scores[j]);
    }
  }
}

// Zeros for the values of keys [count, 64) of a KV tile in `stage`: what lies in the cache past a
// sequence's end may be anything, and is multiplied by weights of zero.
template <int kDims>
__device__ inline void ClearValues(int count, uint8_t* stage, int thread, int num_threads) {
  constexpr int kPartKeys = KvTileLayout<kDims>::kPartBytes / 2;
#pragma unroll 1
  for (int dim = thread; dim < kDims; dim += num_threads) {
#pragma unroll 1
    for (int part = count / kPartKeys; part < kKvTileKeys / kPartKeys; ++part) {
      auto* const values =
          reinterpret_cast<uint4*>(stage + KvTileLayout<kDims>::ValueOffset(dim, part));
      *values = KeepHalves(*values, count - part * kPartKeys);
    }
  }
}

// One warp: calls `take(i, sums)` with the weighted values of a KV tile in `stage`, of eight
// dimensions from 8 * (first_tile + i) on, for i below kTiles. Those of keys that are not the
// sequence's are zero.
template <int kDims, int kTiles = kDims / 8, typename Take>
__device__ inline void WeighKvTile(const KvTileWeights& weights, const uint8_t* stage,
                                   const Take& take, int first_tile = 0) {
  constexpr int kTileBytes = 8 * kKvTileKeys * 2;
  const unsigned lane = threadIdx.x % 32;
  const int dim = first_tile * 8 + static_cast<int>(lane / 4);
  const int part = static_cast<int>(lane % 4 * 2);
  // Eight dimensions on, parts are where they are here.
  const uint8_t* const lows = stage + KvTileLayout<kDims>::ValueOffset(dim, part);
  const uint8_t* const highs = stage + KvTileLayout<kDims>::ValueOffset(dim, part + 1);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const uint4 low = *reinterpret_cast<const uint4*>(lows + tile * kTileBytes);
    const uint4 high = *reinterpret_cast<const uint4*>(highs + tile * kTileBytes);
    float sums[4] = {};
    WeighValues(weights, low, high, sums);
    take(tile, sums);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_KV_TILE_CUH_
