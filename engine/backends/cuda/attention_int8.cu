// Attention over a cache of bytes (int8_attention.cuh): storing keys and values, single tokens with
// their rotation, a few tokens of a sequence, prompts.
//
//   many single tokens   block, which is a warp: a chunk of 256 keys, piece by piece, two of which
//                        are in shared memory
//   few tokens           block: a chunk of 256 keys, or all chunks one after the other, for up to
//                        eight queries of one key head; warp: pieces w, w + kCrews, ... of the
//                        chunk, copied to shared memory by itself; then the block merges the pieces
//   prompts              block: eight warps of up to eight queries each, of neighbouring tokens,
//                        that read the same pieces, double-buffered in shared memory
//
// Bound: single tokens by memory, each key and value being read once; prompts by the instructions
// that make weights of scores, some 250 for a warp's 64 keys and eight queries.
#include <cstdint>
#include <type_traits>
#include <utility>

#include "engine/backends/cuda/input_launch.cuh"
#include "engine/backends/cuda/int8_attention.cuh"
#include "engine/backends/cuda/kernels.h"

namespace ultrasketch::cuda {
namespace {

constexpr int kPieces = kKvSplitKeys / kKvTileKeys;
constexpr int kRuns = kKvTileKeys / kRunKeys;

// --- Storing ---

// A key or value to its place in the cache, by a warp.
template <int kDims>
__device__ void StoreRow(const HeadRow<kDims>& row, bool is_key, int half, int key, uint8_t* run) {
  using Run = Int8Run<kDims>;
  const Int8Scale scale(row.Largest());
  row.ForEach(half, [&](int dim, float value) {
    run[is_key ? Run::KeyOffset(key, dim) : Run::ValueOffset(key, dim)] =
        static_cast<uint8_t>(scale.Round(value));
  });
  if (threadIdx.x % 32 == 0) {
    reinterpret_cast<uint16_t*>(run + (is_key ? Run::kKeyScales : Run::kValueScales))[key] =
        scale.bfloat16;
  }
}

template <int kDims>
__device__ void TurnAll(Rotation (&rotations)[HeadRow<kDims>::kPairs], int half) {
#pragma unroll
  for (int p = 0; p < HeadRow<kDims>::kPairs; ++p) {
    rotations[p].TurnTo(min(HeadRow<kDims>::PairOf(p), half - 1));
  }
}

template <int kDims>
struct Rotations {
  Rotation of_pair[HeadRow<kDims>::kPairs];

  __device__ Rotations(const float* frequencies, int position, int half)
      : Rotations(frequencies, position, half,
                  std::make_integer_sequence<int, HeadRow<kDims>::kPairs>()) {}

 private:
  template <int... kPair>
  __device__ Rotations(const float* frequencies, int position, int half,
                       std::integer_sequence<int, kPair...> /*pairs*/)
      : of_pair{((void)kPair, Rotation(frequencies, position))...} {
    TurnAll<kDims>(of_pair, half);
  }
};

constexpr int kStoreWarps = 8;

// Rotates queries in place and stores keys and values. Grid: (tokens, shares of their heads); a
// warp a head.
template <int kDims>
__global__ void __launch_bounds__(kStoreWarps * 32)
    RotateAndStoreInt8(const __grid_constant__ AttentionGeometry geometry, const float* frequencies,
                       const TokenInput* tokens, const int32_t* block_table, uint8_t* cache,
                       float* qkv) {
  LaunchDependents();
  const TokenInput token = tokens[blockIdx.x];
  const int half = geometry.head_dim / 2;
  const int slot = token.cache_position % geometry.block_size;
  const int64_t block = block_table[token.first_block + token.cache_position / geometry.block_size];
  const Rotations<kDims> rotations(frequencies, token.position, half);
  WaitForGridDependency();
  const int num_keys_end = geometry.num_heads + geometry.num_kv_heads;
  const int num_rows = num_keys_end + geometry.num_kv_heads;
#pragma unroll 1
  for (int r = static_cast<int>(blockIdx.y) * kStoreWarps + static_cast<int>(threadIdx.x) / 32;
       r < num_rows; r += static_cast<int>(gridDim.y) * kStoreWarps) {
    float* const source = qkv + blockIdx.x * geometry.qkv_width() + r * geometry.head_dim;
    HeadRow<kDims> row;
    row.Load(source, half);
    if (r < num_keys_end) row.Rotate(rotations.of_pair);
    if (r < geometry.num_heads) {
      row.ForEach(half, [&](int dim, float value) { source[dim] = value; });
    } else {
      const bool is_key = r < num_keys_end;
      const int kv_head = r - (is_key ? geometry.num_heads : num_keys_end);
      StoreRow(row, is_key, half, slot % kRunKeys,
               cache + Int8RunBase<kDims>(geometry, block, kv_head, slot));
    }
  }
}

// --- Copying ---

// The runs of a piece: lane r of a warp knows where run r is.
template <int kDims>
class RunFinder {
 public:
  __device__ RunFinder(const Tile& tile, const AttentionArguments& arguments)
      : geometry_(tile.geometry),
        kv_head_(tile.kv_head),
        block_table_(arguments.block_table + tile.item.first_block),
        cache_(static_cast<const uint8_t*>(arguments.cache.keys)) {}

