// Attention over a paged cache, for prompts and decoding alike.
//
//   block    up to 16 queries of one key head: the query heads of its group, for as many
//            neighbouring tokens as fit (one instruction's rows)
//   warp w   the keys [64 w, 64 w + 64) of a chunk of 256: scores, softmax and weighted values of
//            its own; then the block merges the four
//
// A block of a prompt goes through all chunks; one of a decoding token does one chunk, and
// LaunchFinishAttention merges. Keys and values go from the cache to registers in the order in
// which the tensor cores take them, each read once by a block; only queries and partial results
// are in shared memory. Bound: decoding reads each key and value once (memory); a prompt reads them
// once for every tile of tokens (second-level cache).
#include <cuda_fp16.h>

#include <cmath>

#include "engine/backends/cuda/attention_merge.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/producer_launch.cuh"
#include "engine/codecs/cuda/device_code.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kThreads = kAttentionWarps * 32;
constexpr int kKeyTiles = kAttentionPiece / 8;  // instructions have eight columns
constexpr int kHeadDimStep = 32;                // dimensions that two instructions sum over

// What a lane has in flight: 16 loads of keys, then 8 of values.
constexpr int kKeyBatch = 2;
constexpr int kValueBatch = 4;

__host__ __device__ constexpr int PaddedHeadDim(int head_dim) {
  return (head_dim + kHeadDimStep - 1) / kHeadDimStep * kHeadDimStep;
}
// An odd multiple of 64 bytes: the two rows that lanes read 16 bytes of at a time are in different
// banks.
__host__ __device__ constexpr int QueryStride(int head_dim) {
  return PaddedHeadDim(head_dim) % 64 == 0 ? PaddedHeadDim(head_dim) + 32 : PaddedHeadDim(head_dim);
}

// A block's shared memory, in order.
struct Shared {
  __half* queries;       // [16][QueryStride]
  float* pieces;         // [4][16][padded head_dim]: weighted values of a chunk's pieces
  float* running;        // [16][padded head_dim]: of the chunks so far
  float* piece_maximum;  // [4][16]
  float* piece_sum;      // [4][16]
  float* piece_weight;   // [4][16]
  float* chunk_maximum;  // [16]
  float* chunk_sum;      // [16]
  MergeWeights* merge;   // [16]
  float* running_sum;    // [16]

  __device__ Shared(uint8_t* memory, int head_dim) {
    const int padded = PaddedHeadDim(head_dim);
    queries = reinterpret_cast<__half*>(memory);
    pieces = reinterpret_cast<float*>(queries + kAttentionRows * QueryStride(head_dim));
    running = pieces + kAttentionWarps * kAttentionRows * padded;
    piece_maximum = running + kAttentionRows * padded;
    piece_sum = piece_maximum + kAttentionWarps * kAttentionRows;
    piece_weight = piece_sum + kAttentionWarps * kAttentionRows;
    chunk_maximum = piece_weight + kAttentionWarps * kAttentionRows;
    chunk_sum = chunk_maximum + kAttentionRows;
    running_sum = chunk_sum + kAttentionRows;
    merge = reinterpret_cast<MergeWeights*>(running_sum + kAttentionRows);
  }

  static int64_t Bytes(int head_dim) {
    const int64_t padded = PaddedHeadDim(head_dim);
    const int64_t floats = (kAttentionWarps + 1) * kAttentionRows * padded +
                           (3 * kAttentionWarps + 3) * kAttentionRows;
    return kAttentionRows * QueryStride(head_dim) * int64_t{sizeof(__half)} +
           floats * int64_t{sizeof(float)} + kAttentionRows * int64_t{sizeof(MergeWeights)};
  }
};

// The queries of a block.
struct Tile {
  AttentionGeometry geometry;
  AttentionItem item;
  int kv_head;
  int first_head;  // of the query heads
  int num_heads;   // of each token

  // Row r is head r % heads_per_tile of token r / heads_per_tile.
  __device__ int TokenOf(int row) const { return row / geometry.heads_per_tile(); }
  __device__ int HeadOf(int row) const { return row % geometry.heads_per_tile(); }
  __device__ bool IsRow(int row) const {
    return TokenOf(row) < item.num_tokens && HeadOf(row) < num_heads;
  }
  __device__ int NumKeys(int row) const { return IsRow(row) ? item.num_keys + TokenOf(row) : 0; }
  __device__ int MostKeys() const { return item.num_keys + item.num_tokens - 1; }
};

