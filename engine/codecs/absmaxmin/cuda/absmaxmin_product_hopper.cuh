// Products with an AbsMaxMin sketch by wgmma.
//
//                                       kTokens tokens
//   32, 64 or 128 rows  [ a consumer warpgroup for each 64 rows ]   accumulators in registers
//
// Four to sixteen producer warps fill a ring of buffers ahead of them, a K tile of 64 columns each:
// they decode the weights [64 columns][rows] from the rows' buckets, which stay in shared memory,
// and have the inputs [tokens][64 columns] copied. With many tokens blocks stay and take tile after
// tile, so that the ring is filled for the next while the outputs of one are written. 32 rows are
// multiplied as 64, twice the same ones.
//
// Few tokens: decoding is all of the time, see absmaxmin_decode.cuh, or with 32 rows the iterations
// of the one warpgroup that multiplies, some 400 cycles each, which take up to four K tiles at
// once.
//
// Many tokens: decoding a tile takes about as many cycles as multiplying it, and reading its inputs
// too. So blocks share both in clusters of kReaders blocks of rows by kDecoders blocks of tokens:
//
//                 tokens      tokens
//   rows        [ rank 0 ]  [ rank 1 ]    the same rows: each decodes half of a K tile's weights
//   rows        [ rank 2 ]  [ rank 3 ]    and sends them to the other
//                                         the same tokens: each reads half of a K tile's inputs for
//                                         both (multicast)
//
// Cycles of a K tile of 128 rows by 256 tokens, of a block alone and of one of four as above:
//
//                          alone  of four
//   tensor cores            1024    1024   8 instructions of 64 x 256 x 16
//   shared memory           1216    1184   at 128 bytes: read by the tensor cores 640, inputs 256
//                                          and weights 128 written, 24 for each unit (a warp's 32
//                                          rows by 32 columns) of 8 or 4 that is decoded, 64 to
//                                          send 4 of them
//   decoding                2000    1000   some 1000 a unit, by 4 warps; less in pairs of units
//   L2                      1365     683   32 or 16 kB at 24 bytes
//   the other's memory         -     512   8 kB at 16 bytes, what loads from there have been
//                                          reported to reach
//
// There are no registers for more warps: an instruction for 256 tokens wants a kernel of at least
// 154 for each thread, or 384 threads. Four blocks that share decoding would halve it again and
// send three times as many bytes.
//
// A buffer is filled when the phase of its barrier `full` has had the arrivals of this block's
// fillers, and the bytes of the inputs and of the weights that others send. It may be filled again
// when that of `empty` has had those of all consumer warps of all blocks that this one sends
// something to, itself among them. So nobody sends to a buffer that is in use; a block's own copies
// have been sent, since those that they are for have read them; and the bytes that a barrier `full`
// gets are always those of its current phase, though they may come before it is told of them.
//
// Weights are sent by bulk copies from the block's own buffer, not stored twice where they are
// decoded: stores to another block need a fence that waits for device memory (MEMBAR.ALL.GPU)
// before the arrival that announces them, and would be 16 bytes in every 64. A copy takes 2 kB as
// one, few instructions, announces itself, and is read from shared memory for 64 cycles a K tile.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_HOPPER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_HOPPER_CUH_

#include <cuda.h>

#include <algorithm>
#include <climits>
#include <cstdint>

#include "engine/codecs/absmaxmin/cuda/absmaxmin_outputs.cuh"
#include "engine/codecs/absmaxmin/cuda/absmaxmin_product.cuh"
#include "engine/codecs/cuda/pipeline.cuh"
#include "engine/codecs/cuda/ptx/cluster.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/cuda/ptx/tma.cuh"
#include "engine/codecs/cuda/ptx/wgmma.cuh"

namespace ultrasketch::cuda::absmaxmin_product_hopper {

inline constexpr int kMaxStages = 16;
inline constexpr int kHalves = kKTileColumns / kHalfKTile;
inline constexpr int kWarpgroupRows = 64;
// To begin at a multiple of 1024.
inline constexpr int kAlignment = 1024;

template <int kRowBlocksOf, int kTokensOf, int kDecodersOf = 1, int kReadersOf = 1>
struct HopperTile {
  static constexpr int kRowBlocks = kRowBlocksOf;
  static constexpr int kTokens = kTokensOf;
  // Blocks of a cluster with the same rows, which share decoding; with the same tokens, which share
  // reading inputs. Ranks are numbered along tokens first.
  static constexpr int kDecoders = kDecodersOf;
  static constexpr int kReaders = kReadersOf;
  static constexpr int kCluster = kDecoders * kReaders;
  // That a block sends something to, with itself.
  static constexpr int kPeers = kDecoders + kReaders - 1;

