// Attention of steps with no more than one token of each sequence, the rotation of its query and
// key and their storing included.
//
//   block    a chunk of 256 keys of a token, for the query heads of one key head
//   warp w   pieces w, w + kWarps, ... of the chunk: 64 keys and values in shared memory, scores,
//            softmax, weighted values; then the block merges the pieces
//
// All but the newest key and value are on their way while the block waits for the query. With few
// blocks each piece has a warp, so that all are in flight at once; with many, half of the shared
// memory lets two blocks overlap. Written to be short: a step of one token runs through its kernels
// once a layer, and most of what it waits for is their instructions.
#include "engine/backends/cuda/attention_stage.cuh"
#include "engine/backends/cuda/producer_launch.cuh"
#include "engine/backends/cuda/rotation.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kPieces = kAttentionChunk / kAttentionPiece;

// A block's shared memory after the stages of its warps.
template <int kDims>
struct TokenShared {
  static constexpr int kQueryBytes = kAttentionRows * RowStride(kDims) * 2;
  static constexpr int kRangeBytes = kPieces * kAttentionRows * 8;

  __half* queries;  // [16][RowStride]
  float2* ranges;   // [piece][16]: maximum and sum
  float* values;    // [piece][num_heads][kDims]

  __device__ explicit TokenShared(uint8_t* memory)
      : queries(reinterpret_cast<__half*>(memory)),
        ranges(reinterpret_cast<float2*>(memory + kQueryBytes)),
        values(reinterpret_cast<float*>(memory + kQueryBytes + kRangeBytes)) {}

  static int Bytes(int num_heads) {
    return kQueryBytes + kRangeBytes + kPieces * num_heads * kDims * int{sizeof(float)};
  }
};

// Rotates the queries of the item's heads to `queries` and, where `has_new_key`, stores its key and
// value in the cache.
template <int kDims, int kThreads>
__device__ inline void RotateToken(const AttentionArguments& arguments, const Tile& tile,
                                   const Rotation& rotation, bool has_new_key, __half* queries) {
  constexpr int kHalf = kDims / 2;
  constexpr int kRowsAtOnce = kThreads / kHalf;
  constexpr int kBatch = 2;
  const AttentionGeometry& geometry = tile.geometry;
  const int i = static_cast<int>(threadIdx.x) % kHalf;
  const float* const row = arguments.qkv + tile.item.first_token * geometry.qkv_width();
  const float* const heads = row + tile.first_head * kDims + i;
  const float* const key = row + (geometry.num_heads + tile.kv_head) * kDims + i;
  const float scale = QueryScale(kDims);
  const int num_rows = tile.num_heads + static_cast<int>(has_new_key);
  const int position = tile.item.num_keys - 1;
  const int slot = position % geometry.block_size;
  const int64_t base = RunBase(tile, arguments.block_table, position);
  __half* const new_key =
      static_cast<__half*>(arguments.cache.keys) + base + int64_t{slot} * kDims + i;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) / kHalf; first < num_rows;
       first += kBatch * kRowsAtOnce) {
    float2 pairs[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int r = first + b * kRowsAtOnce;
      const float* const source = r < tile.num_heads ? heads + r * kDims : key;
      if (r < num_rows) pairs[b] = {source[0], source[kHalf]};
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int r = first + b * kRowsAtOnce;
      if (r >= num_rows) break;
      const bool is_query = r < tile.num_heads;
      const float2 rotated = rotation.Apply(pairs[b].x, pairs[b].y);
      __half* const out = is_query ? queries + r * RowStride(kDims) + i : new_key;
      out[0] = SaturateToHalf(is_query ? rotated.x * scale : rotated.x);
      out[kHalf] = SaturateToHalf(is_query ? rotated.y * scale : rotated.y);
    }
  }
  if (!has_new_key) return;
  const float* const value =
      row + (geometry.num_heads + geometry.num_kv_heads + tile.kv_head) * kDims;
  __half* const values = static_cast<__half*>(arguments.cache.values) + base + slot;