// Keys are dealt to the columns of the scores so that each lane's weights are those of 16
// neighbouring keys, whose values it then reads in a run: column n of key tile j is key
// 16 * (n / 2) + 2 * j + n % 2 of the piece.
__device__ constexpr int KeyOfColumn(int key_tile, int column) {
  return column / 2 * 16 + 2 * key_tile + column % 2;
}

__device__ void LoadQueries(const Tile& tile, const float* qkv, Shared& shared) {
  const AttentionGeometry& geometry = tile.geometry;
  const int head_dim = geometry.head_dim;
  const int padded = PaddedHeadDim(head_dim);
  const float scale = 1.44269504f / sqrtf(static_cast<float>(head_dim));  // log2(e): scores are
                                                                          // exponents of two
  for (int index = static_cast<int>(threadIdx.x); index < kAttentionRows * padded;
       index += kThreads) {
    const int row = index / padded;
    const int i = index % padded;
    float value = 0.0f;
    if (tile.IsRow(row) && i < head_dim) {
      const int64_t token = tile.item.first_token + tile.TokenOf(row);
      value = qkv[token * geometry.qkv_width() +
                  int64_t{tile.first_head + tile.HeadOf(row)} * head_dim + i];
    }
    shared.queries[row * QueryStride(head_dim) + i] = SaturateToHalf(value * scale);
  }
}

// Halves [0, count) of eight, zeros after: what lies in the cache past a sequence's end is not its
// own and may be anything.
__device__ uint4 KeepHalves(uint4 halves, int count) {
  const auto keep = [count](uint32_t pair, int first) {
    if (count <= first) return 0u;
    return count == first + 1 ? pair & 0xffffu : pair;
  };
  return {keep(halves.x, 0), keep(halves.y, 2), keep(halves.z, 4), keep(halves.w, 6)};
}

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

// Asks for the keys and values of a chunk, before the block waits for those of this step: most of
// them are of steps before. They are read soon after in any case.
__device__ void PrefetchChunk(const Tile& tile, const AttentionArguments& arguments) {
  const AttentionGeometry& geometry = tile.geometry;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t run_bytes = int64_t{16} * geometry.head_dim * int64_t{sizeof(__half)};
  for (int run = static_cast<int>(threadIdx.x) / 32; run < kAttentionChunk / 16;
       run += kAttentionWarps) {
    const int position = tile.item.chunk * kAttentionChunk + run * 16;
    if (position >= tile.MostKeys()) return;
    const int64_t block =
        arguments.block_table[tile.item.first_block + position / geometry.block_size];
    // Of blocks of more than 16, values lie apart: the lines of as many bytes are near enough.
    const int64_t offset =
        (block * geometry.num_kv_heads + tile.kv_head) * geometry.block_size * geometry.head_dim +
        int64_t{position % geometry.block_size} * geometry.head_dim;
    PrefetchRange(static_cast<const __half*>(arguments.cache.keys) + offset, run_bytes, lane, 32);
    PrefetchRange(static_cast<const __half*>(arguments.cache.values) + offset, run_bytes, lane, 32);
  }
}