  static constexpr int kRows = kRowBlocks * kBucketBlockRows;
  static constexpr int kWarpgroups = (kRows + kWarpgroupRows - 1) / kWarpgroupRows;
  static constexpr int kConsumerThreads = 128 * kWarpgroups;
  static constexpr int kInputBytes = kTokens * kInputRowBytes;
  static constexpr int kWeightBytes = kRowBlocks * kWeightBlockBytes;
  static constexpr int kStageBytes = kInputBytes + kWeightBytes;
  // What a block reads itself, and what it decodes itself.
  static constexpr int kReadTokens = kTokens / kReaders;
  static constexpr int kDecodedBytes = kWeightBytes / kDecoders;
  // Operands of a descriptor begin at a multiple of this.
  static_assert(kReadTokens * kInputRowBytes % 1024 == 0);

  // As many as the sums leave registers for.
  static constexpr int kProducerWarps = kTokens == 256                      ? 4
                                        : kRowBlocks == 1 && kDecoders == 1 ? 16
                                        : kRowBlocks == 2 && kTokens <= 64  ? 12
                                                                            : 8;
  static constexpr int kProducerThreads = 32 * kProducerWarps;
  static constexpr int kThreads = kConsumerThreads + kProducerThreads;

  // A block decodes kUnits units of 32 rows by half a K tile's columns, which follow each other in
  // a buffer. A warp takes one, or two of neighbouring row blocks; where that leaves warps, several
  // K tiles are filled at once.
  static constexpr int kUnits = kHalves * kRowBlocks / kDecoders;
  static_assert(kUnits * kDecoders == kHalves * kRowBlocks);
  static constexpr int kUnitBytes = kWeightBlockBytes / kHalves;
  static constexpr int kProducerBlocks = kProducerWarps == 4 && kUnits > kHalves ? 2 : 1;
  static constexpr int kProducersPerKTile = kUnits / kProducerBlocks;
  static constexpr int kKTilesAtOnce = kProducerWarps / kProducersPerKTile;
  // Row blocks whose buckets a block needs.
  static constexpr int kBucketBlocks = (kUnits + kHalves - 1) / kHalves;
  // Whether the producer warps make their stores visible to the tensor cores and to what is sent,
  // rather than the consumer warps. It waits for the columns that they have asked for.
  static constexpr bool kProducersFence = kDecoders > 1;

  // K tiles that a warpgroup multiplies at once: with few tokens, waiting and fencing takes longer.
  // The K tiles of a batch are read while those of the one before are given back, so that large
  // batches take buffers from the producer warps; where there are fewer than kLargeBatchStages, and
  // for what is left at the end, batches are small.
  static constexpr int kSmallBatch = kTokens <= 64 ? 2 : 1;
  static constexpr int kLargeBatch = kRowBlocks == 1 && kDecoders == 1 ? 4 : kSmallBatch;
  static constexpr int kLargeBatchStages = kKTilesAtOnce + 2 * kLargeBatch - 2;
  // A producer warp must not be two rounds of the ring ahead of the one before.
  static constexpr int kMinStages = std::max(kKTilesAtOnce + 1, 2 * kSmallBatch);
  static_assert(kMinStages <= kMaxStages);

  // Whether a cluster takes one tile only. With few tokens a warpgroup's iterations are what
  // counts, and in a loop over tiles the compiler may not see that all lanes take the same
  // branches. Then it works out the operands of warpgroup instructions lane by lane, one after the
  // other, 100 cycles a K tile more.
  static constexpr bool kOneTile = kTokens <= 64;

  // Two blocks to an SM where that leaves registers for the sums.
  static constexpr int kBlocks =
      kTokens <= 64 && (kRowBlocks == 2 || (kRowBlocks == 1 && kDecoders == 2)) ? 2 : 1;

