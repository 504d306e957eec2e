// Products with an AbsMaxMin sketch by mma.sync, for any number of tokens.
//
//                    kTokens tokens
//   32 or 64 rows  [ kMmaWarps of 16 rows (or 32) x their share of the tokens ]
//
// A block keeps its rows' buckets in shared memory, read once from device memory, and goes through
// the columns a K tile of 64 at a time, in a ring of buffers:
//
//   8 decode warps   half a K tile each, for all rows of the tile: [64 columns][rows] fp16
//   1 loading warp   the K tile's inputs: [tokens][64 columns]
//   mma warps        multiply a K tile while the next ones are decoded
//
// At half a bit they are 1/32 of the dense weights' bytes: the bound is decoding, 22 weights a
// cycle and SM by shared memory (two bytes stored and two read for each weight, and its buckets)
// and 40 by logic operations; mma.sync for up to 64 tokens is a third of that.
#include "engine/codecs/absmaxmin/cuda/absmaxmin_product.cuh"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_product_hopper.h"
#include "engine/codecs/cuda/pipeline.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kDecodeWarps = 8;
constexpr int kHalves = kKTileColumns / kHalfKTile;

template <int kRowBlocksOf, int kTokensOf, int kTokenWarpsOf, int kStagesOf,
          bool kBucketsInSharedOf>
struct AbsMaxMinTile {
  static constexpr int kRowBlocks = kRowBlocksOf;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kTokenWarps = kTokenWarpsOf;
  static constexpr int kStages = kStagesOf;
  static constexpr bool kBucketsInShared = kBucketsInSharedOf;

  static constexpr int kRowWarps = 2;
  static constexpr int kMmaWarps = kRowWarps * kTokenWarps;
  static constexpr int kThreads = 32 * (kDecodeWarps + 1 + kMmaWarps);
  static constexpr int kMTiles = kRowBlocks * kBucketBlockRows / kMTileRows / kRowWarps;
  static constexpr int kTokenTiles = kTokens / 8 / kTokenWarps;
  static constexpr int kWeightBytes = kRowBlocks * kWeightBlockBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kInputRowBytes;

  static int64_t SharedBytes(const BucketTables& tables) {
    return kStages * kStageBytes + ColumnQueue::SharedBytes(kDecodeWarps, tables.entry_words) +
           (kBucketsInShared ? kRowBlocks * tables.words_per_block * 4 : 0);
  }
};

// A 16 by 16 tile of weights: the instruction's registers.
__device__ inline void LoadWeights(const uint8_t* block, int first_row, int first_column, int lane,
                                   uint32_t (&a)[4]) {
  const int column = first_column + lane % 8 + lane / 16 * 8;
  const int piece = first_row / 8 + lane / 8 % 2;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(SharedAddress(block + WeightPieceOffset(column, piece)))
               : "memory");
}