// One warp, keys [first_key, first_key + kAttentionPiece): maximum, sum and weighted values to
// piece `warp` of the shared memory.
__device__ void AttendPiece(const Tile& tile, const AttentionArguments& arguments, int first_key,
                            int warp, Shared& shared) {
  const AttentionGeometry& geometry = tile.geometry;
  const int head_dim = geometry.head_dim;
  const int block_size = geometry.block_size;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int low_row = lane / 4;
  const int quad = lane % 4;
  const int most_keys = tile.MostKeys();

  if (first_key >= most_keys) {
    if (lane < kAttentionRows) {
      shared.piece_maximum[warp * kAttentionRows + lane] = -INFINITY;
      shared.piece_sum[warp * kAttentionRows + lane] = 0.0f;
    }
    return;
  }

  // First element of the cache for run `run` of 16 keys of the piece, which are in one block.
  const auto run_base = [&](int run, bool& exists) -> int64_t {
    const int position = first_key + run * 16;
    exists = position < most_keys;
    if (!exists) return 0;
    const int64_t block = arguments.block_table[tile.item.first_block + position / block_size];
    return (block * geometry.num_kv_heads + tile.kv_head) * block_size * head_dim;
  };
  const auto run_slot = [&](int run) { return (first_key + run * 16) % block_size; };

  // Scores. This lane reads the keys of column `low_row`.
  float scores[kKeyTiles][4] = {};
  {
    const int run = low_row / 2;
    bool exists;
    const int64_t base = run_base(run, exists);
    const __half* keys = static_cast<const __half*>(arguments.cache.keys) + base +
                         int64_t{run_slot(run) + low_row % 2} * head_dim;
    for (int first = 0; first < head_dim; first += kKeyBatch * kHeadDimStep) {
      uint4 key[kKeyBatch][kKeyTiles];
#pragma unroll
      for (int part = 0; part < kKeyBatch; ++part) {
        const int dim = first + part * kHeadDimStep + quad * 8;
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
          key[part][j] =
              exists ? LoadKey(keys + int64_t{2 * j} * head_dim, dim, head_dim) : uint4{};
        }
      }
      FinishIssuingLoads();
#pragma unroll
      for (int part = 0; part < kKeyBatch; ++part) {
        if (first + part * kHeadDimStep >= head_dim) break;
        const int dim = first + part * kHeadDimStep + quad * 8;
        const __half* query = shared.queries + low_row * QueryStride(head_dim) + dim;
        const uint4 low = *reinterpret_cast<const uint4*>(query);
        const uint4 high = *reinterpret_cast<const uint4*>(query + 8 * QueryStride(head_dim));
        const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
        const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
          MultiplyAccumulate(a0, {key[part][j].x, key[part][j].y}, scores[j]);
          MultiplyAccumulate(a1, {key[part][j].z, key[part][j].w}, scores[j]);
        }
      }
    }
  }

  // Softmax. This lane holds the keys of run `quad` for rows low_row and low_row + 8.
  const int num_keys[2] = {tile.NumKeys(low_row), tile.NumKeys(low_row + 8)};
  float maximum[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + KeyOfColumn(j, 2 * quad + i % 2);
      if (key >= num_keys[i / 2]) scores[j][i] = -INFINITY;
      maximum[i / 2] = fmaxf(maximum[i / 2], scores[j][i]);
    }
  }
  float sum[2] = {0.0f, 0.0f};
  uint32_t weights[kKeyTiles][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(0xffffffffu, maximum[half], 1));
    maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(0xffffffffu, maximum[half], 2));
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      const __half2 pair = __floats2half2_rn(PartWeight(scores[j][2 * half], maximum[half]),
                                             PartWeight(scores[j][2 * half + 1], maximum[half]));
      sum[half] = __fadd_rn(sum[half], __fadd_rn(__low2float(pair), __high2float(pair)));
      weights[j][half] = *reinterpret_cast<const uint32_t*>(&pair);
    }
    sum[half] = __fadd_rn(sum[half], __shfl_xor_sync(0xffffffffu, sum[half], 1));
    sum[half] = __fadd_rn(sum[half], __shfl_xor_sync(0xffffffffu, sum[half], 2));
    if (quad == 0) {
      const int row = warp * kAttentionRows + low_row + 8 * half;
      shared.piece_maximum[row] = maximum[half];
      shared.piece_sum[row] = sum[half];
    }
  }

  // Weighted values, eight dimensions at a time. This lane reads dimension `low_row` of them.
  {
    bool exists;
    const int64_t base = run_base(quad, exists);
    const __half* values =
        static_cast<const __half*>(arguments.cache.values) + base + run_slot(quad);
    const int count = most_keys - (first_key + quad * 16);
    const int padded = PaddedHeadDim(head_dim);
    float* out = shared.pieces + (warp * kAttentionRows + low_row) * padded + 2 * quad;
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
      FinishIssuingLoads();
#pragma unroll
      for (int part = 0; part < kValueBatch; ++part) {
        if (first + part * 8 >= head_dim) break;
        if (count < 16) {
          low[part] = KeepHalves(low[part], count);
          high[part] = KeepHalves(high[part], count - 8);
        }
        float sums[4] = {};
        const uint2 b[4] = {{low[part].x, low[part].y},
                            {low[part].z, low[part].w},
                            {high[part].x, high[part].y},
                            {high[part].z, high[part].w}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t a[4] = {weights[2 * i][0], weights[2 * i][1], weights[2 * i + 1][0],
                                 weights[2 * i + 1][1]};
          MultiplyAccumulate(a, b[i], sums);
        }
        *reinterpret_cast<float2*>(out + first + part * 8) = {sums[0], sums[1]};
        *reinterpret_cast<float2*>(out + 8 * padded + first + part * 8) = {sums[2], sums[3]};
      }
    }
  }
}

