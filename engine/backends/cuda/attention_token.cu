// Attention of steps with no more than one token of each sequence, the rotation of its query and
// key and their storing included.
//
//   block          a KV split of 256 keys of a token, for the query heads of one key head
//   warp group g   one warp or more: KV tiles g, g + kGroups, ... of the KV split, 64 keys each, in
//                  shared memory: scores, softmax, weighted values; then the block merges the tiles
//
// A warp group's warps each score some of the keys, exchange the scores, make the same weights of
// them, and weigh some of the dimensions. Each warp group's first KV tile is in shared memory
// before the query is waited for, but for the newest key and value, which are put there when they
// are rotated. As long as all blocks find room at once each KV tile has a warp group; where there
// are more, they have few KV tiles at a time, so that some load while others compute. Between the
// query's arrival and the result lies one chain of instructions after another: what can be computed
// before is, and loads come together and before what they are needed for.
#include "engine/backends/cuda/attention_kv_tile.cuh"
#include "engine/backends/cuda/input_launch.cuh"
#include "engine/backends/cuda/rotation.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kKvTiles = kKvSplitKeys / kKvTileKeys;

// How a block's warps divide a KV split: `kGroups` KV tiles are in shared memory at a time, each
// the work of kGroupWarps warps.
template <int kDimsOf, int kGroupsOf, int kGroupWarpsOf>
struct TokenShape {
  static constexpr int kDims = kDimsOf;
  static constexpr int kGroups = kGroupsOf;
  static constexpr int kGroupWarps = kGroupWarpsOf;
  static constexpr int kGroupThreads = kGroupWarps * 32;
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kStageBytes = kGroups * KvTileLayout<kDims>::kBytes;
  // Otherwise the compiler would spend registers for two large blocks; 0 says nothing.
  static constexpr int kMinBlocks = kThreads >= 512 ? 1 : 0;
};

// A block's shared memory after the stages of its warp groups.
template <typename Shape>
struct TokenShared {
  static constexpr int kQueryBytes = kAttentionRows * RowStride(Shape::kDims) * 2;
  static constexpr int kRangeBytes = kKvTiles * kAttentionRows * 8;
  static constexpr int kScoreBytes = kAttentionRows * kKvTileKeys * int{sizeof(float)};
  static constexpr int kGroupScoreBytes = Shape::kGroupWarps > 1 ? kScoreBytes : 0;

  __half* queries;  // [16][RowStride]
  float2* ranges;   // [KV tile][16]: maximum and sum
  // [warp group][half of the rows][key tile][lane], as lanes have them; of warp groups of more than
  // one warp.
  float2* scores;
  float* values;  // [KV tile][num_heads][kDims]

  __device__ explicit TokenShared(uint8_t* memory)
      : queries(reinterpret_cast<__half*>(memory)),
        ranges(reinterpret_cast<float2*>(memory + kQueryBytes)),
        scores(reinterpret_cast<float2*>(memory + kQueryBytes + kRangeBytes)),
        values(reinterpret_cast<float*>(memory + kQueryBytes + kRangeBytes +
                                        Shape::kGroups * kGroupScoreBytes)) {}

  static int Bytes(int num_heads) {
    return kQueryBytes + kRangeBytes + Shape::kGroups * kGroupScoreBytes +
           kKvTiles * num_heads * Shape::kDims * int{sizeof(float)};
  }
};

// Warp groups of more than one warp all do the same in step.
template <typename Shape>
__device__ inline void SyncGroup() {
  if constexpr (Shape::kGroupWarps == 1) {
    __syncwarp();
  } else {
    static_assert(kKvTiles % Shape::kGroups == 0);
    __syncthreads();
  }
}

// The scores of a KV tile, by warp `member` of a warp group. They are exchanged in `exchange`, the
// warp group's, which is free again after the warp group's next barrier.
template <typename Shape>
__device__ inline void ScoreInGroup(const __half* queries, const uint8_t* stage, int member,
                                    bool has_high_rows, float2* exchange,
                                    float (&scores)[kKeyTiles][4]) {
  constexpr int kTiles = kKeyTiles / Shape::kGroupWarps;
  float own[kTiles][4] = {};
  ScoreKvTile<Shape::kDims>(queries, stage, own, member * kTiles);
  if constexpr (Shape::kGroupWarps == 1) {
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = own[j][i];
    }
  } else {
    float2* const of_lane = exchange + threadIdx.x % 32;
    const auto place = [&](int half, int tile) { return of_lane + (half * kKeyTiles + tile) * 32; };
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      *place(0, member * kTiles + j) = {own[j][0], own[j][1]};
      if (has_high_rows) *place(1, member * kTiles + j) = {own[j][2], own[j][3]};
    }
    SyncGroup<Shape>();
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      const float2 low = *place(0, j);
      const float2 high = has_high_rows ? *place(1, j) : float2{};
      scores[j][0] = low.x;
      scores[j][1] = low.y;
      scores[j][2] = high.x;
      scores[j][3] = high.y;
    }
  }
}