// Eight tokens by 16 columns.
__device__ inline uint2 LoadInputs(const uint8_t* inputs, int first_token, int first_column,
                                   int lane) {
  const int token = first_token + lane % 8;
  const int piece = first_column / 8 + lane / 8 % 2;
  uint2 b;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(b.x), "=r"(b.y)
               : "r"(SharedAddress(inputs + InputPieceOffset(token, piece)))
               : "memory");
  return b;
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    AbsMaxMinProduct(const __grid_constant__ ProductArguments arguments) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ BucketPart parts[kMaxBucketParts];
  __shared__ Mbarrier full_barriers[Tile::kStages];
  __shared__ Mbarrier empty_barriers[Tile::kStages];
  const MbarrierArray full(full_barriers);
  const MbarrierArray empty(empty_barriers);
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  const int64_t first_block = int64_t{blockIdx.x} * Tile::kRowBlocks;
  const int64_t first_token = int64_t{blockIdx.y} * Tile::kTokens;
  uint8_t* ring_of_columns = shared + Tile::kStages * Tile::kStageBytes;
  auto* shared_words = reinterpret_cast<uint32_t*>(
      ring_of_columns + ColumnQueue::SharedBytes(kDecodeWarps, matrix.buckets.entry_words));

  if (thread == 0) {
    for (int slot = 0; slot < Tile::kStages; ++slot) {
      MbarrierInit(full[slot], (kHalves + 1) * 32);
      MbarrierInit(empty[slot], Tile::kMmaWarps * 32);
    }
  }
  constexpr int kPartWords = sizeof(BucketPart) / 4;
  for (int i = thread; i < matrix.buckets.num_parts * kPartWords; i += Tile::kThreads) {
    reinterpret_cast<int32_t*>(parts)[i] = static_cast<const int32_t*>(matrix.buckets.parts)[i];
  }
  if constexpr (Tile::kBucketsInShared) {
    CopyBuckets(matrix, first_block, Tile::kRowBlocks, thread, Tile::kThreads, shared_words);
    CommitCopies();
    WaitForCopies<0>();
  }
  __syncthreads();

  if (warp < kDecodeWarps) {
    const uint32_t* words = shared_words;
    if constexpr (!Tile::kBucketsInShared) {
      static_assert(Tile::kRowBlocks == 1);
      words = static_cast<const uint32_t*>(matrix.tiles) + first_block * words_per_block;
    }
    // A warp takes the same half of every kKTilesAtOnce-th K tile.
    constexpr int kKTilesAtOnce = kDecodeWarps / kHalves;
    const int column = warp % kHalves * kHalfKTile + lane;
    const int first_k_tile = warp / kHalves;
    ColumnQueue columns(matrix.buckets, num_k_tiles, ring_of_columns, warp, lane, column,
                        first_k_tile, kKTilesAtOnce);
    Ring ring(Tile::kStages);
    ring.Advance(first_k_tile);
    const auto begin_k_tile = [&](int) {
      MbarrierWait(empty[ring.slot()], ring.parity() ^ 1);
      return shared + ring.slot() * Tile::kStageBytes;
    };
    const auto end_k_tile = [&] {
      MbarrierArrive(full[ring.slot()]);
      ring.Advance(kKTilesAtOnce);
    };
    DecodeKTiles<Tile::kRowBlocks>(parts, matrix.buckets.num_parts, words, words_per_block, column,
                                   first_k_tile, kKTilesAtOnce, columns, begin_k_tile, end_k_tile);
    WaitForGridDependency();
    return;
  }

  WaitForGridDependency();
  if (warp == kDecodeWarps) {
    Ring ring(Tile::kStages);
    for (int k_tile = 0; k_tile < num_k_tiles; ++k_tile) {
      MbarrierWait(empty[ring.slot()], ring.parity() ^ 1);
      CopyInputs<Tile::kTokens>(arguments, first_token, k_tile, lane, 32,
                                shared + ring.slot() * Tile::kStageBytes + Tile::kWeightBytes);
      MbarrierArriveAfterCopies(full[ring.slot()]);
      ring.Advance();
    }
    WaitForCopies<0>();
    return;
  }

  const int mma_warp = warp - kDecodeWarps - 1;
  const int warp_row = mma_warp % Tile::kRowWarps * Tile::kMTiles * kMTileRows;
  const int warp_token = mma_warp / Tile::kRowWarps * Tile::kTokenTiles * 8;
  float accumulators[Tile::kMTiles][Tile::kTokenTiles][4] = {};
  Ring ring(Tile::kStages);
  for (int k_tile = 0; k_tile < num_k_tiles; ++k_tile) {
    MbarrierWait(full[ring.slot()], ring.parity());
    const uint8_t* stage = shared + ring.slot() * Tile::kStageBytes;
#pragma unroll
    for (int column = 0; column < kKTileColumns; column += 16) {
      uint32_t a[Tile::kMTiles][4];
#pragma unroll
      for (int tile = 0; tile < Tile::kMTiles; ++tile) {
        const int row = warp_row + tile * kMTileRows;
        LoadWeights(stage + row / kBucketBlockRows * kWeightBlockBytes, row % kBucketBlockRows,
                    column, lane, a[tile]);
      }
#pragma unroll
      for (int token = 0; token < Tile::kTokenTiles; ++token) {
        const uint2 b =
            LoadInputs(stage + Tile::kWeightBytes, warp_token + token * 8, column, lane);
#pragma unroll
        for (int tile = 0; tile < Tile::kMTiles; ++tile) {
          MmaF16(a[tile], b, accumulators[tile][token]);
        }
      }
    }
    MbarrierArrive(empty[ring.slot()]);
    ring.Advance();
  }