  static int64_t SharedBytes(const BucketTables& tables, int num_stages) {
    return kAlignment + kBucketBlocks * tables.words_per_block * 4 +
           ColumnQueue::SharedBytes(kProducerWarps, tables.entry_words) +
           int64_t{num_stages} * kStageBytes;
  }
  // Less than kMinStages: it does not fit. Where that many fit, a buffer is always filled by the
  // same warps.
  static int NumStages(const BucketTables& tables, int64_t max_shared_bytes, int blocks) {
    // What the barriers and the classes take besides, and the system of each further block.
    const int64_t static_bytes = blocks == 1 ? 1024 : 2048;
    const int64_t left = max_shared_bytes / blocks - static_bytes - SharedBytes(tables, 0);
    const int fitting = static_cast<int>(std::clamp<int64_t>(left / kStageBytes, 0, kMaxStages));
    const int rounded = fitting / kKTilesAtOnce * kKTilesAtOnce;
    return rounded >= kMinStages ? rounded : fitting;
  }
  // Blocks that fit into an SM; 0: it does not fit.
  static int BlocksAtOnce(const BucketTables& tables, int64_t max_shared_bytes) {
    int blocks = kBlocks;
    while (blocks > 0 && NumStages(tables, max_shared_bytes, blocks) < kMinStages) --blocks;
    return blocks;
  }
};

// Tiles are those of whole clusters, numbered along tokens first; each cluster takes some that
// follow each other: tiles_each, the first tiles_left clusters one more.
struct HopperPlan {
  int num_stages;
  int token_groups;
  int num_clusters;
  int tiles_each;
  int tiles_left;
};

// What all warps of a block share.
struct Shared {
  BucketPart parts[kMaxBucketParts];
  Mbarrier full[kMaxStages];
  Mbarrier empty[kMaxStages];
};

// A block's part: the tiles [first_tile, end_tile) of its cluster.
template <typename Tile>
struct Work {
  __device__ explicit Work(const HopperPlan& plan_of) : plan(plan_of) {
    const int rank = Tile::kCluster > 1 ? ClusterRank() : 0;
    decoder = rank % Tile::kDecoders;
    reader = rank / Tile::kDecoders;
    const int cluster = static_cast<int>(blockIdx.x) / Tile::kCluster;
    first_tile = cluster * plan.tiles_each + min(cluster, plan.tiles_left);
    end_tile = first_tile + plan.tiles_each + (cluster < plan.tiles_left ? 1 : 0);
  }
  // This block's rows of a tile, in units of kRows, and its first token.
  __device__ int RowsOf(int tile) const {
    return tile / plan.token_groups * Tile::kReaders + reader;
  }
  __device__ int FirstTokenOf(int tile) const {
    return (tile % plan.token_groups * Tile::kDecoders + decoder) * Tile::kTokens;
  }
  __device__ int RankOf(int decoder_of, int reader_of) const {
    return reader_of * Tile::kDecoders + decoder_of;
  }

  const HopperPlan& plan;
  int decoder;  // among those with the same rows
  int reader;   // among those with the same tokens
  int first_tile;
  int end_tile;
};

// Begins to copy this block's part of a K tile's inputs, to all blocks with the same tokens, and
// tells the stage's barrier what it will get in all. Tokens past the end are zero.
template <typename Tile>
__device__ inline void CopyInputs(const CUtensorMap& inputs, const Work<Tile>& work,
                                  int first_token, int k_tile, uint8_t* stage, uint32_t full) {
  constexpr int kBytes = Tile::kInputBytes + Tile::kWeightBytes - Tile::kDecodedBytes;
  if constexpr (Tile::kReaders == 1) {
    TmaLoadExpectTx(inputs, k_tile * kKTileColumns, first_token, kBytes, stage, full);
  } else {
    // A bit for each rank of the same `decoder`.
    constexpr unsigned kRanks = ((1u << Tile::kCluster) - 1) / ((1u << Tile::kDecoders) - 1);
    const int first = work.reader * Tile::kReadTokens;
    TmaMulticastExpectTx(inputs, k_tile * kKTileColumns, first_token + first, kBytes,
                         static_cast<uint16_t>(kRanks << work.decoder),
                         stage + first * kInputRowBytes, full);
  }
}

template <typename Tile>
__device__ inline void SyncProducers() {
  asm volatile("bar.sync 1, %0;" ::"n"(Tile::kProducerThreads) : "memory");
}

// The part of this thread, one of num_threads, of copying the buckets that the block decodes of the
// rows of a tile.
template <typename Tile>
__device__ inline void ReadBuckets(const PackedMatrix& matrix, const Work<Tile>& work, int tile,
                                   int thread, int num_threads, uint32_t* words) {
  const int first_block = work.decoder * Tile::kUnits / kHalves;
  CopyBuckets(matrix, int64_t{work.RowsOf(tile)} * Tile::kRowBlocks + first_block,
              Tile::kBucketBlocks, thread, num_threads, words);
  CommitCopies();
  WaitForCopies<0>();
}

template <typename Tile>
__device__ inline void ProduceStages(const PackedMatrix& matrix, const CUtensorMap& inputs,
                                     const Work<Tile>& work, uint8_t* stages, uint32_t* words,
                                     uint8_t* ring_of_columns, Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x) - Tile::kConsumerThreads;
  const int lane = thread % 32;
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
  const int num_stages = work.plan.num_stages;
  const int producer = thread / 32 % Tile::kProducersPerKTile;
  const int first_unit = work.decoder * Tile::kUnits;
  const int first_block = first_unit / kHalves;
  const int unit =
      first_unit + producer / kHalves * (kHalves * Tile::kProducerBlocks) + producer % kHalves;
  const int block = unit / kHalves;
  const int column = unit % kHalves * kHalfKTile + lane;
  const uint32_t* block_words = words + (block - first_block) * words_per_block;
  const MbarrierArray full(shared.full);
  const MbarrierArray empty(shared.empty);