// What a thread does to rotate the queries of an item's heads and, in the KV split that it is of,
// to store the newest key and value. Rows are those of the heads, the key and the value; a thread
// has pair `pair` of every kRowsAtOnce-th. All but the rotation itself is computed before the
// kernel waits.
template <int kDims, int kThreads>
struct TokenRotation {
  static constexpr int kHalf = kDims / 2;
  static constexpr int kRowsAtOnce = kThreads / kHalf;
  // All rows of groups of up to six heads.
  static constexpr int kBatch = kRowsAtOnce < 8 ? 8 / kRowsAtOnce : 1;
  using Stage = KvTileLayout<kDims>;

  int pair;
  int num_heads;
  int num_rows;
  const float* row;  // of the token, from the thread's pair on
  int first_head_offset;
  int key_offset;
  int value_offset;
  __half* cached_key;
  __half* cached_value;
  int block_size;
  // In shared memory, where the newest key's KV tile is staged already: of this pair's first
  // dimension. Negative: it is not.
  int staged_key = -1;
  int staged_value = -1;

  // `newest_stage` is the offset in shared memory of the stage that holds the newest key, as key
  // `newest_key` of its KV tile; negative: none does.
  __device__ TokenRotation(const AttentionArguments& arguments, const Tile& tile, bool has_new_key,
                           int newest_stage, int newest_key)
      : pair(static_cast<int>(threadIdx.x) % kHalf),
        num_heads(tile.num_heads),
        num_rows(tile.num_heads + (has_new_key ? 2 : 0)),
        row(arguments.qkv + tile.item.first_token * tile.geometry.qkv_width() + pair),
        first_head_offset(tile.first_head * kDims),
        key_offset((tile.geometry.num_heads + tile.kv_head) * kDims),
        value_offset(key_offset + tile.geometry.num_kv_heads * kDims),
        block_size(tile.geometry.block_size) {
    const int position = tile.item.num_keys - 1;
    const int slot = position % block_size;
    const int64_t base = RunBase(tile, arguments.block_table, position);
    cached_key = static_cast<__half*>(arguments.cache.keys) + base + slot * kDims + pair;
    cached_value = static_cast<__half*>(arguments.cache.values) + base + slot + pair * block_size;
    if (newest_stage >= 0) {
      staged_key = newest_stage + Stage::KeyOffset(newest_key, pair / 8) + pair % 8 * 2;
      staged_value = newest_stage + Stage::ValueOffset(pair, newest_key / 8) + newest_key % 8 * 2;
    }
  }

  __device__ void Run(const Rotation& rotation, float scale, uint8_t* memory,
                      __half* queries) const {
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x) / kHalf; first < num_rows;
         first += kBatch * kRowsAtOnce) {
      float2 pairs[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = first + b * kRowsAtOnce;
        const int offset = r < num_heads    ? first_head_offset + r * kDims
                           : r == num_heads ? key_offset
                                            : value_offset;
        if (r < num_rows) pairs[b] = {row[offset], row[offset + kHalf]};
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = first + b * kRowsAtOnce;
        if (r < num_heads) {
          const float2 rotated = rotation.Apply(pairs[b].x, pairs[b].y);
          __half* const out = queries + r * RowStride(kDims) + pair;
          out[0] = SaturateToHalf(rotated.x * scale);
          out[kHalf] = SaturateToHalf(rotated.y * scale);
        } else if (r < num_rows) {
          const bool is_key = r == num_heads;
          const float2 rotated = rotation.Apply(pairs[b].x, pairs[b].y);
          const __half low = SaturateToHalf(is_key ? rotated.x : pairs[b].x);
          const __half high = SaturateToHalf(is_key ? rotated.y : pairs[b].y);
          __half* const cached = is_key ? cached_key : cached_value;
          cached[0] = low;
          cached[is_key ? kHalf : kHalf * block_size] = high;
          // Half of the dimensions on: so many parts of a key, which trade places within 64
          // dimensions, or so many rows of values.
          if (staged_key >= 0) {
            const int high_key = staged_key ^ (kHalf * 2);
            *reinterpret_cast<__half*>(memory + (is_key ? staged_key : staged_value)) = low;
            *reinterpret_cast<__half*>(
                memory + (is_key ? high_key : staged_value + kHalf * kKvTileKeys * 2)) = high;
          }
        }
      }
    }
  }
};

