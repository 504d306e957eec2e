// Attention of prompts.
//
//   block    up to 128 queries of one key head: eight tiles of neighbouring tokens, one a warp
//   stages   a KV tile of 64 keys and values in shared memory, read by all eight warps, and
//            the next one on its way: each warp copies a quarter of its keys or of its values
//
// Each warp keeps the weighted values of its tile: those of the KV split at hand in registers, and
// those of the KV splits before it. Of 64 dimensions a KV tile takes a warp some 500 instructions:
// 64 of the tensor cores, 32 exponentials, 170 more for maxima, differences, and sums of weights as
// they are rounded, 40 loads of keys, values and queries, 48 to merge the KV tile into the KV
// split, 70 to copy the next one. What does not change a result is left out: the first KV tile of a
// KV split is the KV split so far, and the first KV split all there is. What a lane reads of a
// stage is at constant distances from four addresses.
#include "engine/backends/cuda/attention_kv_tile.cuh"
#include "engine/backends/cuda/input_launch.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = kPromptTiles * 32;
constexpr int kKvTilesPerSplit = kKvSplitKeys / kKvTileKeys;

// kHasRunning: weighted values of the KV splits before are in shared memory. Of more than 64
// dimensions not every device has that much, and there are registers, if not quite enough.
template <int kDimsOf, bool kHasRunningOf>
struct PromptShape {
  static constexpr int kDims = kDimsOf;
  static constexpr bool kHasRunning = kHasRunningOf;
  static constexpr int kBlocks = kDims <= 64 ? 2 : 1;
  // A warp's shared memory.
  static constexpr int kQueryBytes = kAttentionRows * kDims * 2;
  static constexpr int kRunningBytes = kHasRunning ? kAttentionRows * kDims * 4 : 0;
  static constexpr int kWarpBytes = kQueryBytes + kRunningBytes;
  static constexpr int kSharedBytes = 2 * KvTileLayout<kDims>::kBytes + kPromptTiles * kWarpBytes;
};

// The tile's queries in shared memory as instructions take them: of each 16 dimensions, four
// registers of a lane one after the other.
template <int kDims>
class QueryFragments {
 public:
  __device__ explicit QueryFragments(uint8_t* warp_memory)
      : fragments_(reinterpret_cast<uint4*>(warp_memory)) {}

  // What LoadQueries does, by one warp.
  __device__ void Load(const Tile& tile, const float* qkv) {
    constexpr int kRowsAtOnce = 8;  // whose loads are in flight together
    constexpr int kParts = kDims / 32;
    const AttentionGeometry& geometry = tile.geometry;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int head_dim = geometry.head_dim;
    const float scale = QueryScale(head_dim);
    // Lane l finds row l % 16.
    const int own_row = lane % kAttentionRows;
    const int64_t token = tile.item.first_token + tile.TokenOf(own_row);
    const int64_t own_offset = tile.IsRow(own_row)
                                   ? token * geometry.qkv_width() +
                                         int64_t{tile.first_head + tile.HeadOf(own_row)} * head_dim
                                   : -1;
    auto* const halves = reinterpret_cast<__half*>(fragments_);
#pragma unroll 1
    for (int first = 0; first < kAttentionRows; first += kRowsAtOnce) {
      float values[kRowsAtOnce][kParts];
#pragma unroll
      for (int row = 0; row < kRowsAtOnce; ++row) {
        const int64_t offset = __shfl_sync(0xffffffffu, own_offset, first + row);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int dim = part * 32 + lane;
          values[row][part] = offset >= 0 && dim < head_dim ? qkv[offset + dim] : 0.0f;
        }
      }
#pragma unroll
      for (int row = 0; row < kRowsAtOnce; ++row) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          halves[PlaceOf(first + row, part * 32 + lane)] =
              SaturateToHalf(values[row][part] * scale);
        }
      }
    }
    __syncwarp();
  }

  __device__ uint4 Get(int step) const { return fragments_[step * 32 + threadIdx.x % 32]; }

 private:
  // A lane reads eight neighbouring dimensions of keys for two instructions (AddScores).
  static __device__ int PlaceOf(int row, int dim) {
    const int step = dim / 32 * 2 + dim % 8 / 4;
    const int lane = row % 8 * 4 + dim % 32 / 8;
    const int reg = dim % 4 / 2 * 2 + row / 8;
    return ((step * 32 + lane) * 4 + reg) * 2 + dim % 2;
  }

  uint4* fragments_;  // [step of 16 dimensions][lane]
};