#pragma unroll 1
  for (int dim = static_cast<int>(threadIdx.x); dim < kDims; dim += kThreads) {
    values[int64_t{dim} * geometry.block_size] = SaturateToHalf(value[dim]);
  }
}

// Grid: (items, key heads).
template <int kDims, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    AttendToken(const __grid_constant__ AttentionArguments arguments) {
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(128) uint8_t memory[];
  AllowNextKernel();
  const AttentionGeometry& geometry = arguments.geometry;
  const AttentionItem item = arguments.items[blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForKernelBefore();
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  Tile tile;
  tile.geometry = geometry;
  tile.item = item;
  tile.num_heads = geometry.heads_per_group();
  tile.kv_head = static_cast<int>(blockIdx.y);
  tile.first_head = tile.kv_head * tile.num_heads;
  TokenShared<kDims> shared(memory + kWarps * PieceStage<kDims>::kBytes);
  uint8_t* const stage = memory + warp * PieceStage<kDims>::kBytes;
  const int first_key = max(item.chunk, 0) * kAttentionChunk;
  const int new_position = item.num_keys - 1;

  // Items and block table were there before the step's first kernel.
  PieceCopier<kDims, 32> copier(tile, arguments, lane);
  copier.Find(first_key + warp * kAttentionPiece, item.num_keys);
  const int old_runs = max((new_position - first_key - warp * kAttentionPiece) / kRunKeys, 0);
  copier.Copy(0, old_runs, stage);
  // Rows without a query.
  constexpr int kRowParts = RowStride(kDims) * 2 / 16;
#pragma unroll 1
  for (int part = tile.num_heads * kRowParts + thread; part < kAttentionRows * kRowParts;
       part += kThreads) {
    reinterpret_cast<uint4*>(shared.queries)[part] = {};
  }
  Rotation rotation(arguments.frequencies, arguments.tokens[item.first_token].position);
  rotation.TurnTo(thread % (kDims / 2));
  WaitForKernelBefore();

  const bool has_new_key = new_position - first_key < kAttentionChunk;
  RotateToken<kDims, kThreads>(arguments, tile, rotation, has_new_key, shared.queries);
  __syncthreads();

#pragma unroll 1
  for (int piece = warp; piece < kPieces; piece += kWarps) {
    const int piece_key = first_key + piece * kAttentionPiece;
    float2* const ranges = shared.ranges + piece * kAttentionRows;
    if (piece_key >= item.num_keys) {
      if (lane < kAttentionRows) ranges[lane] = {-INFINITY, 0.0f};
      continue;
    }
    if (piece != warp) {
      __syncwarp();  // done with the piece before
      copier.Find(piece_key, item.num_keys);
    }
    copier.Copy(piece == warp ? old_runs : 0, kAttentionPiece / kRunKeys, stage);
    CommitCopies();
    WaitForCopies<0>();
    __syncwarp();
    if (piece_key + kAttentionPiece > item.num_keys) {
      ClearValues<kDims>(item.num_keys - piece_key, stage, lane, 32);
      __syncwarp();
    }
    float scores[kKeyTiles][4] = {};
    ScorePiece<kDims>(shared.queries, stage, scores);
    const int low_row = lane / 4;
    const int num_keys[2] = {item.num_keys, item.num_keys};
    const PieceWeights weights = WeighScores(scores, piece_key, num_keys);
    if (lane % 4 == 0) {
      ranges[low_row] = {weights.maximum[0], weights.sum[0]};
      ranges[low_row + 8] = {weights.maximum[1], weights.sum[1]};
    }
    float* const out = shared.values + (piece * tile.num_heads + low_row) * kDims + 2 * (lane % 4);
    const bool is_low = low_row < tile.num_heads;
    const bool is_high = low_row + 8 < tile.num_heads;
    WeighPiece<kDims>(weights, stage, [&](int dims, const float(&sums)[4]) {
      if (is_low) *reinterpret_cast<float2*>(out + dims * 8) = {sums[0], sums[1]};
      if (is_high) *reinterpret_cast<float2*>(out + 8 * kDims + dims * 8) = {sums[2], sums[3]};
    });
  }
  __syncthreads();

  // One warp a head: its pieces merge to the chunk.
#pragma unroll 1
  for (int row = warp; row < tile.num_heads; row += kWarps) {
    float maximum = -INFINITY;
    float sum = 0.0f;
    float2 values[kDims / 64] = {};
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const float2 range = shared.ranges[piece * kAttentionRows + row];
      const MergeWeights merge = WeighMerge(maximum, range.x);
      maximum = merge.maximum;
      sum = Merge(sum, range.y, merge);
      // Pieces without a key have not written their values.
      if (merge.added == 0.0f) continue;
#pragma unroll
      for (int part = 0; part < kDims / 64; ++part) {
        const float2 added = reinterpret_cast<const float2*>(
            shared.values + (piece * tile.num_heads + row) * kDims)[part * 32 + lane];
        values[part] = {Merge(values[part].x, added.x, merge),
                        Merge(values[part].y, added.y, merge)};
      }
    }
    const bool is_partial = item.chunk >= 0;
    float factor = 1.0f;
    float2* out;
    if (is_partial) {
      out = reinterpret_cast<float2*>(arguments.partials + item.slot * geometry.partial_floats() +
                                      (tile.kv_head * kAttentionRows + row) * (kDims + 2));
      if (lane == 0) *out = {maximum, sum};
      ++out;
    } else {
      factor = InverseSum(sum);
      out = reinterpret_cast<float2*>(
          arguments.attended + (item.first_token - arguments.first_token) * geometry.query_width() +
          (tile.first_head + row) * kDims);
    }
#pragma unroll
    for (int part = 0; part < kDims / 64; ++part) {
      out[part * 32 + lane] = {__fmul_rn(values[part].x, factor),
                               __fmul_rn(values[part].y, factor)};
    }
  }
}