  // Null from position `end` on. Which run is lane % kRuns.
  __device__ const uint8_t* Find(int first_key, int end) const {
    const int position = first_key + static_cast<int>(threadIdx.x) % kRuns * kRunKeys;
    if (position >= end) return nullptr;
    const int64_t block = block_table_[position / geometry_.block_size];
    return cache_ + Int8RunBase<kDims>(geometry_, block, kv_head_, position % geometry_.block_size);
  }

 private:
  const AttentionGeometry& geometry_;
  int kv_head_;
  const int32_t* block_table_;
  const uint8_t* cache_;
};

__device__ inline const uint8_t* OfLane(const uint8_t* pointer, int lane) {
  return reinterpret_cast<const uint8_t*>(
      __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(pointer), lane));
}

// A warp begins to copy a piece; `own_run` is what RunFinder found.
template <int kDims>
__device__ void CopyPiece(const uint8_t* own_run, uint8_t* stage) {
  using Run = Int8Run<kDims>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const uint8_t* const source = OfLane(own_run, run);
    if (source == nullptr) break;
#pragma unroll
    for (int i = 0; i < 2 * Run::kKeyBytes; i += 32 * 16) {
      CopyAsync16(stage + run * Run::kStride + i + lane * 16, source + i + lane * 16);
    }
  }
  // Scales: four parts of a run.
  const uint8_t* const source = OfLane(own_run, lane / 4 % kRuns);
  if (lane < 4 * kRuns && source != nullptr) {
    const int offset = Run::kKeyScales + lane % 4 * 16;
    CopyAsync16(stage + lane / 4 * Run::kStride + offset, source + offset);
  }
}

// --- Few tokens ---

template <int kDimsOf, int kCrewsOf, bool kRotatesOf>
struct FewShape {
  static constexpr int kDims = kDimsOf;
  static constexpr int kCrews = kCrewsOf;  // warps, each with a piece of its own in shared memory
  static constexpr bool kRotates = kRotatesOf;
  static constexpr int kThreads = kCrews * 32;
  static constexpr int kBlocks = kDims <= 64 ? 4 : 1;  // that registers leave room for
  static constexpr int kStageBytes = kRuns * Int8Run<kDims>::kStride;
  // A piece's weighted values take the place of its keys and values, if no other piece does.
  static constexpr bool kInPlace = kCrews == kPieces;
  static constexpr int kValueBytes = kInt8Rows * kDims * 4;
  static_assert(kValueBytes <= kStageBytes);
  static constexpr int kRanges = kCrews * kStageBytes;
  static constexpr int kQueries = kRanges + kPieces * kInt8Rows * int{sizeof(float2)};
  static constexpr int kValues = kQueries + (Int8Queries<kDims>::kBytes + 15) / 16 * 16;
  static constexpr int kSharedBytes = kValues + (kInPlace ? 0 : kPieces * kValueBytes);

  // [row][kDims]
  static __device__ float* PieceValues(uint8_t* memory, int piece) {
    return reinterpret_cast<float*>(kInPlace ? memory + piece * kStageBytes
                                             : memory + kValues + piece * kValueBytes);
  }
};

// Rotates a single token's queries, key and value, which are a warp's rows w, w + kWarps, ...
template <int kDims, int kWarps>
struct TokenRows {
  static constexpr int kRows = (kInt8Rows + 2 + kWarps - 1) / kWarps;  // of a warp, at most
  HeadRow<kDims> rows[kRows];

  static __device__ int RowOf(int r) { return static_cast<int>(threadIdx.x) / 32 + r * kWarps; }

