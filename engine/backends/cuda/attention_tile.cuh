// What the kernels of attention share: tiles of queries, and the arithmetic of a KV tile. A query's
// result is the same to the bit in each of them, as long as keys and values are numbers, so the
// order of every sum is fixed here: a KV tile's scores, its weights, its weighted values; then the
// KV tiles of a KV split in ascending order (attention_merge.cuh), then the KV splits.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_TILE_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_TILE_CUH_

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "engine/backends/cuda/attention_merge.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"

namespace ultrasketch::cuda {

inline constexpr int kKeyTiles = kKvTileKeys / 8;  // instructions have eight columns
inline constexpr int kHeadDimTile = 32;            // dimensions that two instructions sum over
inline constexpr int kRunKeys = 16;                // neighbouring keys of one block of the cache

__host__ __device__ constexpr int PaddedHeadDim(int head_dim) {
  return (head_dim + kHeadDimTile - 1) / kHeadDimTile * kHeadDimTile;
}
// Row stride of queries and keys in shared memory: an odd multiple of 64 bytes. The two rows that
// lanes read 16 bytes of at a time are in different banks.
__host__ __device__ constexpr int RowStride(int head_dim) {
  return PaddedHeadDim(head_dim) % 64 == 0 ? PaddedHeadDim(head_dim) + 32 : PaddedHeadDim(head_dim);
}

// Sixteen queries.
struct Tile {
  AttentionGeometry geometry;
  AttentionItem item;
  int kv_head;
  int first_head;  // of the query heads
  int num_heads;   // of each token

  Tile() = default;
  // `part` is one of the tiles that the query heads of all key heads are cut into.
  __device__ Tile(const AttentionGeometry& geometry_of, const AttentionItem& item_of, int part)
      : geometry(geometry_of), item(item_of) {
    kv_head = part / geometry.tiles_per_group();
    const int first_in_group = part % geometry.tiles_per_group() * geometry.heads_per_tile();
    first_head = kv_head * geometry.heads_per_group() + first_in_group;
    num_heads = min(geometry.heads_per_tile(), geometry.heads_per_group() - first_in_group);
  }

  // Row r is head r % heads_per_tile of token r / heads_per_tile.
  __device__ int TokenOf(int row) const { return row / geometry.heads_per_tile(); }
  __device__ int HeadOf(int row) const { return row % geometry.heads_per_tile(); }
  __device__ bool IsRow(int row) const {
    return TokenOf(row) < item.num_tokens && HeadOf(row) < num_heads;
  }
  __device__ int NumKeys(int row) const { return IsRow(row) ? item.num_keys + TokenOf(row) : 0; }
  __device__ int MaxKeys() const { return item.num_keys + item.num_tokens - 1; }
};

// Keys are interleaved over the columns of the scores so that each lane's weights are those of 16
// neighbouring keys, whose values it then reads in a run: column n of key tile j is key 16 * (n /
// 2) + 2 * j + n % 2 of the KV tile.
__device__ constexpr int KeyOfColumn(int key_tile, int column) {
  return column / 2 * kRunKeys + 2 * key_tile + column % 2;
}

// What queries are scaled by: scores are exponents of two.
__device__ inline float QueryScale(int head_dim) {
  return 1.44269504f / sqrtf(static_cast<float>(head_dim));  // log2(e)
}

// The tile's queries to `queries` [16][RowStride], scaled; zero where there is none. By warps
// `warp` of `num_warps`.
__device__ inline void LoadQueries(const Tile& tile, const float* qkv, __half* queries, int warp,
                                   int num_warps) {
  const AttentionGeometry& geometry = tile.geometry;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head_dim = geometry.head_dim;
  const int padded = PaddedHeadDim(head_dim);
  const float scale = QueryScale(head_dim);
#pragma unroll 1
  for (int row = warp; row < kAttentionRows; row += num_warps) {
    const bool is_row = tile.IsRow(row);
    const int64_t token = tile.item.first_token + tile.TokenOf(row);
    const float* const source =
        qkv + token * geometry.qkv_width() + int64_t{tile.first_head + tile.HeadOf(row)} * head_dim;
    __half* const out = queries + row * RowStride(head_dim);
#pragma unroll 2
    for (int i = lane; i < padded; i += 32) {
      out[i] = SaturateToHalf(is_row && i < head_dim ? source[i] * scale : 0.0f);
    }
  }
}

// Adds the products of dimensions [dim, dim + 8) of each quad of lanes: `low` and `high` are this
// lane's of queries l / 4 and l / 4 + 8, `key` of its key.
__device__ inline void AddScores(const uint4& low, const uint4& high, const uint4& key,
                                 float (&scores)[4]) {
  const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
  const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
  MmaF16(a0, {key.x, key.y}, scores);
  MmaF16(a1, {key.z, key.w}, scores);
}

// The weights of a KV tile's keys for rows l / 4 and l / 4 + 8 of lane l. The lane holds the
// weights of the 16 keys of run l % 4; maximum and sum are those of all, in each lane of the quad.
struct KvTileWeights {
  float maximum[2];
  float sum[2];
  uint32_t pairs[kKeyTiles][2];
};

// A row sees its first num_keys keys of the sequence; the KV tile begins at `first_key`. Unless
// there are rows from the ninth on, theirs are zero.
__device__ inline KvTileWeights WeighScores(float (&scores)[kKeyTiles][4], int first_key,
                                            const int (&num_keys)[2], bool has_high_rows = true) {
  const int quad = static_cast<int>(threadIdx.x) % 4;
  KvTileWeights result = {};
  if (__any_sync(0xffffffffu, first_key + kKvTileKeys > min(num_keys[0], num_keys[1]))) {
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first_key + KeyOfColumn(j, 2 * quad + i % 2) >= num_keys[i / 2]) {
          scores[j][i] = -INFINITY;
        }
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half == 1 && !has_high_rows) break;
    float maximum = -INFINITY;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      maximum = fmaxf(maximum, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
    // Keys that are not seen have weights of zero, with or without one that is.
    const float base = maximum == -INFINITY ? 0.0f : maximum;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      const __half2 pair = __floats2half2_rn(Exp2(__fsub_rn(scores[j][2 * half], base)),
                                             Exp2(__fsub_rn(scores[j][2 * half + 1], base)));
      sum = __fadd_rn(sum, __fadd_rn(__low2float(pair), __high2float(pair)));
      result.pairs[j][half] = *reinterpret_cast<const uint32_t*>(&pair);
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
    result.maximum[half] = maximum;
    result.sum[half] = sum;
  }
  return result;
}