template <int kDims, int kWarps>
int64_t SharedBytes(const AttentionGeometry& geometry) {
  return kWarps * PieceStage<kDims>::kBytes + TokenShared<kDims>::Bytes(geometry.heads_per_group());
}

template <int kDims, int kWarps>
cudaError_t Launch(const AttentionArguments& arguments, cudaStream_t stream) {
  const AttentionGeometry& geometry = arguments.geometry;
  const int64_t shared_bytes = SharedBytes<kDims, kWarps>(geometry);
  if (const cudaError_t error = AllowSharedMemory(AttendToken<kDims, kWarps>, shared_bytes);
      error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(arguments.num_items),
                  static_cast<unsigned>(geometry.num_kv_heads));
  return LaunchKernel(AttendToken<kDims, kWarps>, grid, kWarps * 32,
                      static_cast<size_t>(shared_bytes), stream, arguments);
}

}  // namespace

bool HasTokenAttention(const AttentionGeometry& geometry, int64_t max_shared_bytes) {
  if (geometry.tiles_per_group() != 1) return false;
  return (geometry.head_dim == 64 && SharedBytes<64, 4>(geometry) <= max_shared_bytes) ||
         (geometry.head_dim == 128 && SharedBytes<128, 2>(geometry) <= max_shared_bytes);
}

cudaError_t LaunchTokenAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  if (arguments.geometry.head_dim == 64) return Launch<64, 4>(arguments, stream);
  const int64_t num_blocks = arguments.num_items * arguments.geometry.num_kv_heads;
  const bool all_pieces_at_once =
      num_blocks <= arguments.num_multiprocessors &&
      SharedBytes<128, 4>(arguments.geometry) <= arguments.max_shared_bytes;
  return all_pieces_at_once ? Launch<128, 4>(arguments, stream) : Launch<128, 2>(arguments, stream);
}

}  // namespace ultrasketch::cuda