// Weighted values of the KV splits before, of the calling lane: of each tile of eight dimensions,
// two in row l / 4 and two in row l / 4 + 8.
template <typename Shape>
class RunningValues {
 public:
  __device__ explicit RunningValues(uint8_t* warp_memory)
      : shared_(reinterpret_cast<float4*>(warp_memory + Shape::kQueryBytes) + threadIdx.x % 32) {}
  __device__ float4 Get(int tile) const {
    return kIsShared ? shared_[tile * 32] : values_[kIsShared ? 0 : tile];
  }
  __device__ void Set(int tile, const float4& values) {
    if (kIsShared) {
      shared_[tile * 32] = values;
    } else {
      values_[kIsShared ? 0 : tile] = values;
    }
  }

 private:
  static constexpr bool kIsShared = Shape::kHasRunning;
  float4* shared_;
  float4 values_[kIsShared ? 1 : Shape::kDims / 8];
};

// Maximum and sum of this lane's two rows.
struct RowSums {
  float maximum[2];
  float sum[2];

  // Merges others, and returns with which weights.
  __device__ void Merge(const float (&added_maximum)[2], const float (&added_sum)[2],
                        MergeWeights (&merge)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      merge[half] = WeighMerge(maximum[half], added_maximum[half]);
      maximum[half] = merge[half].maximum;
      sum[half] = cuda::Merge(sum[half], added_sum[half], merge[half]);
    }
  }
};

// Copies the keys and values of a sequence to stages, KV tile by KV tile: one lane's part of a warp
// that copies the keys, or the values, of one of a KV tile's runs. Where it lies in the cache is
// looked up a KV tile ahead.
template <int kDims>
class PromptCopier {
 public:
  __device__ PromptCopier(const Tile& tile, const AttentionArguments& arguments, int max_keys)
      : block_table_(arguments.block_table + tile.item.first_block),
        head_dim_(tile.geometry.head_dim),
        block_size_(tile.geometry.block_size) {
    static_assert(kPromptTiles == 2 * kRuns);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = ThisWarp();
    run_ = warp % kRuns;
    has_keys_ = warp < kRuns;
    // Blocks hold whole runs.
    next_block_ = run_ * kRunKeys / block_size_;
    next_slot_ = run_ * kRunKeys % block_size_;
    blocks_per_kv_tile_ = kKvTileKeys / block_size_;
    slots_per_kv_tile_ = kKvTileKeys % block_size_;
    keys_left_ = max_keys - run_ * kRunKeys;
    const int head_bytes = block_size_ * head_dim_ * kHalfBytes;
    block_bytes_ = tile.geometry.num_kv_heads * head_bytes;
    const int64_t head_offset = tile.kv_head * int64_t{head_bytes};
    if (has_keys_) {
      source_ = static_cast<const uint8_t*>(arguments.cache.keys) + head_offset + lane * kPartBytes;
      offset_ = run_ * kRunBytes + Stage::KeyOffset(lane / kParts, lane % kParts);
    } else {
      source_ = static_cast<const uint8_t*>(arguments.cache.values) + head_offset +
                lane / 2 * block_size_ * kHalfBytes + lane % 2 * kPartBytes;
      offset_ = Stage::ValueOffset(lane / 2, 2 * run_ + lane % 2);
    }
  }

  // The next KV tile.
  __device__ void LookUp() {
    block_ = keys_left_ > 0 ? block_table_[next_block_] : -1;
    slot_ = next_slot_;
    keys_left_ -= kKvTileKeys;
    next_block_ += blocks_per_kv_tile_;
    next_slot_ += slots_per_kv_tile_;
    if (next_slot_ >= block_size_) {
      next_slot_ -= block_size_;
      ++next_block_;
    }
  }

  // Begins to copy the KV tile that was looked up.
  __device__ void Copy(uint8_t* stage) const {
    if (block_ < 0) return;
    const uint8_t* source = source_ + int64_t{block_} * block_bytes_;
    if (has_keys_) {
      CopyKeys(source + slot_ * head_dim_ * kHalfBytes, stage);
    } else {
      CopyValues(source + slot_ * kHalfBytes, stage + offset_);
    }
  }