// Halves [0, count) of eight, zeros after: what lies in the cache past a sequence's end is not its
// own and may be anything.
__device__ inline uint4 KeepHalves(const uint4& halves, int count) {
  const auto keep = [count](uint32_t pair, int first) {
    if (count <= first) return 0u;
    return count == first + 1 ? pair & 0xffffu : pair;
  };
  return {keep(halves.x, 0), keep(halves.y, 2), keep(halves.z, 4), keep(halves.w, 6)};
}

// Weighted values of eight dimensions: this lane reads dimension l / 4 of them, of its run's keys
// `low` (the first eight) and `high`; `sums` are rows l / 4 and l / 4 + 8, dimensions 2 * (l % 4)
// and the next.
__device__ inline void WeighValues(const KvTileWeights& weights, const uint4& low,
                                   const uint4& high, float (&sums)[4]) {
  const uint2 b[4] = {{low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t a[4] = {weights.pairs[2 * i][0], weights.pairs[2 * i][1],
                           weights.pairs[2 * i + 1][0], weights.pairs[2 * i + 1][1]};
    MmaF16(a, b[i], sums);
  }
}

// Where the keys and values of a run of 16 positions from `position` on lie in the cache: the first
// element of its block for the tile's key head.
__device__ inline int64_t RunBase(const Tile& tile, const int32_t* block_table, int position) {
  const AttentionGeometry& geometry = tile.geometry;
  const int64_t block = block_table[tile.item.first_block + position / geometry.block_size];
  return (block * geometry.num_kv_heads + tile.kv_head) * geometry.block_size * geometry.head_dim;
}

// Shared memory that MergeSplitsIfLast takes besides what a launch asks for.
inline constexpr int64_t kMergeSharedBytes = 128;

// Ends a block that has written a KV split's partial results, one of more than kMaxUnmergedSplits:
// the last such block of the tile merges them to `attended`.
template <int kThreads>
__device__ inline void MergeSplitsIfLast(const Tile& tile, const AttentionArguments& arguments) {
  const auto num_splits = static_cast<int>(NumKvSplits(tile.MaxKeys()));
  if (!arguments.merges_splits || num_splits <= kMaxUnmergedSplits) return;
  __shared__ bool is_last;
  const int first_slot = tile.item.slot - tile.item.split;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    int32_t* const finished = arguments.finished + int64_t{first_slot} * gridDim.y + blockIdx.y;
    is_last = atomicAdd(finished, 1) == num_splits - 1;
    if (is_last) *finished = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();

  const AttentionGeometry& geometry = arguments.geometry;
  const PartialLayout layout(geometry);
  const float* const partials = arguments.partials + int64_t{first_slot} * layout.split_floats;
  const int num_pairs = geometry.head_dim / 2;
  constexpr int kAtOnce = 16;  // KV splits whose loads are in flight together
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < geometry.tile_rows() * num_pairs;
       index += kThreads) {
    const int row = index / num_pairs;
    const int dim = index % num_pairs * 2;
    if (!tile.IsRow(row)) continue;
    const int head = tile.first_head + tile.HeadOf(row);
    const int place = tile.TokenOf(row) * geometry.num_heads + head;
    float maximum = -INFINITY;
    float sum = 0.0f;
    float2 merged = {};
#pragma unroll 1
    for (int first = 0; first < num_splits; first += kAtOnce) {
      float2 ranges[kAtOnce];
      float2 added[kAtOnce];
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) {
        // Without branches; those that are not there are merged as nothing.
        const float* const split =
            partials + int64_t{min(first + c, num_splits - 1)} * layout.split_floats;
        // From L2: other SMs have written them.
        ranges[c] = __ldcg(reinterpret_cast<const float2*>(split + layout.RangeOffset(place)));
        added[c] = __ldcg(reinterpret_cast<const float2*>(split + place * geometry.head_dim + dim));
      }
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) {
        if (first + c >= num_splits) ranges[c].x = -INFINITY;
        const MergeWeights merge = WeighMerge(maximum, ranges[c].x);
        maximum = merge.maximum;
        sum = Merge(sum, ranges[c].y, merge);
        merged = {Merge(merged.x, added[c].x, merge), Merge(merged.y, added[c].y, merge)};
      }
    }
    const float inverse = InverseSum(sum);
    const int64_t token = tile.item.first_token + tile.TokenOf(row) - arguments.first_token;
    *reinterpret_cast<float2*>(arguments.attended + token * geometry.query_width() +
                               head * geometry.head_dim +
                               dim) = {__fmul_rn(merged.x, inverse), __fmul_rn(merged.y, inverse)};
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_ATTENTION_TILE_CUH_