  const auto send = [&](int slot) {
    const uint32_t weights = SharedAddress(stages) + slot * Tile::kStageBytes + Tile::kInputBytes +
                             unit * Tile::kUnitBytes;
#pragma unroll
    for (int i = 1; i < Tile::kDecoders; ++i) {
      const int rank = work.RankOf((work.decoder + i) % Tile::kDecoders, work.reader);
      const uint32_t other_weights = MapToRank(weights, rank);
#pragma unroll
      for (int j = 0; j < Tile::kProducerBlocks; ++j) {
        CopyBulkToCluster(weights + j * kWeightBlockBytes, Tile::kUnitBytes,
                          other_weights + j * kWeightBlockBytes, MapToRank(full[slot], rank));
      }
    }
  };

  // A warp takes every kKTilesAtOnce-th K tile of all tiles.
  int first_k_tile = thread / 32 / Tile::kProducersPerKTile;
  // The first K tile of a tile whose inputs this lane has copied; those of the first K tiles of
  // all are copied by a warp that multiplies.
  int first_copy = producer == 0 && lane == 0 ? num_stages : INT_MAX;
  Ring ring(num_stages);
  ring.Advance(first_k_tile);
  int tile = work.first_tile;
  do {
    // That of the first tile is there.
    if (tile != work.first_tile && work.RowsOf(tile) != work.RowsOf(tile - 1)) {
      // All have decoded what was there before.
      SyncProducers<Tile>();
      ReadBuckets<Tile>(matrix, work, tile, thread, Tile::kProducerThreads, words);
      SyncProducers<Tile>();
    }
    const int first_token = work.FirstTokenOf(tile);
    ColumnQueue columns(matrix.buckets, num_k_tiles, ring_of_columns, thread / 32, lane, column,
                        first_k_tile, Tile::kKTilesAtOnce);
    const auto begin_k_tile = [&](int k_tile) {
      MbarrierWait(empty[ring.slot()], ring.parity() ^ 1);
      uint8_t* stage = stages + ring.slot() * Tile::kStageBytes;
      if (k_tile >= first_copy) {
        CopyInputs<Tile>(inputs, work, first_token, k_tile, stage, full[ring.slot()]);
      }
      return stage + Tile::kInputBytes + block * kWeightBlockBytes;
    };
    const auto end_k_tile = [&] {
      if constexpr (Tile::kProducersFence) FenceProxyAsync();
      __syncwarp();
      if (lane == 0) {
        send(ring.slot());
        MbarrierArrive(full[ring.slot()]);
      }
      ring.Advance(Tile::kKTilesAtOnce);
    };
    first_k_tile = DecodeKTiles<Tile::kProducerBlocks>(
                       shared.parts, matrix.buckets.num_parts, block_words, words_per_block, column,
                       first_k_tile, Tile::kKTilesAtOnce, columns, begin_k_tile, end_k_tile) -
                   num_k_tiles;
    if (first_copy != INT_MAX) first_copy = max(first_copy - num_k_tiles, 0);
  } while (!Tile::kOneTile && ++tile < work.end_tile);
}

