// Attention over a paged cache: of a few tokens of a sequence, and of odd head dimensions.
//
//   block    up to 16 queries of one key head: the query heads of its group, for as many
//            neighbouring tokens as fit (one instruction's rows)
//   warp w   a KV tile of the KV split, keys [64 w, 64 w + 64) of 256: scores, softmax and weighted
//            values of its own; then the block merges the four
//
// A block of a decoding token does one KV split, and LaunchFinishAttention merges; others go
// through all KV splits. Up to 64 dimensions, a warp's keys and values are staged in shared memory;
// those of steps before are on their way while the block waits for the queries. Otherwise they go
// from the cache to registers in the order in which the tensor cores take them. Bound: each key and
// value is read once (memory).
#include "engine/backends/cuda/attention_kv_tile.cuh"
#include "engine/backends/cuda/input_launch.cuh"
#include "engine/backends/cuda/input_rows.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = kAttentionWarps * 32;

// What a lane has in flight: 16 loads of keys, then 8 of values.
constexpr int kKeyBatch = 2;
constexpr int kValueBatch = 4;

// A block's shared memory, in order.
struct Shared {
  __half* queries;         // [16][RowStride]
  float* kv_tiles;         // [4][16][padded head_dim]: weighted values of a KV split's KV tiles
  float* running;          // [16][padded head_dim]: of the KV splits so far
  float* kv_tile_maximum;  // [4][16]
  float* kv_tile_sum;      // [4][16]
  MergeWeights* kv_tile_merge;  // [4][16]
  float* split_maximum;         // [16]
  float* split_sum;             // [16]
  MergeWeights* merge;          // [16]
  float* running_sum;           // [16]

  __device__ Shared(uint8_t* memory, int head_dim) {
    const int padded = PaddedHeadDim(head_dim);
    queries = reinterpret_cast<__half*>(memory);
    kv_tiles = reinterpret_cast<float*>(queries + kAttentionRows * RowStride(head_dim));
    running = kv_tiles + kAttentionWarps * kAttentionRows * padded;
    kv_tile_maximum = running + kAttentionRows * padded;
    kv_tile_sum = kv_tile_maximum + kAttentionWarps * kAttentionRows;
    split_maximum = kv_tile_sum + kAttentionWarps * kAttentionRows;
    split_sum = split_maximum + kAttentionRows;
    running_sum = split_sum + kAttentionRows;
    merge = reinterpret_cast<MergeWeights*>(running_sum + kAttentionRows);
    kv_tile_merge = merge + kAttentionRows;
  }

  static __host__ __device__ int64_t Bytes(int head_dim) {
    const int64_t padded = PaddedHeadDim(head_dim);
    const int64_t floats = (kAttentionWarps + 1) * kAttentionRows * padded +
                           (2 * kAttentionWarps + 3) * kAttentionRows;
    return kAttentionRows * RowStride(head_dim) * int64_t{sizeof(__half)} +
           floats * int64_t{sizeof(float)} +
           (kAttentionWarps + 1) * kAttentionRows * int64_t{sizeof(MergeWeights)};
  }
};

// Eight dimensions of a key from `first` on; those from head_dim on are zero.
__device__ uint4 LoadKey(const __half* key, int first, int head_dim) {
  if (first >= head_dim) return {};
  if (head_dim % 8 == 0) return *reinterpret_cast<const uint4*>(key + first);
  // Rows of other lengths are not aligned to 16 bytes, but to 4: head_dim is even.
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] =
        first + 2 * i < head_dim ? *reinterpret_cast<const uint32_t*>(key + first + 2 * i) : 0u;
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Asks for the keys and values of a KV split, before the block waits for those of this step: most
// of them are of steps before. They are read soon after in any case.
__device__ void PrefetchSplit(const Tile& tile, const AttentionArguments& arguments) {
  const AttentionGeometry& geometry = tile.geometry;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t run_bytes = int64_t{kRunKeys} * geometry.head_dim * int64_t{sizeof(__half)};
  for (int run = static_cast<int>(threadIdx.x) / 32; run < kKvSplitKeys / kRunKeys;
       run += kAttentionWarps) {
    const int position = tile.item.split * kKvSplitKeys + run * kRunKeys;
    if (position >= tile.MaxKeys()) return;
    // In blocks of more than 16 slots values lie apart: the lines of as many bytes are near enough.
    const int64_t offset = RunBase(tile, arguments.block_table, position) +
                           int64_t{position % geometry.block_size} * geometry.head_dim;
    PrefetchRange(static_cast<const __half*>(arguments.cache.keys) + offset, run_bytes, lane, 32);
    PrefetchRange(static_cast<const __half*>(arguments.cache.values) + offset, run_bytes, lane, 32);
  }
}