  __device__ void Load(const AttentionArguments& arguments, const Tile& tile, int num_rows) {
    const AttentionGeometry& geometry = tile.geometry;
    const int head_dim = geometry.head_dim;
    const float* const token = arguments.qkv + tile.item.first_token * geometry.qkv_width();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = RowOf(r);
      if (row >= num_rows) break;
      const int head = row < tile.num_heads ? tile.first_head + row
                                            : geometry.num_heads + tile.kv_head +
                                                  (row - tile.num_heads) * geometry.num_kv_heads;
      rows[r].Load(token + head * head_dim, head_dim / 2);
    }
  }
};

// Grid: (items, key heads * tiles of their query heads).
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    AttendFewInt8(const __grid_constant__ AttentionArguments arguments) {
  constexpr int kDims = Shape::kDims;
  constexpr int kCrews = Shape::kCrews;
  using Run = Int8Run<kDims>;
  extern __shared__ __align__(128) uint8_t memory[];
  LaunchDependents();
  const AttentionGeometry& geometry = arguments.geometry;
  const AttentionItem item = arguments.items[blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForGridDependency();
    return;
  }
  const Tile tile(geometry, item, static_cast<int>(blockIdx.y));
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = ThisWarp();
  const int lane = thread % 32;
  const int half = geometry.head_dim / 2;
  const int most_keys = tile.MaxKeys();
  const bool one_chunk = item.split >= 0;
  const int first_chunk = max(item.split, 0);
  const int end_chunk = one_chunk ? first_chunk + 1 : (most_keys + kKvSplitKeys - 1) / kKvSplitKeys;
  const Int8Queries<kDims> queries{memory + Shape::kQueries};
  auto* const ranges = reinterpret_cast<float2*>(memory + Shape::kRanges);
  uint8_t* const stage = memory + warp * Shape::kStageBytes;
  const RunFinder<kDims> finder(tile, arguments);
  const auto copy_piece = [&](int chunk, int piece) {
    CopyPiece<kDims>(finder.Find(chunk * kKvSplitKeys + piece * kKvTileKeys, most_keys), stage);
    CommitCopies();
  };

  queries.Clear(thread, Shape::kThreads);
  if constexpr (Shape::kRotates) {
    // Items, block table and cache were there before the step's first kernel, but for the newest
    // key and value.
    copy_piece(first_chunk, warp);
    const int new_key = item.num_keys - 1 - first_chunk * kKvSplitKeys;
    const bool has_new_key = new_key < kKvSplitKeys;
    const int num_rows = tile.num_heads + (has_new_key ? 2 : 0);
    const Rotations<kDims> rotations(arguments.frequencies,
                                     arguments.tokens[item.first_token].position, half);
    const int position = item.num_keys - 1;
    const int slot = position % geometry.block_size;
    uint8_t* const new_run =
        static_cast<uint8_t*>(arguments.cache.keys) +
        Int8RunBase<kDims>(geometry,
                           arguments.block_table[item.first_block + position / geometry.block_size],
                           tile.kv_head, slot);
    const int new_piece = new_key / kKvTileKeys;
    uint8_t* const staged_run =
        memory + new_piece * Shape::kStageBytes + new_key % kKvTileKeys / kRunKeys * Run::kStride;
    // Of several tiles with the same keys one stores the newest.
    const bool stores = tile.first_head == tile.kv_head * geometry.heads_per_group();
    WaitForCopies<0>();
    // The newest key and value go over what was copied from their places.
    __syncthreads();
    WaitForGridDependency();

    TokenRows<kDims, kCrews> token;
    token.Load(arguments, tile, num_rows);
#pragma unroll
    for (int r = 0; r < token.kRows; ++r) {
      const int row = token.RowOf(r);
      if (row >= num_rows) break;
      HeadRow<kDims>& values = token.rows[r];
      if (row <= tile.num_heads) values.Rotate(rotations.of_pair);
      if (row < tile.num_heads) {
        queries.Put(row, values, geometry.head_dim);
      } else {
        const bool is_key = row == tile.num_heads;
        if (stores) StoreRow(values, is_key, half, slot % kRunKeys, new_run);
        if (new_piece < kCrews) StoreRow(values, is_key, half, slot % kRunKeys, staged_run);
      }
    }
  } else {
    WaitForGridDependency();
    copy_piece(first_chunk, warp);
    __syncthreads();  // cleared
#pragma unroll 1
    for (int row = warp; row < kInt8Rows; row += kCrews) {
      if (!tile.IsRow(row)) continue;
      HeadRow<kDims> query;
      query.Load(arguments.qkv + (item.first_token + tile.TokenOf(row)) * geometry.qkv_width() +
                     (tile.first_head + tile.HeadOf(row)) * geometry.head_dim,
                 half);
      queries.Put(row, query, geometry.head_dim);
    }
  }
  __syncthreads();

  // This warp's rows, and this lane's dimensions of them, as far as they are merged.
  constexpr int kOwnRows = kInt8Rows / kCrews;
  constexpr int kOwnDims = kDims / 32;
  float running[kOwnRows][kOwnDims] = {};
  float2 running_range[kOwnRows];
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) running_range[r] = {-INFINITY, 0.0f};
  // What comes of rows without a query is dropped: they need not see fewer keys than others.
  const auto is_row = [&](int row) {
    return Shape::kRotates ? row < tile.num_heads : tile.IsRow(row);
  };
  const int own_keys = !Shape::kRotates && is_row(lane / 4) ? tile.NumKeys(lane / 4) : most_keys;