template <typename Tile>
__device__ inline void ConsumeStages(const ProductArguments& arguments, const Work<Tile>& work,
                                     uint8_t* stages, Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Lets the compiler know that it is the same for all lanes.
  const int warpgroup = __shfl_sync(0xffffffffu, warp / 4, 0);
  const auto num_k_tiles = static_cast<int>(arguments.matrix.num_k_tiles);
  // Between the first 32 rows and the other 32.
  constexpr uint32_t kBlockDistance = Tile::kRowBlocks == 1 ? 0 : kWeightBlockBytes;
  constexpr int kWarpgroupBytes = kWarpgroupRows / kBucketBlockRows * kWeightBlockBytes;
  const uint32_t first_stage = SharedAddress(stages);
  // Units of eight columns by 32 rows, and of eight tokens by 64 columns. Further on in shared
  // memory it is the descriptor plus the distance in units of 16 bytes.
  const uint64_t first_weights =
      SmemDescriptor(first_stage + Tile::kInputBytes + warpgroup * kWarpgroupBytes, kBlockDistance,
                     8 * kBucketBlockRows * 2, SmemSwizzle::k64Bytes);
  const uint64_t first_inputs =
      SmemDescriptor(first_stage, 0, 8 * kInputRowBytes, SmemSwizzle::k128Bytes);
  const MbarrierArray full(shared.full);
  // A warp's first lanes give buffers back, each to one block: to those with the same rows, then to
  // the others with the same tokens.
  const bool gives_back = lane < Tile::kPeers;
  uint32_t first_empty = SharedAddress(shared.empty);
  if constexpr (Tile::kCluster > 1) {
    const int other_reader = (work.reader + lane - Tile::kDecoders + 1) % Tile::kReaders;
    first_empty = MapToRank(first_empty, lane < Tile::kDecoders ? work.RankOf(lane, work.reader)
                                         : gives_back ? work.RankOf(work.decoder, other_reader)
                                                      : 0);
  }
  float accumulators[Tile::kTokens / 2];
  Ring ring(work.plan.num_stages);
  Ring given_back(work.plan.num_stages);
  int num_held = 0;
  const auto give_back = [&] {
#pragma unroll
    for (int i = 0; i < Tile::kLargeBatch; ++i) {
      if (i >= num_held) break;
      if (gives_back) {
        const uint32_t empty =
            first_empty + static_cast<uint32_t>(given_back.slot() * sizeof(Mbarrier));
        if constexpr (Tile::kCluster > 1) {
          MbarrierArriveCluster(empty);
        } else {
          MbarrierArrive(empty);
        }
      }
      given_back.Advance();
    }
    num_held = 0;
  };
  const auto multiply = [&]<int kKTiles>() {
    int slots[kKTiles];
#pragma unroll
    for (int i = 0; i < kKTiles; ++i) {
      MbarrierWait(full[ring.slot()], ring.parity());
      slots[i] = ring.slot();
      ring.Advance();
    }
    if constexpr (!Tile::kProducersFence) FenceProxyAsync();
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kKTiles; ++i) {
      const uint64_t stage = static_cast<uint32_t>(slots[i] * (Tile::kStageBytes / 16));
#pragma unroll
      for (int column = 0; column < kKTileColumns; column += 16) {
        Wgmma(first_weights + stage + column * kBucketBlockRows * 2 / 16,
              first_inputs + stage + column * 2 / 16, accumulators);
      }
    }
    WgmmaCommit();
    WgmmaWait<1>();
    // The slots of the batch before.
    give_back();
    num_held = kKTiles;
  };
  [[maybe_unused]] const int large_batches_end =
      work.plan.num_stages >= Tile::kLargeBatchStages ? num_k_tiles : 0;
  int tile = work.first_tile;
  do {
#pragma unroll
    for (int i = 0; i < Tile::kTokens / 2; ++i) accumulators[i] = 0.0f;
    int k_tile = 0;
    if constexpr (Tile::kLargeBatch > Tile::kSmallBatch) {
      for (; k_tile + Tile::kLargeBatch <= large_batches_end; k_tile += Tile::kLargeBatch) {
        multiply.template operator()<Tile::kLargeBatch>();
      }
    }
    for (; k_tile + Tile::kSmallBatch <= num_k_tiles; k_tile += Tile::kSmallBatch) {
      multiply.template operator()<Tile::kSmallBatch>();
    }
    if constexpr (Tile::kSmallBatch > 1) {
      for (; k_tile < num_k_tiles; ++k_tile) multiply.template operator()<1>();
    }
    const auto finish_sums = [&] {
      WgmmaWait<0>();
      FenceAccumulators(accumulators);
      give_back();
    };
    // What outputs are scaled with is loaded meanwhile where there are registers for it.
    constexpr bool kLoadsMeanwhile = Tile::kTokens <= 64 || Tile::kCluster == 4;
    if constexpr (!kLoadsMeanwhile) finish_sums();
    const OutputWriter<Tile::kTokens> epilogue_warp(
        arguments, int64_t{work.RowsOf(tile)} * Tile::kRows + warp * 16, work.FirstTokenOf(tile));
    if constexpr (kLoadsMeanwhile) finish_sums();
    if (Tile::kCluster > 1 && (Tile::kOneTile || tile + 1 == work.end_tile)) {
      ClusterArrive();
    }
    constexpr bool kAllHaveRows = Tile::kRows % kWarpgroupRows == 0;
    if (kAllHaveRows || warp * 16 < Tile::kRows) epilogue_warp.Write(accumulators);
  } while (!Tile::kOneTile && ++tile < work.end_tile);
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    HopperProduct(const __grid_constant__ ProductArguments arguments,
                  const __grid_constant__ CUtensorMap inputs,
                  const __grid_constant__ HopperPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ Shared shared;
  uint8_t* stages =
      dynamic_shared + (kAlignment - SharedAddress(dynamic_shared) % kAlignment) % kAlignment;
  auto* words = reinterpret_cast<uint32_t*>(stages + plan.num_stages * Tile::kStageBytes);
  auto* ring_of_columns = reinterpret_cast<uint8_t*>(
      words + Tile::kBucketBlocks * arguments.matrix.buckets.words_per_block);
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const MbarrierArray full(shared.full);
  if (thread == 0) {
    const MbarrierArray empty(shared.empty);
    for (int slot = 0; slot < plan.num_stages; ++slot) {
      MbarrierInit(full[slot], Tile::kProducersPerKTile + 1);
      MbarrierInit(empty[slot], Tile::kPeers * Tile::kWarpgroups * 4);
    }
    FenceProxyAsync();
  }
  constexpr int kPartWords = sizeof(BucketPart) / 4;
  for (int i = thread; i < matrix.buckets.num_parts * kPartWords; i += Tile::kThreads) {
    reinterpret_cast<int32_t*>(shared.parts)[i] =
        static_cast<const int32_t*>(matrix.buckets.parts)[i];
  }
  const Work<Tile> work(plan);
  ReadBuckets<Tile>(matrix, work, work.first_tile, thread, Tile::kThreads, words);
  // Nothing may be sent here before.
  if constexpr (Tile::kCluster > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }

  if (thread >= Tile::kConsumerThreads) {
    ProduceStages<Tile>(matrix, inputs, work, stages, words, ring_of_columns, shared);
    if constexpr (Tile::kCluster > 1) {
      ClusterArrive();
    }
  } else {
    // The first weights are decoded while the kernel that writes the inputs ends.
    WaitForGridDependency();
    if (thread == 0) {
      const auto num_k_tiles = static_cast<int>(matrix.num_k_tiles);
      const int num_copies = min(plan.num_stages, (work.end_tile - work.first_tile) * num_k_tiles);
      int tile = work.first_tile;
      int first_token = work.FirstTokenOf(tile);
      int k_tile = 0;
#pragma unroll 1
      for (int i = 0; i < num_copies; ++i) {
        CopyInputs<Tile>(inputs, work, first_token, k_tile, stages + i * Tile::kStageBytes,
                         full[i]);
        if (++k_tile == num_k_tiles) {
          k_tile = 0;
          first_token = work.FirstTokenOf(++tile);
        }
      }
    }
    __syncwarp();
    ConsumeStages<Tile>(arguments, work, stages, shared);
  }
  // Others have read what was sent from here, and given back what was sent from there.
  if constexpr (Tile::kCluster > 1) {
    ClusterWait();
  }
#endif
}

}  // namespace ultrasketch::cuda::absmaxmin_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_PRODUCT_HOPPER_CUH_