__device__ void MarkEmptyKvTile(int warp, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane >= kAttentionRows) return;
  shared.kv_tile_maximum[warp * kAttentionRows + lane] = -INFINITY;
  shared.kv_tile_sum[warp * kAttentionRows + lane] = 0.0f;
}

__device__ void WriteKvTileSums(const KvTileWeights& weights, int warp, Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * kAttentionRows + lane / 4 + 8 * half;
    shared.kv_tile_maximum[row] = weights.maximum[half];
    shared.kv_tile_sum[row] = weights.sum[half];
  }
}

// One warp, keys [first_key, first_key + kKvTileKeys): maximum, sum and weighted values to KV tile
// `warp` of the shared memory.
__device__ void AttendKvTile(const Tile& tile, const AttentionArguments& arguments, int first_key,
                             int warp, Shared& shared) {
  const AttentionGeometry& geometry = tile.geometry;
  const int head_dim = geometry.head_dim;
  const int block_size = geometry.block_size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int low_row = lane / 4;
  const int quad = lane % 4;
  const int max_keys = tile.MaxKeys();

  if (first_key >= max_keys) {
    MarkEmptyKvTile(warp, shared);
    return;
  }

  // First element of the cache for run `run` of the KV tile.
  const auto run_base = [&](int run, bool& exists) -> int64_t {
    const int position = first_key + run * kRunKeys;
    exists = position < max_keys;
    return exists ? RunBase(tile, arguments.block_table, position) : 0;
  };
  const auto run_slot = [&](int run) { return (first_key + run * kRunKeys) % block_size; };

  // Scores. This lane reads the keys of column `low_row`.
  float scores[kKeyTiles][4] = {};
  {
    const int run = low_row / 2;
    bool exists;
    const int64_t base = run_base(run, exists);
    const __half* keys = static_cast<const __half*>(arguments.cache.keys) + base +
                         int64_t{run_slot(run) + low_row % 2} * head_dim;
    for (int first = 0; first < head_dim; first += kKeyBatch * kHeadDimTile) {
      uint4 key[kKeyBatch][kKeyTiles];
#pragma unroll
      for (int part = 0; part < kKeyBatch; ++part) {
        const int dim = first + part * kHeadDimTile + quad * 8;
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
          key[part][j] =
              exists ? LoadKey(keys + int64_t{2 * j} * head_dim, dim, head_dim) : uint4{};
        }
      }
      CompilerBarrier();
#pragma unroll
      for (int part = 0; part < kKeyBatch; ++part) {
        if (first + part * kHeadDimTile >= head_dim) break;
        const int dim = first + part * kHeadDimTile + quad * 8;
        const __half* query = shared.queries + low_row * RowStride(head_dim) + dim;
        const uint4 low = *reinterpret_cast<const uint4*>(query);
        const uint4 high = *reinterpret_cast<const uint4*>(query + 8 * RowStride(head_dim));
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) AddScores(low, high, key[part][j], scores[j]);
      }
    }
  }

  const int num_keys[2] = {tile.NumKeys(low_row), tile.NumKeys(low_row + 8)};
  const KvTileWeights weights = WeighScores(scores, first_key, num_keys);
  WriteKvTileSums(weights, warp, shared);

  // Weighted values, eight dimensions at a time. This lane reads dimension `low_row` of them.
  {
    bool exists;
    const int64_t base = run_base(quad, exists);
    const __half* values =
        static_cast<const __half*>(arguments.cache.values) + base + run_slot(quad);
    const int count = max_keys - (first_key + quad * kRunKeys);
    const int padded = PaddedHeadDim(head_dim);
    float* out = shared.kv_tiles + (warp * kAttentionRows + low_row) * padded + 2 * quad;
    for (int first = 0; first < head_dim; first += kValueBatch * 8) {
      uint4 low[kValueBatch];
      uint4 high[kValueBatch];
#pragma unroll
      for (int part = 0; part < kValueBatch; ++part) {
        const int dim = first + part * 8 + low_row;
        low[part] = {};
        high[part] = {};
        if (exists && dim < head_dim) {
          const auto* source = reinterpret_cast<const uint4*>(values + int64_t{dim} * block_size);
          low[part] = source[0];
          high[part] = source[1];
        }
      }
      CompilerBarrier();
#pragma unroll
      for (int part = 0; part < kValueBatch; ++part) {
        if (first + part * 8 >= head_dim) break;
        if (count < kRunKeys) {
          low[part] = KeepHalves(low[part], count);
          high[part] = KeepHalves(high[part], count - 8);
        }
        float sums[4] = {};
        WeighValues(weights, low[part], high[part], sums);
        *reinterpret_cast<float2*>(out + first + part * 8) = {sums[0], sums[1]};
        *reinterpret_cast<float2*>(out + 8 * padded + first + part * 8) = {sums[2], sums[3]};
      }
    }
  }
}