// One thread a row: how much each piece counts in its chunk, and the chunk beside those before it.
__device__ void WeighChunk(int row, float& running_maximum, Shared& shared) {
  float maximum = -INFINITY;
#pragma unroll
  for (int piece = 0; piece < kAttentionWarps; ++piece) {
    maximum = fmaxf(maximum, shared.piece_maximum[piece * kAttentionRows + row]);
  }
  float sum = 0.0f;
#pragma unroll
  for (int piece = 0; piece < kAttentionWarps; ++piece) {
    const int index = piece * kAttentionRows + row;
    const float weight = PartWeight(shared.piece_maximum[index], maximum);
    shared.piece_weight[index] = weight;
    sum = __fmaf_rn(shared.piece_sum[index], weight, sum);
  }
  shared.chunk_maximum[row] = maximum;
  shared.chunk_sum[row] = sum;
  const MergeWeights merge = WeighMerge(running_maximum, maximum);
  shared.merge[row] = merge;
  shared.running_sum[row] = Merge(shared.running_sum[row], sum, merge);
  running_maximum = merge.maximum;
}

__device__ float ChunkValue(const Shared& shared, int row, int i, int padded) {
  float value = 0.0f;
#pragma unroll
  for (int piece = 0; piece < kAttentionWarps; ++piece) {
    const int index = piece * kAttentionRows + row;
    // Pieces without a visible key have not written their values.
    const float weight = shared.piece_weight[index];
    if (weight != 0.0f) value = __fmaf_rn(shared.pieces[index * padded + i], weight, value);
  }
  return value;
}

// Grid: (items, key heads * tiles of their query heads).
__global__ void __launch_bounds__(kThreads)
    Attend(const __grid_constant__ AttentionArguments arguments) {
  extern __shared__ __align__(16) uint8_t memory[];
  AllowNextKernel();
  const AttentionGeometry& geometry = arguments.geometry;
  const int head_dim = geometry.head_dim;
  const int padded = PaddedHeadDim(head_dim);
  Shared shared(memory, head_dim);

  Tile tile;
  tile.geometry = geometry;
  tile.item = arguments.items[blockIdx.x];
  if (tile.item.num_tokens == 0) {
    WaitForKernelBefore();
    return;
  }
  tile.kv_head = static_cast<int>(blockIdx.y) / geometry.tiles_per_group();
  const int group_tile = static_cast<int>(blockIdx.y) % geometry.tiles_per_group();
  const int first_in_group = group_tile * geometry.heads_per_tile();
  tile.first_head = tile.kv_head * geometry.heads_per_group() + first_in_group;
  tile.num_heads = min(geometry.heads_per_tile(), geometry.heads_per_group() - first_in_group);

  // Items and block table were there before the step's first kernel.
  if (tile.item.chunk >= 0) PrefetchChunk(tile, arguments);
  WaitForKernelBefore();

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  LoadQueries(tile, arguments.qkv, shared);
  float running_maximum = -INFINITY;  // of row `thread`, in the first threads
  if (thread < kAttentionRows) shared.running_sum[thread] = 0.0f;
  for (int index = thread; index < kAttentionRows * padded; index += kThreads) {
    shared.running[index] = 0.0f;
  }
  __syncthreads();

  const bool one_chunk = tile.item.chunk >= 0;
  const int first_chunk = one_chunk ? tile.item.chunk : 0;
  const int end_chunk =
      one_chunk ? first_chunk + 1 : (tile.MostKeys() + kAttentionChunk - 1) / kAttentionChunk;
  for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
    AttendPiece(tile, arguments, chunk * kAttentionChunk + warp * kAttentionPiece, warp, shared);
    __syncthreads();
    if (thread < kAttentionRows) WeighChunk(thread, running_maximum, shared);
    __syncthreads();
    if (one_chunk) break;
    for (int index = thread; index < kAttentionRows * padded; index += kThreads) {
      const int row = index / padded;
      const int i = index % padded;
      if (i >= head_dim) continue;
      shared.running[index] =
          Merge(shared.running[index], ChunkValue(shared, row, i, padded), shared.merge[row]);
    }
    __syncthreads();
  }

  if (one_chunk) {
    float* partial = arguments.partials + tile.item.slot * geometry.partial_floats() +
                     int64_t{blockIdx.y} * kAttentionRows * (head_dim + 2);
    for (int index = thread; index < kAttentionRows * (head_dim + 2); index += kThreads) {
      const int row = index / (head_dim + 2);
      const int i = index % (head_dim + 2);
      if (!tile.IsRow(row)) continue;
      partial[index] = i == 0   ? shared.chunk_maximum[row]
                       : i == 1 ? shared.chunk_sum[row]
                                : ChunkValue(shared, row, i - 2, padded);
    }
    return;
  }
  for (int index = thread; index < kAttentionRows * head_dim; index += kThreads) {
    const int row = index / head_dim;
    const int i = index % head_dim;
    if (!tile.IsRow(row)) continue;
    const int64_t token = tile.item.first_token + tile.TokenOf(row) - arguments.first_token;
    const int64_t head = tile.first_head + tile.HeadOf(row);
    arguments.attended[token * geometry.query_width() + head * head_dim + i] =
        __fdiv_rn(shared.running[row * padded + i], shared.running_sum[row]);
  }
}