 private:
  using Stage = KvTileLayout<kDims>;
  static constexpr int kHalfBytes = 2;
  static constexpr int kPartBytes = Stage::kPartBytes;
  static constexpr int kParts = kDims * kHalfBytes / kPartBytes;  // of a key
  static constexpr int kRuns = kKvTileKeys / kRunKeys;
  static constexpr int kRunBytes = kRunKeys * kDims * kHalfBytes;
  // The warp's lanes go over the keys or values of a run in passes.
  static constexpr int kPassBytes = 32 * kPartBytes;
  static constexpr int kPasses = kRunBytes / kPassBytes;
  static constexpr int kPassDims = 16;

  __device__ void CopyKeys(const uint8_t* source, uint8_t* stage) const {
    if (head_dim_ == kDims && 32 % kParts == 0) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        CopyAsync16(stage + offset_ + pass * kPassBytes, source + pass * kPassBytes);
      }
      return;
    }
    const int parts = head_dim_ * kHalfBytes / kPartBytes;
#pragma unroll 1
    for (int index = static_cast<int>(threadIdx.x) % 32; index < kRunKeys * parts; index += 32) {
      CopyAsync16(stage + run_ * kRunBytes + Stage::KeyOffset(index / parts, index % parts),
                  source);
      source += kPassBytes;
    }
  }

  __device__ void CopyValues(const uint8_t* source, uint8_t* to) const {
    constexpr int kPassStageBytes = kPassDims * kKvTileKeys * kHalfBytes;
    const int source_step = kPassDims * block_size_ * kHalfBytes;
    const int dim = static_cast<int>(threadIdx.x) % 32 / 2;
    if (head_dim_ == kDims) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        CopyAsync16(to + pass * kPassStageBytes, source);
        source += source_step;
      }
      return;
    }
#pragma unroll 1
    for (int first = 0; first + dim < head_dim_; first += kPassDims) {
      CopyAsync16(to, source);
      source += source_step;
      to += kPassStageBytes;
    }
  }

  const int32_t* block_table_;
  int head_dim_;
  int block_size_;
  int run_;
  bool has_keys_;
  int next_block_;
  int next_slot_;
  int blocks_per_kv_tile_;
  int slots_per_kv_tile_;
  int keys_left_;  // from the run on that is looked up next
  int block_bytes_;
  // Where the lane's first pass begins.
  const uint8_t* source_;
  int offset_;
  int32_t block_ = -1;  // none: the sequence has no such keys
  int slot_ = 0;
};

// Where the calling lane reads keys and values of a KV tile, from the stage's beginning: what it
// reads besides is at constant distances from there.
template <int kDims>
class LaneOffsets {
 public:
  __device__ LaneOffsets() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    keys_ = KvTileLayout<kDims>::KeyOffset(KeyOfColumn(0, lane / 4), lane % 4);
    values_ = KvTileLayout<kDims>::ValueOffset(lane / 4, lane % 4 * 2);
  }

  // The key of column l / 4 of the first key tile, dimensions 8 (l % 4) and the next seven, or
  // 32 after them.
  __device__ int Keys(int half) const {
    const int distance = half * kHeadDimTile * 2;
    return kDims % 64 == 0 ? keys_ ^ distance : keys_ + distance;
  }
  // The values of dimension l / 4: the first eight keys of the lane's run, or the others.
  __device__ int Values(int half) const { return values_ ^ half * KvTileLayout<kDims>::kPartBytes; }

 private:
  int keys_;
  int values_;
};