// The same of a KV tile in shared memory.
template <int kDims>
__device__ void AttendStagedKvTile(const Tile& tile, int first_key, int warp, uint8_t* stage,
                                   Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int low_row = lane / 4;
  const int quad = lane % 4;
  if (first_key >= tile.MaxKeys()) {
    MarkEmptyKvTile(warp, shared);
    return;
  }
  if (first_key + kKvTileKeys > tile.MaxKeys()) {
    ClearValues<kDims>(tile.MaxKeys() - first_key, stage, lane, 32);
    __syncwarp();
  }
  float scores[kKeyTiles][4] = {};
  ScoreKvTile<kDims>(shared.queries, stage, scores);
  const int num_keys[2] = {tile.NumKeys(low_row), tile.NumKeys(low_row + 8)};
  const KvTileWeights weights = WeighScores(scores, first_key, num_keys);
  WriteKvTileSums(weights, warp, shared);
  float* out = shared.kv_tiles + (warp * kAttentionRows + low_row) * kDims + 2 * quad;
  WeighKvTile<kDims>(weights, stage, [&](int dims, const float(&sums)[4]) {
    *reinterpret_cast<float2*>(out + dims * 8) = {sums[0], sums[1]};
    *reinterpret_cast<float2*>(out + 8 * kDims + dims * 8) = {sums[2], sums[3]};
  });
}

// One thread a row: how the KV tiles merge to the KV split, and the KV split with those before it.
__device__ void WeighSplit(int row, float& running_maximum, Shared& shared) {
  float maximum = -INFINITY;
  float sum = 0.0f;
#pragma unroll
  for (int kv_tile = 0; kv_tile < kAttentionWarps; ++kv_tile) {
    const int index = kv_tile * kAttentionRows + row;
    const MergeWeights merge = WeighMerge(maximum, shared.kv_tile_maximum[index]);
    shared.kv_tile_merge[index] = merge;
    sum = Merge(sum, shared.kv_tile_sum[index], merge);
    maximum = merge.maximum;
  }
  shared.split_maximum[row] = maximum;
  shared.split_sum[row] = sum;
  const MergeWeights merge = WeighMerge(running_maximum, maximum);
  shared.merge[row] = merge;
  shared.running_sum[row] = Merge(shared.running_sum[row], sum, merge);
  running_maximum = merge.maximum;
}

__device__ float SplitValue(const Shared& shared, int row, int i, int padded) {
  float value = 0.0f;
#pragma unroll
  for (int kv_tile = 0; kv_tile < kAttentionWarps; ++kv_tile) {
    const int index = kv_tile * kAttentionRows + row;
    const MergeWeights merge = shared.kv_tile_merge[index];
    // KV tiles without a visible key have not written their values.
    if (merge.added != 0.0f) value = Merge(value, shared.kv_tiles[index * padded + i], merge);
  }
  return value;
}

// kDims: up to so many dimensions, staged in shared memory; 0: any, from the cache to registers.
template <int kDims>
struct AttendShape {
  static constexpr int kStageBytes = kDims > 0 ? KvTileLayout<kDims>::kBytes : 0;
  static int64_t SharedBytes(int head_dim) {
    return (Shared::Bytes(head_dim) + 127) / 128 * 128 + kAttentionWarps * kStageBytes;
  }
};