#pragma unroll
  for (int tile = 0; tile < Tile::kMTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row =
          first_block * kBucketBlockRows + warp_row + tile * kMTileRows + lane / 4 + half * 8;
      if (row >= matrix.rows) continue;
      const float row_scale = matrix.row_scales[row];
      const float bias = BiasOf(matrix, row);
#pragma unroll
      for (int i = 0; i < 2 * Tile::kTokenTiles; ++i) {
        const int64_t token = first_token + warp_token + i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (token >= arguments.num_tokens) continue;
        WriteOutput(arguments, token, row, accumulators[tile][i / 2][half * 2 + i % 2],
                    TokenScale(arguments, token), row_scale, bias);
      }
    }
  }
}

template <typename Tile>
cudaError_t Launch(const ProductArguments& arguments, cudaStream_t stream) {
  const auto shared_bytes = static_cast<int>(Tile::SharedBytes(arguments.matrix.buckets));
  const cudaError_t error = cudaFuncSetAttribute(
      AbsMaxMinProduct<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  constexpr int kRows = Tile::kRowBlocks * kBucketBlockRows;
  const dim3 grid(
      static_cast<unsigned>((arguments.matrix.rows + kRows - 1) / kRows),
      static_cast<unsigned>((arguments.num_tokens + Tile::kTokens - 1) / Tile::kTokens));
  return LaunchKernel(AbsMaxMinProduct<Tile>, grid, Tile::kThreads,
                      static_cast<size_t>(shared_bytes), stream, arguments);
}

// Two blocks of rows share a column's buckets, where that leaves every SM two tiles.
template <int kTokens, int kTokenWarps>
cudaError_t LaunchForTokens(const ProductArguments& arguments, int64_t max_shared_bytes,
                            cudaStream_t stream) {
  constexpr int kStages = 6;
  using Tall = AbsMaxMinTile<2, kTokens, kTokenWarps, kStages, true>;
  using Short = AbsMaxMinTile<1, kTokens, kTokenWarps, kStages, true>;
  const bool is_tall = arguments.matrix.rows >= 4 * kBucketBlockRows * arguments.num_sms;
  if (is_tall && 2 * Tall::SharedBytes(arguments.matrix.buckets) <= max_shared_bytes) {
    return Launch<Tall>(arguments, stream);
  }
  return Launch<Short>(arguments, stream);
}

}  // namespace

cudaError_t LaunchAbsMaxMinProduct(const ProductArguments& arguments, cudaStream_t stream) {
  int device = 0;
  int max_shared_bytes = 0;
  int major = 0;
  int minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  read(&max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(&major, cudaDevAttrComputeCapabilityMajor);
  read(&minor, cudaDevAttrComputeCapabilityMinor);
  if (error != cudaSuccess) return error;
  if (FitsHopperProduct(arguments, 10 * major + minor, max_shared_bytes)) {
    return LaunchHopperProduct(arguments, max_shared_bytes, stream);
  }
  // What the barriers and the classes take besides.
  constexpr int kStaticBytes = 2048;
  const int64_t shared_bytes = max_shared_bytes - kStaticBytes;
  // Buckets of many bits for many columns stay in device memory.
  using Global = AbsMaxMinTile<1, 64, 2, 4, false>;
  using Largest = AbsMaxMinTile<1, 64, 2, 6, true>;
  if (Largest::SharedBytes(arguments.matrix.buckets) > shared_bytes)
    return Launch<Global>(arguments, stream);
  if (arguments.num_tokens <= 8) {
    return LaunchForTokens<8, 1>(arguments, shared_bytes, stream);
  }
  if (arguments.num_tokens <= 16) {
    return LaunchForTokens<16, 1>(arguments, shared_bytes, stream);
  }
  if (arguments.num_tokens <= 32) {
    return LaunchForTokens<32, 2>(arguments, shared_bytes, stream);
  }
  return LaunchForTokens<64, 2>(arguments, shared_bytes, stream);
}

}  // namespace ultrasketch::cuda