// One warp: the KV tiles of a head, merged to the KV split, to `out`: this lane's pair of each 64
// dimensions. Returns the KV split's maximum and sum.
template <typename Shape>
__device__ inline float2 MergeKvTiles(const TokenShared<Shape>& shared, int row, int num_heads,
                                      float2 (&out)[Shape::kDims / 64]) {
  constexpr int kDims = Shape::kDims;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float2 ranges[kKvTiles];
  float2 added[kKvTiles][kDims / 64];
#pragma unroll
  for (int kv_tile = 0; kv_tile < kKvTiles; ++kv_tile) {
    ranges[kv_tile] = shared.ranges[kv_tile * kAttentionRows + row];
    // A warp group of one warp has not written those of KV tiles without a key, which are then not
    // used.
    const auto* const values =
        reinterpret_cast<const float2*>(shared.values + (kv_tile * num_heads + row) * kDims);
#pragma unroll
    for (int part = 0; part < kDims / 64; ++part) added[kv_tile][part] = values[part * 32 + lane];
  }
  // A KV split's first KV tile has keys, and merged with nothing is itself.
  float maximum = ranges[0].x;
  float sum = ranges[0].y;
#pragma unroll
  for (int part = 0; part < kDims / 64; ++part) out[part] = added[0][part];
#pragma unroll
  for (int kv_tile = 1; kv_tile < kKvTiles; ++kv_tile) {
    const MergeWeights merge = WeighMerge(maximum, ranges[kv_tile].x);
    maximum = merge.maximum;
    sum = Merge(sum, ranges[kv_tile].y, merge);
#pragma unroll
    for (int part = 0; part < kDims / 64; ++part) {
      const float2 merged = {Merge(out[part].x, added[kv_tile][part].x, merge),
                             Merge(out[part].y, added[kv_tile][part].y, merge)};
      out[part] = merge.added == 0.0f ? out[part] : merged;
    }
  }
  return {maximum, sum};
}