// Runs of the KV tile from `first_key` on that were in the cache before this step.
__device__ int NumOldRuns(const Tile& tile, int first_key) {
  if (tile.item.split < 0) return 0;
  return min(max((tile.item.num_keys - 1 - first_key) / kRunKeys, 0), kKvTileKeys / kRunKeys);
}

// Grid: (items, key heads * tiles of their query heads).
template <int kDims>
__global__ void __launch_bounds__(kThreads)
    Attend(const __grid_constant__ AttentionArguments arguments) {
  extern __shared__ __align__(128) uint8_t memory[];
  LaunchDependents();
  const AttentionGeometry& geometry = arguments.geometry;
  const int head_dim = geometry.head_dim;
  const int padded = PaddedHeadDim(head_dim);
  Shared shared(memory, head_dim);

  const AttentionItem item = arguments.items[blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForGridDependency();
    return;
  }
  const Tile tile(geometry, item, static_cast<int>(blockIdx.y));

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  [[maybe_unused]] uint8_t* const stage =
      memory + (Shared::Bytes(head_dim) + 127) / 128 * 128 + warp * AttendShape<kDims>::kStageBytes;
  [[maybe_unused]] int num_copied_runs = 0;
  constexpr int kCopiedDims = kDims > 0 ? kDims : 32;
  [[maybe_unused]] KvTileCopier<kCopiedDims, 32> copier(tile, arguments, thread % 32);
  // Items and block table were there before the step's first kernel.
  if constexpr (kDims > 0) {
    ClearPadding<kDims>(head_dim, stage, thread % 32, 32);
    const int first_key = max(tile.item.split, 0) * kKvSplitKeys + warp * kKvTileKeys;
    num_copied_runs = NumOldRuns(tile, first_key);
    copier.Find(first_key, tile.MaxKeys());
    copier.Copy(0, num_copied_runs, stage);
  } else if (tile.item.split >= 0) {
    PrefetchSplit(tile, arguments);
  }
  WaitForGridDependency();

  LoadQueries(tile, arguments.qkv, shared.queries, warp, kAttentionWarps);
  float running_maximum = -INFINITY;  // of row `thread`, in the first threads
  if (thread < kAttentionRows) shared.running_sum[thread] = 0.0f;
  for (int index = thread; index < kAttentionRows * padded; index += kThreads) {
    shared.running[index] = 0.0f;
  }
  __syncthreads();

  const bool one_split = tile.item.split >= 0;
  const int first_split = one_split ? tile.item.split : 0;
  const int end_split =
      one_split ? first_split + 1 : (tile.MaxKeys() + kKvSplitKeys - 1) / kKvSplitKeys;
  for (int split = first_split; split < end_split; ++split) {
    const int first_key = split * kKvSplitKeys + warp * kKvTileKeys;
    if constexpr (kDims > 0) {
      __syncwarp();  // done with the KV split before
      if (split != first_split) copier.Find(first_key, tile.MaxKeys());
      copier.Copy(num_copied_runs, kKvTileKeys / kRunKeys, stage);
      CommitCopies();
      num_copied_runs = 0;
      WaitForCopies<0>();
      __syncwarp();
      AttendStagedKvTile<kDims>(tile, first_key, warp, stage, shared);
    } else {
      AttendKvTile(tile, arguments, first_key, warp, shared);
    }
    __syncthreads();
    if (thread < kAttentionRows) WeighSplit(thread, running_maximum, shared);
    __syncthreads();
    if (one_split) break;
    for (int index = thread; index < kAttentionRows * padded; index += kThreads) {
      const int row = index / padded;
      const int i = index % padded;
      if (i >= head_dim) continue;
      shared.running[index] =
          Merge(shared.running[index], SplitValue(shared, row, i, padded), shared.merge[row]);
    }
    __syncthreads();
  }

  if (one_split) {
    const PartialLayout layout(geometry);
    float* const partial = arguments.partials + int64_t{tile.item.slot} * layout.split_floats;
    for (int index = thread; index < kAttentionRows * (head_dim + 2); index += kThreads) {
      const int row = index / (head_dim + 2);
      const int i = index % (head_dim + 2);
      if (!tile.IsRow(row)) continue;
      const int place = tile.TokenOf(row) * geometry.num_heads + tile.first_head + tile.HeadOf(row);
      if (i < head_dim) {
        partial[place * head_dim + i] = SplitValue(shared, row, i, padded);
      } else {
        partial[layout.RangeOffset(place) + i - head_dim] =
            i == head_dim ? shared.split_maximum[row] : shared.split_sum[row];
      }
    }
    MergeSplitsIfLast<kThreads>(tile, arguments);
    return;
  }
  for (int index = thread; index < kAttentionRows * head_dim; index += kThreads) {
    const int row = index / head_dim;
    const int i = index % head_dim;
    if (!tile.IsRow(row)) continue;
    const int64_t token = tile.item.first_token + tile.TokenOf(row) - arguments.first_token;
    const int64_t head = tile.first_head + tile.HeadOf(row);
    arguments.attended[token * geometry.query_width() + head * head_dim + i] =
        __fmul_rn(shared.running[row * padded + i], InverseSum(shared.running_sum[row]));
  }
}