// One value of a token's attention out of its chunks.
__device__ float MergeChunks(const AttentionArguments& arguments, const AttentionToken& token,
                             int head, int i) {
  const AttentionGeometry& geometry = arguments.geometry;
  const int kv_head = head / geometry.heads_per_group();
  const int in_group = head % geometry.heads_per_group();
  const int tile = kv_head * geometry.tiles_per_group() + in_group / geometry.heads_per_tile();
  const int row =
      token.tile_token * geometry.heads_per_tile() + in_group % geometry.heads_per_tile();
  const float* partial = arguments.partials + token.first_slot * geometry.partial_floats() +
                         (int64_t{tile} * kAttentionRows + row) * (geometry.head_dim + 2);
  float maximum = -INFINITY;
  float sum = 0.0f;
  float value = 0.0f;
#pragma unroll 4
  for (int chunk = 0; chunk < token.num_chunks; ++chunk) {
    const MergeWeights merge = WeighMerge(maximum, partial[0]);
    sum = Merge(sum, partial[1], merge);
    value = Merge(value, partial[2 + i], merge);
    maximum = merge.maximum;
    partial += geometry.partial_floats();
  }
  return __fdiv_rn(value, sum);
}

__global__ void __launch_bounds__(kProducerThreads)
    FinishAttention(const __grid_constant__ AttentionArguments arguments,
                    const AttentionToken* tokens, const __grid_constant__ InputSketch input_sketch,
                    uint8_t* prepared, bool is_staged) {
  extern __shared__ __align__(16) float x[];
  AllowNextKernel();
  const InputSketch sketch = StageSketch<kProducerThreads>(
      input_sketch, StagedTables(x, input_sketch, is_staged), ThisShare());
  WaitForKernelBefore();
  const AttentionToken token = tokens[arguments.first_token + blockIdx.x];
  const int head_dim = arguments.geometry.head_dim;
  float maximum = 0.0f;
  for (int64_t index = threadIdx.x; index < sketch.cols; index += kProducerThreads) {
    const float value = token.num_chunks == 0
                            ? arguments.attended[int64_t{blockIdx.x} * sketch.cols + index]
                            : MergeChunks(arguments, token, static_cast<int>(index / head_dim),
                                          static_cast<int>(index % head_dim));
    maximum = fmaxf(maximum, fabsf(value));
    x[index] = value;
  }
  WaitForCopies<0>();
  maximum = BlockSumAndMax<kProducerThreads>(0.0f, maximum).maximum;
  WritePrepared<kProducerThreads>(
      x, 1.0f, maximum, sketch, ThisShare(),
      prepared + (arguments.first_token + blockIdx.x) * PreparedRowBytes(sketch.num_steps));
}

}  // namespace

cudaError_t LaunchAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  const AttentionGeometry& geometry = arguments.geometry;
  const int64_t shared_bytes = Shared::Bytes(geometry.head_dim);
  if (const cudaError_t error = AllowSharedMemory(Attend, shared_bytes); error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(arguments.num_items),
                  static_cast<unsigned>(geometry.num_kv_heads * geometry.tiles_per_group()));
  return LaunchKernel(Attend, grid, kThreads, static_cast<size_t>(shared_bytes), stream, arguments);
}

cudaError_t LaunchFinishAttention(const AttentionArguments& arguments, const AttentionToken* tokens,
                                  int64_t num_tokens, const InputSketch& sketch,
                                  int num_multiprocessors, void* prepared, cudaStream_t stream) {
  return LaunchProducer(FinishAttention, num_tokens, sketch, num_multiprocessors, stream, arguments,
                        tokens, sketch, static_cast<uint8_t*>(prepared));
}

}  // namespace ultrasketch::cuda