// Grid: (items, key heads).
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    AttendToken(const __grid_constant__ AttentionArguments arguments) {
  constexpr int kDims = Shape::kDims;
  constexpr int kGroups = Shape::kGroups;
  constexpr int kThreads = Shape::kThreads;
  using Stage = KvTileLayout<kDims>;
  extern __shared__ __align__(128) uint8_t memory[];
  LaunchDependents();
  const AttentionGeometry& geometry = arguments.geometry;
  const AttentionItem item = arguments.items[blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForGridDependency();
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int group = warp / Shape::kGroupWarps;
  const int member = warp % Shape::kGroupWarps;
  const int group_thread = thread % Shape::kGroupThreads;
  Tile tile;
  tile.geometry = geometry;
  tile.item = item;
  tile.num_heads = geometry.heads_per_group();
  tile.kv_head = static_cast<int>(blockIdx.y);
  tile.first_head = tile.kv_head * tile.num_heads;
  const bool has_high_rows = tile.num_heads > kAttentionRows / 2;
  const TokenShared<Shape> shared(memory + Shape::kStageBytes);
  uint8_t* const stage = memory + group * Stage::kBytes;
  const int first_key = max(item.split, 0) * kKvSplitKeys;
  const int new_key = item.num_keys - 1 - first_key;
  const bool has_new_key = new_key < kKvSplitKeys;

  // A KV tile's keys and values as they are in the cache, zeros for values past the first `count`.
  KvTileCopier<kDims, Shape::kGroupThreads> copier(tile, arguments, group_thread);
  const auto copy_kv_tile = [&](int kv_tile, int count) {
    copier.Find(first_key + kv_tile * kKvTileKeys, item.num_keys);
    copier.Copy(0, kKvTileKeys / kRunKeys, stage);
    CommitCopies();
    WaitForCopies<0>();
    SyncGroup<Shape>();
    if (count < kKvTileKeys) {
      ClearValues<kDims>(max(count, 0), stage, group_thread, Shape::kGroupThreads);
    }
    SyncGroup<Shape>();
  };
  // Items, block table and cache were there before the step's first kernel, but for the newest.
  copy_kv_tile(group, new_key - group * kKvTileKeys);
  const int new_kv_tile = new_key / kKvTileKeys;
  const TokenRotation<kDims, kThreads> token(
      arguments, tile, has_new_key, new_kv_tile < kGroups ? new_kv_tile * Stage::kBytes : -1,
      new_key % kKvTileKeys);
  // Rows without a query.
  constexpr int kRowParts = RowStride(kDims) * 2 / 16;
#pragma unroll 1
  for (int part = tile.num_heads * kRowParts + thread; part < kAttentionRows * kRowParts;
       part += kThreads) {
    reinterpret_cast<uint4*>(shared.queries)[part] = {};
  }
  Rotation rotation(arguments.frequencies, arguments.tokens[item.first_token].position);
  rotation.TurnTo(token.pair);
  // Where the result goes.
  const bool is_partial = item.split >= 0;
  const PartialLayout layout(geometry);
  float* const out_row = is_partial
                             ? arguments.partials + int64_t{item.slot} * layout.split_floats
                             : arguments.attended + (item.first_token - arguments.first_token) *
                                                        geometry.query_width();
  int out_range = layout.RangeOffset(tile.first_head);
  Materialize(out_range);
  // The newest value goes where others have written zeros.
  __syncthreads();
  WaitForGridDependency();

  token.Run(rotation, QueryScale(kDims), memory, shared.queries);
  __syncthreads();

#pragma unroll 1
  for (int kv_tile = group; kv_tile < kKvTiles; kv_tile += kGroups) {
    const int kv_tile_key = first_key + kv_tile * kKvTileKeys;
    float2* const ranges = shared.ranges + kv_tile * kAttentionRows;
    // Warp groups of several warps stay in step: they find all scores of such a KV tile masked.
    if (Shape::kGroupWarps == 1 && kv_tile_key >= item.num_keys) {
      if (lane < kAttentionRows) ranges[lane] = {-INFINITY, 0.0f};
      continue;
    }
    if constexpr (kGroups < kKvTiles) {
      if (kv_tile != group) {
        SyncGroup<Shape>();  // done with the KV tile before
        copy_kv_tile(kv_tile, item.num_keys - kv_tile_key);
      }
    }
    float scores[kKeyTiles][4];
    ScoreInGroup<Shape>(shared.queries, stage, member, has_high_rows,
                        shared.scores + group * (kAttentionRows * kKvTileKeys / 2), scores);
    const int low_row = static_cast<int>(threadIdx.x % 32 / 4);
    const int num_keys[2] = {item.num_keys, item.num_keys};
    const KvTileWeights weights = WeighScores(scores, kv_tile_key, num_keys, has_high_rows);
    if (member == 0 && lane % 4 == 0) {
      ranges[low_row] = {weights.maximum[0], weights.sum[0]};
      ranges[low_row + 8] = {weights.maximum[1], weights.sum[1]};
    }
    // Stored when all are there: loads would not overtake the stores.
    constexpr int kDimTiles = kDims / 8 / Shape::kGroupWarps;
    float sums[kDimTiles][4];
    WeighKvTile<kDims, kDimTiles>(
        weights, stage,
        [&](int dims, const float(&of_dims)[4]) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[dims][i] = of_dims[i];
        },
        member * kDimTiles);
    float* const out = shared.values + (kv_tile * tile.num_heads + low_row) * kDims +
                       member * (kDimTiles * 8) + 2 * static_cast<int>(threadIdx.x % 4);
    const bool is_low = low_row < tile.num_heads;
    const bool is_high = low_row + 8 < tile.num_heads;
#pragma unroll
    for (int dims = 0; dims < kDimTiles; ++dims) {
      if (is_low) *reinterpret_cast<float2*>(out + dims * 8) = {sums[dims][0], sums[dims][1]};
      if (is_high) {
        *reinterpret_cast<float2*>(out + 8 * kDims + dims * 8) = {sums[dims][2], sums[dims][3]};
      }
    }
  }
  __syncthreads();

  // One warp a head.
#pragma unroll 1
  for (int row = warp; row < tile.num_heads; row += kThreads / 32) {
    float2 values[kDims / 64];
    const float2 range = MergeKvTiles<Shape>(shared, row, tile.num_heads, values);
    const float factor = is_partial ? 1.0f : InverseSum(range.y);
    if (is_partial && lane == 0) {
      *reinterpret_cast<float2*>(out_row + out_range + 2 * row) = range;
    }
    auto* const row_out = reinterpret_cast<float2*>(out_row + (tile.first_head + row) * kDims);
#pragma unroll
    for (int part = 0; part < kDims / 64; ++part) {
      row_out[part * 32 + lane] = {__fmul_rn(values[part].x, factor),
                                   __fmul_rn(values[part].y, factor)};
    }
  }
  if (is_partial) MergeSplitsIfLast<kThreads>(tile, arguments);
}