template <int kBlockThreads>
__global__ void __launch_bounds__(kBlockThreads)
    FinishAttention(const __grid_constant__ AttentionArguments arguments,
                    const AttentionToken* tokens,
                    const __grid_constant__ InputTransform input_transform, uint8_t* packed_input,
                    bool is_staged) {
  extern __shared__ __align__(16) float x[];
  LaunchDependents();
  const InputTransform transform = LoadTransformTables<kBlockThreads>(
      input_transform, StagedTables(x, input_transform, is_staged), ThisInputSplit());
  AwaitTables();
  WaitForGridDependency();
  const AttentionToken token = tokens[arguments.first_token + blockIdx.x];
  const RowRange row = LoadAttention<kBlockThreads, /*kSplits=*/4>(
      arguments, PartialLayout(arguments.geometry), token,
      arguments.attended + int64_t{blockIdx.x} * transform.cols, TransformedRow(x, transform));
  WritePackedInput<kBlockThreads>(x, row.inverse_rms, row.absmax, transform, ThisInputSplit(),
                                  packed_input + (arguments.first_token + blockIdx.x) *
                                                     PackedInputBytes(transform.num_k_tiles));
}

template <int kDims>
cudaError_t LaunchAttend(const AttentionArguments& arguments, cudaStream_t stream) {
  const AttentionGeometry& geometry = arguments.geometry;
  const int64_t shared_bytes = AttendShape<kDims>::SharedBytes(geometry.head_dim);
  if (const cudaError_t error = AllowSharedMemory(Attend<kDims>, shared_bytes);
      error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(arguments.num_items),
                  static_cast<unsigned>(geometry.num_kv_heads * geometry.tiles_per_group()));
  return LaunchKernel(Attend<kDims>, grid, kThreads, static_cast<size_t>(shared_bytes), stream,
                      arguments);
}

}  // namespace

cudaError_t LaunchAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  if (arguments.geometry.is_int8) return LaunchInt8Attention(arguments, stream);
  if (arguments.num_items > 0) {
    const cudaError_t error =
        !arguments.geometry.is_staged()     ? LaunchAttend<0>(arguments, stream)
        : arguments.geometry.head_dim <= 32 ? LaunchAttend<32>(arguments, stream)
        : arguments.geometry.head_dim <= 64 ? LaunchAttend<64>(arguments, stream)
                                            : LaunchAttend<0>(arguments, stream);
    if (error != cudaSuccess) return error;
  }
  return arguments.num_prompt_items > 0 ? LaunchPromptAttention(arguments, stream) : cudaSuccess;
}

cudaError_t LaunchFinishAttention(const AttentionArguments& arguments, const AttentionToken* tokens,
                                  int64_t num_tokens, const InputTransform& transform, int num_sms,
                                  void* packed_input, cudaStream_t stream) {
  return LaunchInputKernel([](auto threads) { return FinishAttention<threads.value>; }, num_tokens,
                           transform, num_sms, stream, arguments, tokens, transform,
                           static_cast<uint8_t*>(packed_input));
}

}  // namespace ultrasketch::cuda