#pragma unroll 1
  for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
    if (chunk != first_chunk) {
      __syncthreads();  // merged
      copy_piece(chunk, warp);
    }
#pragma unroll 1
    for (int piece = warp; piece < kPieces; piece += kCrews) {
      const int first_key = chunk * kKvSplitKeys + piece * kKvTileKeys;
      if (first_key >= most_keys) break;
      if (kCrews < kPieces && piece != warp) {
        __syncwarp();  // done with the piece before
        copy_piece(chunk, piece);
      }
      WaitForCopies<0>();
      __syncwarp();
      float2 values[kDims / 8];
      const float2 range =
          AttendInt8Piece<kDims>(queries, stage, own_keys - first_key,
                                 [&](int dims, const float2& of_dims) { values[dims] = of_dims; });
      if (Shape::kInPlace) __syncwarp();
      const int row = lane / 4;
      float* const out = Shape::PieceValues(memory, piece) + row * kDims + 2 * (lane % 4);
      if (is_row(row)) {
#pragma unroll
        for (int dims = 0; dims < kDims / 8; ++dims) {
          *reinterpret_cast<float2*>(out + dims * 8) = values[dims];
        }
        if (lane % 4 == 0) ranges[piece * kInt8Rows + row] = range;
      }
    }
    __syncthreads();

#pragma unroll
    for (int r = 0; r < kOwnRows; ++r) {
      const int row = warp + r * kCrews;
      if (!is_row(row)) continue;
      float merged[kOwnDims] = {};
      float2 range = {-INFINITY, 0.0f};
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        if (chunk * kKvSplitKeys + piece * kKvTileKeys >= most_keys) break;
        const float* const values = Shape::PieceValues(memory, piece) + row * kDims + lane;
        const float2 added = ranges[piece * kInt8Rows + row];
        const MergeWeights merge = WeighMerge(range.x, added.x);
        range = {merge.maximum, Merge(range.y, added.y, merge)};
#pragma unroll
        for (int d = 0; d < kOwnDims; ++d) merged[d] = Merge(merged[d], values[d * 32], merge);
      }
      if (one_chunk) {
        running_range[r] = range;
#pragma unroll
        for (int d = 0; d < kOwnDims; ++d) running[r][d] = merged[d];
        continue;
      }
      const MergeWeights merge = WeighMerge(running_range[r].x, range.x);
      running_range[r] = {merge.maximum, Merge(running_range[r].y, range.y, merge)};
#pragma unroll
      for (int d = 0; d < kOwnDims; ++d) running[r][d] = Merge(running[r][d], merged[d], merge);
    }
  }

  const PartialLayout layout(geometry);
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) {
    const int row = warp + r * kCrews;
    if (!is_row(row)) continue;
    const int token_of_tile = Shape::kRotates ? 0 : tile.TokenOf(row);
    const int head = tile.first_head + (Shape::kRotates ? row : tile.HeadOf(row));
    float* out;
    float factor = 1.0f;
    if (one_chunk) {
      float* const partial = arguments.partials + int64_t{item.slot} * layout.split_floats;
      const int place = token_of_tile * geometry.num_heads + head;
      out = partial + place * geometry.head_dim;
      if (lane == 0) {
        *reinterpret_cast<float2*>(partial + layout.RangeOffset(place)) = running_range[r];
      }
    } else {
      const int64_t token = item.first_token + token_of_tile - arguments.first_token;
      out = arguments.attended + token * geometry.query_width() + head * geometry.head_dim;
      factor = InverseSum(running_range[r].y);
    }
#pragma unroll
    for (int d = 0; d < kOwnDims; ++d) {
      const int dim = lane + d * 32;
      if (dim < geometry.head_dim) out[dim] = __fmul_rn(running[r][d], factor);
    }
  }
  if (one_chunk) MergeSplitsIfLast<Shape::kThreads>(tile, arguments);
}