// Shapes for few blocks and for many; and whether very few are quicker where no block of the
// products before and after is beside them.
template <int kDims>
struct TokenShapes;
template <>
struct TokenShapes<64> {
  using Few = TokenShape<64, kKvTiles, 1>;
  using Many = TokenShape<64, 2, 1>;
  static constexpr bool kPrefersToBeAlone = true;
};
template <>
struct TokenShapes<128> {
  using Few = TokenShape<128, kKvTiles, 4>;
  using Many = TokenShape<128, 1, 4>;
  static constexpr bool kPrefersToBeAlone = false;  // uncompressed steps: 4% slower
};

template <typename Shape>
int64_t SharedBytes(const AttentionGeometry& geometry) {
  return Shape::kStageBytes + TokenShared<Shape>::Bytes(geometry.heads_per_group());
}

template <typename Shape>
cudaError_t LaunchShape(const AttentionArguments& arguments, int64_t shared_bytes,
                        cudaStream_t stream) {
  const AttentionGeometry& geometry = arguments.geometry;
  if (const cudaError_t error = AllowSharedMemory(AttendToken<Shape>, shared_bytes);
      error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(arguments.num_items),
                  static_cast<unsigned>(geometry.num_kv_heads));
  return LaunchKernel(AttendToken<Shape>, grid, Shape::kThreads, static_cast<size_t>(shared_bytes),
                      stream, arguments);
}

template <int kDims>
cudaError_t Launch(const AttentionArguments& arguments, cudaStream_t stream) {
  using Few = typename TokenShapes<kDims>::Few;
  using Many = typename TokenShapes<kDims>::Many;
  constexpr int64_t kSystemBytes = 1024;  // of each block
  const int64_t num_blocks = arguments.num_items * arguments.geometry.num_kv_heads;
  const int64_t few_bytes = SharedBytes<Few>(arguments.geometry);
  // What a block may have is nearly all of an SM's.
  const int64_t blocks_each = arguments.max_shared_bytes / (few_bytes + kSystemBytes);
  if (num_blocks > blocks_each * arguments.num_sms) {
    return LaunchShape<Many>(arguments, SharedBytes<Many>(arguments.geometry), stream);
  }
  const bool is_alone =
      TokenShapes<kDims>::kPrefersToBeAlone && num_blocks <= arguments.num_sms / 4;
  return LaunchShape<Few>(
      arguments, is_alone ? arguments.max_shared_bytes - kMergeSharedBytes : few_bytes, stream);
}

}  // namespace

bool HasTokenAttention(const AttentionGeometry& geometry, int64_t max_shared_bytes) {
  const auto fits = [&]<typename Shapes>(Shapes /*shapes*/) {
    return SharedBytes<typename Shapes::Many>(geometry) + kMergeSharedBytes <= max_shared_bytes;
  };
  if (geometry.is_int8) return true;
  return geometry.tiles_per_group() == 1 &&
         ((geometry.head_dim == 64 && fits(TokenShapes<64>())) ||
          (geometry.head_dim == 128 && fits(TokenShapes<128>())));
}

cudaError_t LaunchTokenAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  if (arguments.geometry.is_int8) return LaunchInt8TokenAttention(arguments, stream);
  return arguments.geometry.head_dim == 64 ? Launch<64>(arguments, stream)
                                           : Launch<128>(arguments, stream);
}

}  // namespace ultrasketch::cuda