// ScoreKvTile with queries at hand.
template <int kDims>
__device__ inline void ScoreKeys(const QueryFragments<kDims>& queries, const uint8_t* stage,
                                 const LaneOffsets<kDims>& offsets, float (&scores)[kKeyTiles][4]) {
  constexpr int kKeyTileBytes = 2 * kDims * 2;
  // Instructions of so many key tiles are in flight together.
  constexpr int kAtOnce = 4;
#pragma unroll
  for (int first = 0; first < kKeyTiles; first += kAtOnce) {
#pragma unroll
    for (int part = 0; part < kDims / kHeadDimTile; ++part) {
      const uint8_t* const keys =
          stage + offsets.Keys(part % 2) + part / 2 * 128 + first * kKeyTileBytes;
      const uint4 low = queries.Get(2 * part);
      const uint4 high = queries.Get(2 * part + 1);
      const uint32_t a0[4] = {low.x, low.y, low.z, low.w};
      const uint32_t a1[4] = {high.x, high.y, high.z, high.w};
      uint4 key[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        key[j] = *reinterpret_cast<const uint4*>(keys + j * kKeyTileBytes);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        MmaF16(a0, {key[j].x, key[j].y}, scores[first + j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        MmaF16(a1, {key[j].z, key[j].w}, scores[first + j]);
      }
    }
  }
}

// WeighKvTile with a lane's addresses at hand.
template <int kDims, typename Take>
__device__ inline void WeighStage(const KvTileWeights& weights, const uint8_t* stage,
                                  const LaneOffsets<kDims>& offsets, const Take& take) {
  constexpr int kDimTileBytes = 8 * kKvTileKeys * 2;
  const uint8_t* const low = stage + offsets.Values(0);
  const uint8_t* const high = stage + offsets.Values(1);
#pragma unroll
  for (int tile = 0; tile < kDims / 8; ++tile) {
    float sums[4] = {};
    WeighValues(weights, *reinterpret_cast<const uint4*>(low + tile * kDimTileBytes),
                *reinterpret_cast<const uint4*>(high + tile * kDimTileBytes), sums);
    take(tile, sums);
  }
}

// This warp's tile of an item.
__device__ AttentionItem OwnItem(const AttentionItem& item, const AttentionGeometry& geometry,
                                 int warp) {
  const int tokens = geometry.tokens_per_tile();
  AttentionItem own = item;
  own.first_token += warp * tokens;
  own.num_keys += warp * tokens;
  own.num_tokens = max(0, min(tokens, item.num_tokens - warp * tokens));
  return own;
}

// Grid: (items, key heads * tiles of their query heads). The last items have most keys, and begin
// first.
template <typename Shape>
__global__ void __launch_bounds__(kThreads, Shape::kBlocks)
    AttendPrompt(const __grid_constant__ AttentionArguments arguments) {
  constexpr int kDims = Shape::kDims;
  extern __shared__ __align__(128) uint8_t memory[];
  using Stage = KvTileLayout<kDims>;
  LaunchDependents();
  const AttentionItem item = arguments.prompt_items[gridDim.x - 1 - blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForGridDependency();
    return;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = ThisWarp();
  const int lane = thread % 32;
  const Tile tile(geometry, OwnItem(item, geometry, warp), static_cast<int>(blockIdx.y));
  const int max_keys = item.num_keys + item.num_tokens - 1;
  const int own_keys = tile.item.num_tokens > 0 ? tile.MaxKeys() : 0;
  uint8_t* const warp_memory = memory + 2 * Stage::kBytes + warp * Shape::kWarpBytes;
  for (int stage = 0; stage < 2; ++stage) {
    ClearPadding<kDims>(geometry.head_dim, memory + stage * Stage::kBytes, thread, kThreads);
  }
  PromptCopier<kDims> copier(tile, arguments, max_keys);
  copier.LookUp();
  WaitForGridDependency();

  copier.Copy(memory);
  CommitCopies();
  copier.LookUp();
  QueryFragments<kDims> queries(warp_memory);
  queries.Load(tile, arguments.qkv);
  const LaneOffsets<kDims> offsets;
  // What comes of rows without a query is dropped: they need not see fewer keys than others.
  int num_keys[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    num_keys[half] = tile.IsRow(row) ? tile.NumKeys(row) : own_keys;
  }

  RunningValues<Shape> running(warp_memory);
  RowSums running_sums;
  float split[kDims / 8][4];
  RowSums split_sums;
  const int num_kv_tiles = (max_keys + kKvTileKeys - 1) / kKvTileKeys;
#pragma unroll 1
  for (int kv_tile = 0; kv_tile < num_kv_tiles; ++kv_tile) {
    WaitForCopies<0>();
    // The KV tile is there for all, and all are done with the one whose place the next one takes.
    __syncthreads();
    if (kv_tile + 1 < num_kv_tiles) {
      copier.Copy(memory + (kv_tile + 1) % 2 * Stage::kBytes);
      CommitCopies();
      copier.LookUp();
    }
    const int first_key = kv_tile * kKvTileKeys;
    uint8_t* const stage = memory + kv_tile % 2 * Stage::kBytes;
    if (first_key + kKvTileKeys > max_keys) {
      ClearValues<kDims>(max_keys - first_key, stage, thread, kThreads);
      __syncthreads();
    }
    if (first_key >= own_keys) continue;
    float scores[kKeyTiles][4] = {};
    ScoreKeys<kDims>(queries, stage, offsets, scores);
    const KvTileWeights weights = WeighScores(scores, first_key, num_keys);
    if (kv_tile % kKvTilesPerSplit == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        split_sums.maximum[half] = weights.maximum[half];
        split_sums.sum[half] = weights.sum[half];
      }
      WeighStage<kDims>(weights, stage, offsets, [&](int dims, const float(&sums)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) split[dims][i] = sums[i];
      });
    } else {
      MergeWeights merge[2];
      split_sums.Merge(weights.maximum, weights.sum, merge);
      WeighStage<kDims>(weights, stage, offsets, [&](int dims, const float(&sums)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) split[dims][i] = Merge(split[dims][i], sums[i], merge[i / 2]);
      });
    }
    // The KV split is complete, or all that this tile sees of it.
    if (kv_tile % kKvTilesPerSplit == kKvTilesPerSplit - 1 || first_key + kKvTileKeys >= own_keys) {
      if (kv_tile < kKvTilesPerSplit) {
        running_sums = split_sums;
#pragma unroll
        for (int dims = 0; dims < kDims / 8; ++dims) {
          const float(&values)[4] = split[dims];
          running.Set(dims, {values[0], values[1], values[2], values[3]});
        }
      } else {
        MergeWeights merge[2];
        running_sums.Merge(split_sums.maximum, split_sums.sum, merge);
#pragma unroll
        for (int dims = 0; dims < kDims / 8; ++dims) {
          const float(&added)[4] = split[dims];
          const float4 before = running.Get(dims);
          running.Set(dims,
                      {Merge(before.x, added[0], merge[0]), Merge(before.y, added[1], merge[0]),
                       Merge(before.z, added[2], merge[1]), Merge(before.w, added[3], merge[1])});
        }
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (!tile.IsRow(row)) continue;
    const int64_t token = tile.item.first_token + tile.TokenOf(row) - arguments.first_token;
    const int64_t head = tile.first_head + tile.HeadOf(row);
    float* out = arguments.attended + token * geometry.query_width() + head * geometry.head_dim +
                 2 * (lane % 4);
    const float inverse = InverseSum(running_sums.sum[half]);
#pragma unroll
    for (int dims = 0; dims < kDims / 8; ++dims) {
      if (dims * 8 >= geometry.head_dim) break;
      const float4 values = running.Get(dims);
      *reinterpret_cast<float2*>(out + dims * 8) = {
          __fmul_rn(half == 0 ? values.x : values.z, inverse),
          __fmul_rn(half == 0 ? values.y : values.w, inverse)};
    }
  }
}

template <typename Shape>
cudaError_t Launch(const AttentionArguments& arguments, cudaStream_t stream) {
  if (const cudaError_t error = AllowSharedMemory(AttendPrompt<Shape>, Shape::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const dim3 grid(static_cast<unsigned>(arguments.num_prompt_items),
                  static_cast<unsigned>(geometry.num_kv_heads * geometry.tiles_per_group()));
  return LaunchKernel(AttendPrompt<Shape>, grid, kThreads, Shape::kSharedBytes, stream, arguments);
}

template <int kDims>
cudaError_t LaunchFitting(const AttentionArguments& arguments, cudaStream_t stream) {
  using Large = PromptShape<kDims, true>;
  using Small = PromptShape<kDims, false>;
  constexpr int64_t kAlwaysThere = 99 * 1024;
  static_assert(Small::kSharedBytes <= kAlwaysThere);
  return Large::kSharedBytes <= arguments.max_shared_bytes ? Launch<Large>(arguments, stream)
                                                           : Launch<Small>(arguments, stream);
}

}  // namespace

cudaError_t LaunchPromptAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  switch (PaddedHeadDim(arguments.geometry.head_dim)) {
    case 32:
      return Launch<PromptShape<32, true>>(arguments, stream);
    case 64:
      return Launch<PromptShape<64, true>>(arguments, stream);
    case 96:
      return LaunchFitting<96>(arguments, stream);
    default:
      return LaunchFitting<128>(arguments, stream);
  }
}

}  // namespace ultrasketch::cuda