// --- Single tokens of many sequences ---

// Weighted values of a lane's query and its two dimensions of each eight, and {maximum, sum}.
template <int kDims>
struct MergedValues {
  float2 values[kDims / 8];
  float2 range;

  __device__ void Merge(const MergedValues& added) {
    const MergeWeights merge = WeighMerge(range.x, added.range.x);
    range = {merge.maximum, cuda::Merge(range.y, added.range.y, merge)};
#pragma unroll
    for (int dims = 0; dims < kDims / 8; ++dims) {
      values[dims].x = cuda::Merge(values[dims].x, added.values[dims].x, merge);
      values[dims].y = cuda::Merge(values[dims].y, added.values[dims].y, merge);
    }
  }
};

template <int kDimsOf>
struct ManyShape {
  static constexpr int kDims = kDimsOf;
  static constexpr int kBlocks = kDims <= 64 ? 12 : 1;  // that registers leave room for
  static constexpr int kStageBytes = kRuns * Int8Run<kDims>::kStride;
  static constexpr int kSharedBytes = 2 * kStageBytes + Int8Queries<kDims>::kBytes;
};

// Grid: items * key heads * tiles of their query heads, those of a chunk one after the other as
// they lie in memory.
template <typename Shape>
__global__ void __launch_bounds__(32, Shape::kBlocks)
    AttendManyInt8(const __grid_constant__ AttentionArguments arguments) {
  constexpr int kDims = Shape::kDims;
  using Run = Int8Run<kDims>;
  extern __shared__ __align__(128) uint8_t memory[];
  LaunchDependents();
  const int lane = static_cast<int>(threadIdx.x);
  const int num_parts = arguments.geometry.num_kv_heads * arguments.geometry.tiles_per_group();
  const AttentionItem item = arguments.items[static_cast<int>(blockIdx.x) / num_parts];
  if (item.num_tokens == 0) {
    WaitForGridDependency();
    return;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const Tile tile(geometry, item, static_cast<int>(blockIdx.x) % num_parts);
  const int half = geometry.head_dim / 2;
  const int first_key = max(item.split, 0) * kKvSplitKeys;
  const RunFinder<kDims> finder(tile, arguments);
  const auto copy_piece = [&](int piece) {
    CopyPiece<kDims>(finder.Find(first_key + piece * kKvTileKeys, item.num_keys),
                     memory + piece % 2 * Shape::kStageBytes);
  };
  // Items, block table and cache were there before the step's first kernel, but for the newest key
  // and value.
  copy_piece(0);
  CommitCopies();
  copy_piece(1);
  CommitCopies();
  const Int8Queries<kDims> queries{memory + 2 * Shape::kStageBytes};
  queries.Clear(lane, 32);
  const int position = item.num_keys - 1;
  const Rotations<kDims> rotations(arguments.frequencies,
                                   arguments.tokens[item.first_token].position, half);
  const int slot = position % geometry.block_size;
  const int new_piece = (position - first_key) / kKvTileKeys;
  const bool has_new_key = new_piece < kPieces;
  const float* const token = arguments.qkv + item.first_token * geometry.qkv_width();
  __syncwarp();
  WaitForGridDependency();

  {
    HeadRow<kDims> rows[kInt8Rows];
#pragma unroll
    for (int row = 0; row < kInt8Rows; ++row) {
      if (row < tile.num_heads) {
        rows[row].Load(token + (tile.first_head + row) * geometry.head_dim, half);
      }
    }
#pragma unroll
    for (int row = 0; row < kInt8Rows; ++row) {
      if (row < tile.num_heads) {
        rows[row].Rotate(rotations.of_pair);
        queries.Put(row, rows[row], geometry.head_dim);
      }
    }
  }
  HeadRow<kDims> new_key;
  HeadRow<kDims> new_value;
  if (has_new_key) {
    const float* const key = token + (geometry.num_heads + tile.kv_head) * geometry.head_dim;
    new_key.Load(key, half);
    new_value.Load(key + geometry.num_kv_heads * geometry.head_dim, half);
    new_key.Rotate(rotations.of_pair);
    // Of several tiles with the same keys one stores the newest.
    if (tile.first_head == tile.kv_head * geometry.heads_per_group()) {
      const int64_t block =
          arguments.block_table[item.first_block + position / geometry.block_size];
      uint8_t* const run = static_cast<uint8_t*>(arguments.cache.keys) +
                           Int8RunBase<kDims>(geometry, block, tile.kv_head, slot);
      StoreRow(new_key, /*is_key=*/true, half, slot % kRunKeys, run);
      StoreRow(new_value, /*is_key=*/false, half, slot % kRunKeys, run);
    }
  }

  MergedValues<kDims> chunk;
#pragma unroll 1
  for (int piece = 0; piece < kPieces; ++piece) {
    const int piece_key = first_key + piece * kKvTileKeys;
    if (piece_key >= item.num_keys) break;
    uint8_t* const stage = memory + piece % 2 * Shape::kStageBytes;
    WaitForCopies<1>();
    __syncwarp();
    if (piece == new_piece) {
      uint8_t* const run = stage + (position - piece_key) / kRunKeys * Run::kStride;
      StoreRow(new_key, /*is_key=*/true, half, slot % kRunKeys, run);
      StoreRow(new_value, /*is_key=*/false, half, slot % kRunKeys, run);
      __syncwarp();
    }
    MergedValues<kDims> added;
    added.range = AttendInt8Piece<kDims>(
        queries, stage, item.num_keys - piece_key,
        [&](int dims, const float2& values) { added.values[dims] = values; });
    if (piece == 0) {
      chunk = added;
    } else {
      chunk.Merge(added);
    }
    __syncwarp();  // done with the stage
    if (piece + 2 < kPieces) copy_piece(piece + 2);
    CommitCopies();
  }

  const int row = lane / 4;
  if (row >= tile.num_heads) return;
  const int head = tile.first_head + row;
  float* out;
  float factor = 1.0f;
  if (item.split >= 0) {
    const PartialLayout layout(geometry);
    float* const partial = arguments.partials + int64_t{item.slot} * layout.split_floats;
    out = partial + head * geometry.head_dim;
    if (lane % 4 == 0) {
      *reinterpret_cast<float2*>(partial + layout.RangeOffset(head)) = chunk.range;
    }
  } else {
    out = arguments.attended +
          int64_t{item.first_token - arguments.first_token} * geometry.query_width() +
          head * geometry.head_dim;
    factor = InverseSum(chunk.range.y);
  }
#pragma unroll
  for (int dims = 0; dims < kDims / 8; ++dims) {
    const int dim = dims * 8 + 2 * (lane % 4);
    if (dim >= geometry.head_dim) break;
    *reinterpret_cast<float2*>(out + dim) = {__fmul_rn(chunk.values[dims].x, factor),
                                             __fmul_rn(chunk.values[dims].y, factor)};
  }
}

// --- Prompts ---

template <int kDimsOf>
struct PromptShape {
  static constexpr int kDims = kDimsOf;
  static constexpr int kThreads = kPromptTiles * 32;
  static constexpr int kBlocks = kDims <= 64 ? 2 : 1;
  static constexpr int kStageBytes = kRuns * Int8Run<kDims>::kStride;
  static constexpr int kQueryBytes = (Int8Queries<kDims>::kBytes + 15) / 16 * 16;  // of a warp
  static constexpr int kSharedBytes = 2 * kStageBytes + kPromptTiles * kQueryBytes;
};

// Grid: (items, key heads * tiles of their query heads). The last items have most keys, and begin
// first.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    AttendPromptInt8(const __grid_constant__ AttentionArguments arguments) {
  constexpr int kDims = Shape::kDims;
  using Run = Int8Run<kDims>;
  extern __shared__ __align__(128) uint8_t memory[];
  LaunchDependents();
  const AttentionItem item = arguments.prompt_items[gridDim.x - 1 - blockIdx.x];
  if (item.num_tokens == 0) {
    WaitForGridDependency();
    return;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const int warp = ThisWarp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int half = geometry.head_dim / 2;
  const int tile_tokens = geometry.tokens_per_tile();
  AttentionItem own_item = item;
  own_item.first_token += warp * tile_tokens;
  own_item.num_keys += warp * tile_tokens;
  own_item.num_tokens = max(0, min(tile_tokens, item.num_tokens - warp * tile_tokens));
  const Tile tile(geometry, own_item, static_cast<int>(blockIdx.y));
  const int most_keys = item.num_keys + item.num_tokens - 1;
  const int tile_keys = own_item.num_tokens > 0 ? tile.MaxKeys() : 0;
  const Int8Queries<kDims> queries{memory + 2 * Shape::kStageBytes + warp * Shape::kQueryBytes};
  queries.Clear(lane, 32);

  // A warp copies half of a run: its keys, or its values and the scales.
  const RunFinder<kDims> finder(tile, arguments);
  const auto copy_piece = [&](int piece) {
    static_assert(kPromptTiles == 2 * kRuns);
    const uint8_t* const source = OfLane(finder.Find(piece * kKvTileKeys, most_keys), warp / 2);
    if (source == nullptr) return;
    const int first = warp % 2 * Run::kKeyBytes;
    const int end = warp % 2 == 0 ? Run::kKeyBytes : Run::kBytes;
    uint8_t* const to = memory + piece % 2 * Shape::kStageBytes + warp / 2 * Run::kStride;
    for (int i = first + lane * 16; i < end; i += 32 * 16) CopyAsync16(to + i, source + i);
  };
  WaitForGridDependency();

  copy_piece(0);
  CommitCopies();
  __syncwarp();
#pragma unroll 1
  for (int row = 0; row < kInt8Rows; ++row) {
    if (!tile.IsRow(row)) continue;
    HeadRow<kDims> query;
    query.Load(arguments.qkv + (own_item.first_token + tile.TokenOf(row)) * geometry.qkv_width() +
                   (tile.first_head + tile.HeadOf(row)) * geometry.head_dim,
               half);
    queries.Put(row, query, geometry.head_dim);
  }
  __syncwarp();
  const int row = lane / 4;
  const int own_keys = tile.IsRow(row) ? tile.NumKeys(row) : tile_keys;

  MergedValues<kDims> chunk;
  MergedValues<kDims> running;
  const int num_pieces = (most_keys + kKvTileKeys - 1) / kKvTileKeys;
#pragma unroll 1
  for (int piece = 0; piece < num_pieces; ++piece) {
    WaitForCopies<0>();
    // The piece is there for all, and all are done with the one whose place the next one takes.
    __syncthreads();
    if (piece + 1 < num_pieces) {
      copy_piece(piece + 1);
      CommitCopies();
    }
    const int first_key = piece * kKvTileKeys;
    if (first_key >= tile_keys) continue;
    const bool begins_chunk = piece % kPieces == 0;
    MergedValues<kDims> added;
    added.range = AttendInt8Piece<kDims>(
        queries, memory + piece % 2 * Shape::kStageBytes, own_keys - first_key,
        [&](int dims, const float2& values) { added.values[dims] = values; });
    if (begins_chunk) {
      chunk = added;
    } else {
      chunk.Merge(added);
    }
    // The chunk is complete, or all that this tile sees of it.
    if (piece % kPieces == kPieces - 1 || first_key + kKvTileKeys >= tile_keys) {
      if (piece < kPieces) {
        running = chunk;
      } else {
        running.Merge(chunk);
      }
    }
  }

  if (!tile.IsRow(row)) return;
  const int64_t token = own_item.first_token + tile.TokenOf(row) - arguments.first_token;
  const int64_t head = tile.first_head + tile.HeadOf(row);
  float* const out = arguments.attended + token * geometry.query_width() +
                     head * geometry.head_dim + 2 * (lane % 4);
  const float inverse = InverseSum(running.range.y);
#pragma unroll
  for (int dims = 0; dims < kDims / 8; ++dims) {
    if (dims * 8 + 2 * (lane % 4) >= geometry.head_dim) break;
    *reinterpret_cast<float2*>(out + dims * 8) = {__fmul_rn(running.values[dims].x, inverse),
                                                  __fmul_rn(running.values[dims].y, inverse)};
  }
}

// --- Launching ---

// Calls `launch(std::integral_constant<int, kDims>())`.
template <typename Launch>
cudaError_t ForDims(const AttentionGeometry& geometry, const Launch& launch) {
  switch (Int8HeadDim(geometry.head_dim)) {
    case 32:
      return launch(std::integral_constant<int, 32>());
    case 64:
      return launch(std::integral_constant<int, 64>());
    case 96:
      return launch(std::integral_constant<int, 96>());
    case 128:
      return launch(std::integral_constant<int, 128>());
    case 256:
      return launch(std::integral_constant<int, 256>());
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename Shape>
cudaError_t LaunchFewShape(const AttentionArguments& arguments, cudaStream_t stream) {
  if (const cudaError_t error = AllowSharedMemory(AttendFewInt8<Shape>, Shape::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const AttentionGeometry& geometry = arguments.geometry;
  const dim3 grid(static_cast<unsigned>(arguments.num_items),
                  static_cast<unsigned>(geometry.num_kv_heads * geometry.tiles_per_group()));
  return LaunchKernel(AttendFewInt8<Shape>, grid, Shape::kThreads, Shape::kSharedBytes, stream,
                      arguments);
}

template <int kDims, bool kRotates>
cudaError_t LaunchFew(const AttentionArguments& arguments, cudaStream_t stream) {
  using AllPieces = FewShape<kDims, kPieces, kRotates>;
  using OneByOne = FewShape<kDims, 1, kRotates>;
  constexpr int kAlwaysThere = 99 * 1024;
  if constexpr (AllPieces::kSharedBytes <= kAlwaysThere) {
    return LaunchFewShape<AllPieces>(arguments, stream);
  } else {
    static_assert(OneByOne::kSharedBytes <= kAlwaysThere);
    return AllPieces::kSharedBytes + kMergeSharedBytes <= arguments.max_shared_bytes
               ? LaunchFewShape<AllPieces>(arguments, stream)
               : LaunchFewShape<OneByOne>(arguments, stream);
  }
}

}  // namespace

cudaError_t LaunchRotateAndStoreInt8(const AttentionGeometry& geometry, const float* frequencies,
                                     const TokenInput* tokens, int64_t num_tokens,
                                     const int32_t* block_table, CacheView cache, float* qkv,
                                     cudaStream_t stream) {
  constexpr int64_t kFewTokens = 128;
  const dim3 grid(static_cast<unsigned>(num_tokens), num_tokens <= kFewTokens ? 4 : 1);
  return ForDims(geometry, [&](auto dims) {
    return LaunchKernel(RotateAndStoreInt8<dims.value>, grid, kStoreWarps * 32, /*shared_bytes=*/0,
                        stream, geometry, frequencies, tokens, block_table,
                        static_cast<uint8_t*>(cache.keys), qkv);
  });
}

cudaError_t LaunchInt8Attention(const AttentionArguments& arguments, cudaStream_t stream) {
  return ForDims(arguments.geometry, [&](auto dims) {
    if (arguments.num_items > 0) {
      const cudaError_t error = LaunchFew<dims.value, /*kRotates=*/false>(arguments, stream);
      if (error != cudaSuccess) return error;
    }
    if (arguments.num_prompt_items == 0) return cudaSuccess;
    using Shape = PromptShape<dims.value>;
    if (const cudaError_t error = AllowSharedMemory(AttendPromptInt8<Shape>, Shape::kSharedBytes);
        error != cudaSuccess) {
      return error;
    }
    const AttentionGeometry& geometry = arguments.geometry;
    const dim3 grid(static_cast<unsigned>(arguments.num_prompt_items),
                    static_cast<unsigned>(geometry.num_kv_heads * geometry.tiles_per_group()));
    return LaunchKernel(AttendPromptInt8<Shape>, grid, Shape::kThreads, Shape::kSharedBytes, stream,
                        arguments);
  });
}

cudaError_t LaunchInt8TokenAttention(const AttentionArguments& arguments, cudaStream_t stream) {
  return ForDims(arguments.geometry, [&](auto dims) {
    using Many = ManyShape<dims.value>;
    const AttentionGeometry& geometry = arguments.geometry;
    const int num_tiles = geometry.num_kv_heads * geometry.tiles_per_group();
    // As many blocks of a chunk each as find room at once; those merge chunks, too.
    constexpr int kBlocksEach = 4;
    if (arguments.merges_splits ||
        arguments.num_items * num_tiles <= int64_t{kBlocksEach} * arguments.num_sms) {
      return LaunchFew<dims.value, /*kRotates=*/true>(arguments, stream);
    }
    if (const cudaError_t error = AllowSharedMemory(AttendManyInt8<Many>, Many::kSharedBytes);
        error != cudaSuccess) {
      return error;
    }
    const auto grid = static_cast<unsigned>(arguments.num_items * num_tiles);
    return LaunchKernel(AttendManyInt8<Many>, grid, 32, Many::kSharedBytes, stream, arguments);
  });
}

}  // namespace ultrasketch::cuda
