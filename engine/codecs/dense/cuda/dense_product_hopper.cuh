// Products of uncompressed weights by wgmma, for any number of tokens.
//
//                        kTokens tokens
//        64 rows   [ consumer warpgroup 0 ]     accumulators in registers; a producer warp fills
//   up to 64 rows  [ consumer warpgroup 1 ]     a ring of stages by TMA, kStageKTiles K tiles each
//
// Both operands are in shared memory as they come: weights lie in device memory in the swizzled
// order of an operand (tile_layout.h), inputs are swizzled by TMA. Blocks are persistent: the ring
// is filled for the next tile while the outputs of one are written. All SMs would write at the same
// time, as fast as L2 takes it; so with many tiles each of two warpgroups has tiles of its own, 128
// rows, and multiplies while the other writes (ping-pong).
//
// Every sum is one accumulator's, from a K split's first column to its last, 16 at a time; where a
// matrix has two K splits, their sums are added to the output one after the other. A block either
// takes both K splits of its tile in turn, or the two blocks of a cluster take one each (split-K)
// and exchange sums through distributed shared memory. So tiles of any size give the same bits.
//
// Bounds. Few tokens: reading weights, at 18 bytes a cycle and SM. Many: the tensor cores, 8
// kTokens cycles for each warpgroup and 64 columns. Between them, what an SM can take in from L2,
// and what that gives to all of them: rows + tokens, 128 bytes each for 64 columns.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_HOPPER_CUH_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_HOPPER_CUH_

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/pipeline.cuh"
#include "engine/codecs/cuda/product.cuh"
#include "engine/codecs/cuda/ptx/cluster.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/cuda/ptx/tma.cuh"
#include "engine/codecs/cuda/ptx/wgmma.cuh"
#include "engine/codecs/cuda/tensor_map.h"
#include "engine/codecs/dense/cuda/dense_product_hopper.h"

namespace ultrasketch::cuda::dense_product_hopper {

inline constexpr int kMaxStages = 16;
inline constexpr int kMinStages = 3;
inline constexpr int kMaxKSplits = 2;
inline constexpr int kWarpgroupMTiles = 4;
inline constexpr int kWarpgroupRows = kWarpgroupMTiles * kMTileRows;
// Stages begin at multiples of it, as swizzled operands must.
inline constexpr int kAlignment = 1024;
inline constexpr int kInputKTileBytes = kKTileColumns * 2;  // of a token

// `kTakesTurnsOf`: two warpgroups take tiles of their own by turns, so that one writes its outputs
// while the other multiplies.
template <int kWarpgroupsOf, int kTokensOf, bool kTakesTurnsOf = false>
struct DenseTile {
  static constexpr int kWarpgroups = kWarpgroupsOf;
  static constexpr bool kTakesTurns = kTakesTurnsOf;
  static_assert(!kTakesTurns || kWarpgroups == 2);
  // Blocks of 64 rows that a warpgroup multiplies.
  static constexpr int kRowBlocks = kTakesTurns ? kWarpgroups : 1;
  // Warpgroups that multiply a tile, and tiles under way at a time.
  static constexpr int kSharers = kTakesTurns ? 1 : kWarpgroups;
  static constexpr int kMembers = kTakesTurns ? kWarpgroups : 1;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kStageKTiles = kTokens <= 32 ? 4 : kTokens <= 64 ? 2 : 1;
  static_assert(kKSplitUnit % kStageKTiles == 0);
  static constexpr int kConsumerWarps = 4 * kWarpgroups;
  static constexpr int kConsumerThreads = 32 * kConsumerWarps;
  // With several consumer warpgroups the producer warp has one, too, from which registers move to
  // them.
  static constexpr bool kMovesRegisters = kWarpgroups > 1;
  static constexpr int kThreads = kConsumerThreads + (kMovesRegisters ? 128 : 32);
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = kWarpgroups == 2 ? 232 : 152;
  static constexpr int kAccumulators = kTokens / 2;  // of a thread and 64 rows
  static constexpr int kInputBytes = kStageKTiles * kTokens * kInputKTileBytes;
  // Outputs go through shared memory, two patches of kPatchTokens tokens of a warpgroup's rows in
  // turn, so that whole lines are written.
  static constexpr bool kStagesOutputs = kTokens >= 32;
  static constexpr int kPatchTokens = 16;
  static constexpr int kPatchStride = kWarpgroupRows + 4;  // spreads what lanes store over banks
  static constexpr int kPatchFloats = kPatchTokens * kPatchStride;
  // With them the scales of the tokens.
  static constexpr int kWriterFloats = kStagesOutputs ? 2 * kPatchFloats + kTokens : 0;
  static constexpr int kWriterBytes = kWarpgroups * kWriterFloats * int{sizeof(float)};
  // Accumulators that blocks of a cluster exchange, [token][row].
  static constexpr int kExchangeStride = kWarpgroups * kWarpgroupRows + 4;
  static constexpr int kExchangeBytes = kTokens * kExchangeStride * int{sizeof(float)};

  US_HOST_DEVICE static constexpr int StageBytes(int m_tiles) {
    return kStageKTiles * m_tiles * kDenseKTileBytes + kInputBytes;
  }
  // Instructions read all of a warpgroup's rows, those past a smaller tile too.
  US_HOST_DEVICE static constexpr int RingBytes(int m_tiles, int num_stages) {
    const int ring = num_stages * StageBytes(m_tiles) +
                     (kWarpgroups * kWarpgroupMTiles - m_tiles) * kDenseKTileBytes;
    return ring > kExchangeBytes ? ring : kExchangeBytes;
  }
  static constexpr int SharedBytes(int m_tiles, int num_stages) {
    return kAlignment + RingBytes(m_tiles, num_stages) + kWriterBytes;
  }
  // As many as a block has room for, beside its barriers; less than kMinStages: it does not fit.
  static constexpr int NumStages(int m_tiles, int max_shared_bytes) {
    constexpr int kBarrierBytes = 512;
    int num_stages = kMaxStages;
    while (num_stages > 0 && SharedBytes(m_tiles, num_stages) + kBarrierBytes > max_shared_bytes) {
      --num_stages;
    }
    return num_stages;
  }
};

// How a product is divided.
struct DensePlan {
  int m_tiles;     // of a block, more than kWarpgroups - 1 warpgroups have
  int num_stages;  // of the ring
  int splits;      // blocks of a cluster that share a tile's K splits: 1, or as many as K splits
  int token_blocks;
  int num_tiles;     // numbered along tokens first
  int total_stages;  // of columns
  int k_split_stages;
};

struct DenseMaps {
  CUtensorMap weights;
  CUtensorMap inputs;
};

template <typename Tile>
struct DenseShared {
  Mbarrier full[kMaxStages];
  Mbarrier empty[kMaxStages];
};

// Barriers of all consumers, and of a warpgroup of them.
template <int kThreads>
__device__ inline void SyncConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}
__device__ inline void SyncWarpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(2 + warpgroup) : "memory");
}
// Turns of two warpgroups: one waits for its own, which the other gives it.
__device__ inline void WaitForTurn(int warpgroup) {
  asm volatile("bar.sync %0, 256;" ::"r"(5 + warpgroup) : "memory");
}
__device__ inline void GiveTurn(int warpgroup) {
  asm volatile("bar.arrive %0, 256;" ::"r"(5 + warpgroup) : "memory");
}

// Adds as reductions in L2 do.
__device__ inline float AddFlushing(float a, float b) {
  float sum;
  asm("add.rn.ftz.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
  return sum;
}

__device__ inline float4 LoadFloatsFromCluster(uint32_t cluster_address) {
  float4 values;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values.x), "=f"(values.y), "=f"(values.z), "=f"(values.w)
               : "r"(cluster_address));
  return values;
}

// Four neighbouring outputs, as AddOutput.
__device__ inline void AddOutputs(float* out, float4 values) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(out),
               "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w)
               : "memory");
}

// A block's part.
struct Work {
  __device__ explicit Work(const DensePlan& plan)
      : split(plan.splits > 1 ? ClusterRank() : 0),
        first_tile(static_cast<int>(blockIdx.x) / plan.splits),
        tile_stride(static_cast<int>(gridDim.x) / plan.splits),
        first_stage(split * plan.k_split_stages),
        end_stage(plan.splits > 1 ? min(first_stage + plan.k_split_stages, plan.total_stages)
                                  : plan.total_stages) {}
  int split;
  int first_tile;
  int tile_stride;
  int first_stage;  // of columns
  int end_stage;
};

__device__ inline int FirstMTile(const DensePlan& plan, int tile) {
  return tile / plan.token_blocks * plan.m_tiles;
}
template <typename Tile>
__device__ inline int FirstToken(const DensePlan& plan, int tile) {
  return tile % plan.token_blocks * Tile::kTokens;
}

// In the order in which the ring has them: `call(tile, member, begin, end)`, of each group of tiles
// under way at a time, K split by K split, the stages of columns of each member.
template <typename Tile, typename Call>
__device__ inline void ForEachKSplit(const DensePlan& plan, const Work& work, const Call& call) {
  for (int first = work.first_tile; first < plan.num_tiles;
       first += Tile::kMembers * work.tile_stride) {
    for (int begin = work.first_stage; begin < work.end_stage; begin += plan.k_split_stages) {
      const int end = min(begin + plan.k_split_stages, work.end_stage);
      for (int member = 0; member < Tile::kMembers; ++member) {
        const int tile = first + member * work.tile_stride;
        if (tile < plan.num_tiles) call(tile, member, begin, end);
      }
    }
  }
}

// One thread. The weights of the first stages are on their way before the kernel that writes the
// inputs has ended. M tiles, tokens and columns past the last are zero.
template <typename Tile>
__device__ inline void ProduceStages(const DensePlan& plan, const DenseMaps& maps, const Work& work,
                                     uint32_t stages, const DenseShared<Tile>& shared) {
  const MbarrierArray full(shared.full);
  const MbarrierArray empty(shared.empty);
  const int stage_bytes = Tile::StageBytes(plan.m_tiles);
  const int weight_bytes = stage_bytes - Tile::kInputBytes;
  const auto begin_stage = [&](int slot, int m_tile, int stage) {
    MbarrierArriveExpectTx(full[slot], stage_bytes);
    TmaLoad(maps.weights, 0, m_tile, stage * Tile::kStageKTiles, stages + slot * stage_bytes,
            full[slot]);
  };

  int num_begun = min(plan.num_stages, min(plan.k_split_stages, work.end_stage - work.first_stage));
  const int first_m_tile = FirstMTile(plan, work.first_tile);
  for (int i = 0; i < num_begun; ++i) begin_stage(i, first_m_tile, work.first_stage + i);
  WaitForGridDependency();
  Ring ring(plan.num_stages);
  ForEachKSplit<Tile>(plan, work, [&](int tile, int, int begin, int end) {
    const int m_tile = FirstMTile(plan, tile);
    const int token = FirstToken<Tile>(plan, tile);
    for (int stage = begin; stage < end; ++stage) {
      const int slot = ring.slot();
      if (--num_begun < 0) {
        MbarrierWait(empty[slot], ring.parity() ^ 1);
        begin_stage(slot, m_tile, stage);
      }
      TmaLoad(maps.inputs, 0, token, stage * Tile::kStageKTiles,
              stages + slot * stage_bytes + weight_bytes, full[slot]);
      ring.Advance();
    }
  });
}

template <typename Tile>
class Consumer {
 public:
  __device__ Consumer(const ProductArguments& arguments, const DensePlan& plan, const Work& work,
                      const uint8_t* stages, float* writers, const DenseShared<Tile>& shared)
      : arguments_(arguments),
        plan_(plan),
        work_(work),
        full_(shared.full),
        empty_(shared.empty),
        warp_(ThisWarp()),
        lane_(static_cast<int>(threadIdx.x) % 32),
        patches_(writers + warp_ / 4 * Tile::kWriterFloats),
        k_tile_bytes_(plan.m_tiles * kDenseKTileBytes),
        stage_bytes_(Tile::StageBytes(plan.m_tiles)),
        ring_(plan.num_stages) {
    const uint32_t address = SharedAddress(stages);
    weights_ = SmemDescriptor(address, 0, kDenseKTileBytes / 2, SmemSwizzle::k64Bytes);
    weights_ = AdvanceDescriptor(weights_, FirstRowBlock() * kWarpgroupMTiles * kDenseKTileBytes);
    inputs_ = SmemDescriptor(address, 0, 8 * kInputKTileBytes, SmemSwizzle::k128Bytes);
    inputs_ = AdvanceDescriptor(inputs_, Tile::kStageKTiles * k_tile_bytes_);
  }

  __device__ void Run() {
    WaitForGridDependency();
    ForEachKSplit<Tile>(plan_, work_, [&](int tile, int member, int begin, int end) {
      if (Tile::kTakesTurns && member != warp_ / 4) {
        ring_.Skip(end - begin);
        return;
      }
      if (begin == work_.first_stage) BeginTile(tile);
      // The other's K split comes between, unless there is none.
      const bool is_last = end == work_.end_stage;
      const int other = member == 0 ? tile + work_.tile_stride : tile - work_.tile_stride;
      const int next = is_last && member > 0 ? tile + work_.tile_stride : other;
      const bool waits = member > 0 || (begin == work_.first_stage ? tile != work_.first_tile
                                                                   : other < plan_.num_tiles);
      if (Tile::kTakesTurns && waits) WaitForTurn(member);
      MultiplyKSplit(end - begin, Tile::kTakesTurns && next < plan_.num_tiles);
      if (plan_.splits == 1) Write(begin > 0);
    });
  }

  // Gives this block's sums to the cluster; all of its blocks wait for each other between this and
  // AddSums, and after it.
  __device__ void GiveSums(float* exchange) const {
    SyncConsumers<Tile::kConsumerThreads>();  // the ring is not in use
    const int row = warp_ * kMTileRows + lane_ / 4;
#pragma unroll
    for (int i = 0; i < Tile::kAccumulators; ++i) {
      const int token = i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      exchange[token * Tile::kExchangeStride + row + i % 4 / 2 * 8] = accumulators_[0][i];
    }
  }
  // Finishes and writes this block's part of the tile's tokens.
  __device__ void AddSums(const float* exchange) const {
    const PackedMatrix& matrix = arguments_.matrix;
    constexpr int kQuads = Tile::kWarpgroups * kWarpgroupRows / 4;  // of rows
    constexpr int kTokensAtOnce = Tile::kConsumerThreads / kQuads;
    const auto rows = static_cast<int>(matrix.rows);
    const int block_row = static_cast<int>(threadIdx.x) % kQuads * 4;
    const int row = first_m_tile_ * kMTileRows + block_row;
    if (block_row >= plan_.m_tiles * kMTileRows || row >= rows) return;
    const int num_rows = min(rows - row, 4);
    float row_scales[4];
    float biases[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      row_scales[i] = i < num_rows ? matrix.row_scales[row + i] : 0.0f;
      biases[i] = i < num_rows ? BiasOf(matrix, row + i) : 0.0f;
    }
    constexpr int kTokensEach = Tile::kTokens / kMaxKSplits;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x) / kQuads; i < kTokensEach; i += kTokensAtOnce) {
      const int block_token = work_.split * kTokensEach + i;
      const int token = first_token_ + block_token;
      if (token >= arguments_.num_tokens) break;
      const uint32_t here =
          SharedAddress(exchange + block_token * Tile::kExchangeStride + block_row);
      const float token_scale = TokenScale(arguments_, token);
      float4 accumulators[kMaxKSplits];
#pragma unroll
      for (int k_split = 0; k_split < kMaxKSplits; ++k_split) {
        accumulators[k_split] = LoadFloatsFromCluster(MapToRank(here, k_split));
      }
      const auto finish = [&](float4 of_k_split, bool has_bias) -> float4 {
        return {FinishSum(of_k_split.x, token_scale, row_scales[0], has_bias ? biases[0] : 0.0f),
                FinishSum(of_k_split.y, token_scale, row_scales[1], has_bias ? biases[1] : 0.0f),
                FinishSum(of_k_split.z, token_scale, row_scales[2], has_bias ? biases[2] : 0.0f),
                FinishSum(of_k_split.w, token_scale, row_scales[3], has_bias ? biases[3] : 0.0f)};
      };
      const float4 first = finish(accumulators[0], true);
      const float4 second = finish(accumulators[1], false);
      float* const out = arguments_.y + int64_t{token} * rows + row;
      if (arguments_.accumulate) {
        PutRows(out, /*adds=*/true, first, num_rows);
        PutRows(out, /*adds=*/true, second, num_rows);
      } else {
        PutRows(out, /*adds=*/false,
                {AddFlushing(first.x, second.x), AddFlushing(first.y, second.y),
                 AddFlushing(first.z, second.z), AddFlushing(first.w, second.w)},
                num_rows);
      }
    }
  }

 private:
  static constexpr int kScales = (Tile::kTokens + 127) / 128;

  // Takes along what the tile's outputs are made of besides its sums.
  __device__ void BeginTile(int tile) {
    const PackedMatrix& matrix = arguments_.matrix;
    first_m_tile_ = FirstMTile(plan_, tile);
    first_token_ = FirstToken<Tile>(plan_, tile);
    const int last_token = static_cast<int>(arguments_.num_tokens) - 1;
    const int thread = static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      const int token = i * 128 + thread % (Tile::kTokens < 128 ? Tile::kTokens : 128);
      token_scales_[i] = TokenScale(arguments_, min(first_token_ + token, last_token));
    }
#pragma unroll
    for (int i = 0; i < 2 * Tile::kRowBlocks; ++i) {
      const int row = FirstRow(i / 2) + i % 2 * 8;
      row_scales_[i] = row < matrix.rows ? matrix.row_scales[row] : 0.0f;
      biases_[i] = row < matrix.rows ? BiasOf(matrix, row) : 0.0f;
    }
  }

  // The first row of the tile that is this warpgroup's.
  __device__ int FirstRowBlock() const { return Tile::kTakesTurns ? 0 : warp_ / 4; }
  // The row of this lane's accumulators of a row block.
  __device__ int FirstRow(int row_block) const {
    return first_m_tile_ * kMTileRows + (FirstRowBlock() + row_block) * kWarpgroupRows +
           warp_ % 4 * kMTileRows + lane_ / 4;
  }

  // `gives_turn`: to the other warpgroup, once all instructions are under way.
  __device__ void MultiplyKSplit(int num_stages, bool gives_turn) {
#pragma unroll
    for (int block = 0; block < Tile::kRowBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < Tile::kAccumulators; ++i) accumulators_[block][i] = 0.0f;
    }
    int last_slot = 0;
#pragma unroll 1
    for (int stage = 0; stage < num_stages; ++stage) {
      const int slot = ring_.slot();
      MbarrierWait(full_[slot], ring_.parity());
      const uint64_t weights = AdvanceDescriptor(weights_, slot * stage_bytes_);
      const uint64_t inputs = AdvanceDescriptor(inputs_, slot * stage_bytes_);
      FenceAllAccumulators();
      WgmmaFence();
#pragma unroll
      for (int k_tile = 0; k_tile < Tile::kStageKTiles; ++k_tile) {
#pragma unroll
        for (int i = 0; i < kInstructionsPerKTile; ++i) {
#pragma unroll
          for (int block = 0; block < Tile::kRowBlocks; ++block) {
            Wgmma<OperandMajor::kColumns>(
                AdvanceDescriptor(weights, k_tile * k_tile_bytes_ +
                                               block * kWarpgroupMTiles * kDenseKTileBytes +
                                               i / 2 * (kDenseKTileBytes / 4) + i % 2 * 32),
                AdvanceDescriptor(inputs, k_tile * Tile::kTokens * kInputKTileBytes + i * 32),
                accumulators_[block]);
          }
        }
      }
      WgmmaCommit();
      FenceAllAccumulators();
      if (stage > 0) {
        WgmmaWait<1>();
        Release(last_slot);
      }
      last_slot = slot;
      ring_.Advance();
    }
    if (gives_turn) GiveTurn(1 - warp_ / 4);
    WgmmaWait<0>();
    FenceAllAccumulators();
    Release(last_slot);
  }

  __device__ void FenceAllAccumulators() {
#pragma unroll
    for (int block = 0; block < Tile::kRowBlocks; ++block) FenceAccumulators(accumulators_[block]);
  }

  __device__ void Release(int slot) {
    if (lane_ == 0) MbarrierArrive(empty_[slot]);
  }

  __device__ void Write(bool is_added) {
    if constexpr (Tile::kStagesOutputs) {
      WriteLines(is_added);
    } else {
      WriteSums(is_added);
    }
  }

  __device__ void WriteLines(bool is_added) {
    const bool adds = arguments_.accumulate || is_added;
    const auto rows = static_cast<int>(arguments_.matrix.rows);
    // Then each thread has four rows or none.
    const bool is_whole = rows % 4 == 0 && first_token_ + Tile::kTokens <= arguments_.num_tokens;
    const auto put_whole = [](float* out, float4 values, int, int num_rows) {
      if (num_rows > 0) *reinterpret_cast<float4*>(out) = values;
    };
    const auto add_whole = [](float* out, float4 values, int, int num_rows) {
      if (num_rows > 0) AddOutputs(out, values);
    };
    const auto put_some = [&](float* out, float4 values, int token, int num_rows) {
      if (token < arguments_.num_tokens) PutRows(out, adds, values, num_rows);
    };
#pragma unroll
    for (int row_block = 0; row_block < Tile::kRowBlocks; ++row_block) {
      if (!is_whole) {
        WriteLines(row_block, is_added, put_some);
      } else if (adds) {
        WriteLines(row_block, is_added, add_whole);
      } else {
        WriteLines(row_block, is_added, put_whole);
      }
    }
  }

  // Sums of a patch are finished and stored while those before are written. `put(out, values,
  // token, num_rows)` writes four neighbouring outputs, of which num_rows are rows of the tile.
  template <typename Put>
  __device__ void WriteLines(int row_block, bool is_added, const Put& put) {
    constexpr int kQuads = kWarpgroupRows / 4;
    constexpr int kTokensAtOnce = 128 / kQuads;
    constexpr int kPatches = Tile::kTokens / Tile::kPatchTokens;
    const auto rows = static_cast<int>(arguments_.matrix.rows);
    const int warpgroup = warp_ / 4;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int quad_row = thread % kQuads * 4;
    const int tile_row = (FirstRowBlock() + row_block) * kWarpgroupRows + quad_row;
    const int row = first_m_tile_ * kMTileRows + tile_row;
    const int num_rows = tile_row < plan_.m_tiles * kMTileRows ? min(rows - row, 4) : 0;
    int token = first_token_ + thread / kQuads;
    float* out = arguments_.y + int64_t{token} * rows + row;
    const int64_t stride = int64_t{kTokensAtOnce} * rows;
    float* const own =
        patches_ + lane_ % 4 * 2 * Tile::kPatchStride + warp_ % 4 * kMTileRows + lane_ / 4;
    const float* const others = patches_ + thread / kQuads * Tile::kPatchStride + quad_row;
    float* const scales = patches_ + 2 * Tile::kPatchFloats;
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      if (i * 128 + thread < Tile::kTokens) scales[i * 128 + thread] = token_scales_[i];
    }
    const float biases[2] = {is_added ? 0.0f : biases_[2 * row_block],
                             is_added ? 0.0f : biases_[2 * row_block + 1]};
    SyncWarpgroup(warpgroup);
#pragma unroll
    for (int patch = 0; patch <= kPatches; ++patch) {
      if (patch < kPatches) {
#pragma unroll
        for (int i = 0; i < Tile::kPatchTokens / 2; i += 4) {
          const int first = patch * Tile::kPatchTokens + i * 2;
          const float2 token_scales =
              *reinterpret_cast<const float2*>(scales + first + lane_ % 4 * 2);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            own[patch % 2 * Tile::kPatchFloats + (i * 2 + j % 2) * Tile::kPatchStride + j / 2 * 8] =
                FinishSum(accumulators_[row_block][first / 2 + j],
                          j % 2 == 0 ? token_scales.x : token_scales.y,
                          row_scales_[2 * row_block + j / 2], biases[j / 2]);
          }
        }
      }
      if (patch > 0) {
#pragma unroll
        for (int i = 0; i < Tile::kPatchTokens; i += kTokensAtOnce) {
          put(out,
              *reinterpret_cast<const float4*>(others + (patch - 1) % 2 * Tile::kPatchFloats +
                                               i * Tile::kPatchStride),
              token, num_rows);
          token += kTokensAtOnce;
          out += stride;
        }
      }
      if (patch < kPatches) SyncWarpgroup(warpgroup);
    }
  }

  // The first `num_rows` of four neighbouring outputs.
  __device__ void PutRows(float* out, bool adds, float4 values, int num_rows) const {
    if (num_rows == 4 && arguments_.matrix.rows % 4 == 0) {
      if (adds) {
        AddOutputs(out, values);
      } else {
        *reinterpret_cast<float4*>(out) = values;
      }
      return;
    }
    if (num_rows > 0) PutOutput(out, adds, values.x);
    if (num_rows > 1) PutOutput(out + 1, adds, values.y);
    if (num_rows > 2) PutOutput(out + 2, adds, values.z);
    if (num_rows > 3) PutOutput(out + 3, adds, values.w);
  }

  __device__ void WriteSums(bool is_added) {
    if (warp_ >= plan_.m_tiles) return;
    const bool adds = arguments_.accumulate || is_added;
    const auto rows = static_cast<int>(arguments_.matrix.rows);
    const auto num_tokens = static_cast<int>(arguments_.num_tokens);
#pragma unroll
    for (int i = 0; i < Tile::kAccumulators; ++i) {
      const int of_token = i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      const int half = i % 4 / 2;
      const float token_scale = __shfl_sync(0xffffffffu, token_scales_[0], of_token);
      const float value = FinishSum(accumulators_[0][i], token_scale, row_scales_[half],
                                    is_added ? 0.0f : biases_[half]);
      const int token = first_token_ + of_token;
      const int row = FirstRow(/*row_block=*/0) + half * 8;
      if (row < rows && token < num_tokens) {
        PutOutput(arguments_.y + int64_t{token} * rows + row, adds, value);
      }
    }
  }

  const ProductArguments& arguments_;
  const DensePlan& plan_;
  const Work& work_;
  MbarrierArray full_;
  MbarrierArray empty_;
  int warp_;
  int lane_;
  float* patches_;
  int k_tile_bytes_;
  int stage_bytes_;
  Ring ring_;
  uint64_t weights_;
  uint64_t inputs_;
  int first_m_tile_ = 0;
  int first_token_ = 0;
  float token_scales_[kScales] = {};  // of token i * 128 + thread
  float row_scales_[2 * Tile::kRowBlocks] = {};
  float biases_[2 * Tile::kRowBlocks] = {};
  float accumulators_[Tile::kRowBlocks][Tile::kAccumulators];
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    DenseProductHopper(const __grid_constant__ ProductArguments arguments,
                       const __grid_constant__ DenseMaps maps,
                       const __grid_constant__ DensePlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ DenseShared<Tile> shared;
  uint8_t* const stages =
      dynamic_shared + (kAlignment - SharedAddress(dynamic_shared) % kAlignment) % kAlignment;
  LaunchDependents();
  const Work work(plan);
  if (threadIdx.x == 0) {
    InitRing(MbarrierArray(shared.full), MbarrierArray(shared.empty), plan.num_stages,
             /*full_arrivals=*/1, /*empty_arrivals=*/4 * Tile::kSharers);
    FenceProxyAsync();
  }
  __syncthreads();
  if (threadIdx.x >= Tile::kConsumerThreads) {
    if constexpr (Tile::kMovesRegisters) WarpgroupRegDealloc<Tile::kProducerRegisters>();
    if (threadIdx.x == Tile::kConsumerThreads) {
      PrefetchTensorMap(maps.weights);
      PrefetchTensorMap(maps.inputs);
      ProduceStages<Tile>(plan, maps, work, SharedAddress(stages), shared);
    }
    if (plan.splits > 1) {
      ClusterSync();
      ClusterSync();
    }
  } else {
    if constexpr (Tile::kMovesRegisters) WarpgroupRegAlloc<Tile::kConsumerRegisters>();
    auto* const writers =
        reinterpret_cast<float*>(stages + Tile::RingBytes(plan.m_tiles, plan.num_stages));
    Consumer<Tile> consumer(arguments, plan, work, stages, writers, shared);
    consumer.Run();
    if (plan.splits > 1) {
      auto* const exchange = reinterpret_cast<float*>(stages);
      consumer.GiveSums(exchange);
      ClusterSync();
      consumer.AddSums(exchange);
      ClusterSync();
    }
  }
#endif
}

// Boxes of a stage: of weights [K tile][M tile], in units of 8 bytes, of inputs [K tile][token].
template <typename Tile>
cudaError_t DescribeOperands(EncodeTensorMap encode, const ProductArguments& arguments, int m_tiles,
                             DenseMaps* maps) {
  constexpr int kUnitBytes = 8;
  const PackedMatrix& matrix = arguments.matrix;
  const auto num_k_tiles = static_cast<cuuint64_t>(matrix.num_k_tiles);
  const cuuint32_t element_strides[] = {1, 1, 1};
  const cuuint64_t weight_extents[] = {
      kDenseKTileBytes / kUnitBytes, static_cast<cuuint64_t>(NumMTiles(matrix.rows)), num_k_tiles};
  const cuuint64_t weight_strides[] = {num_k_tiles * kDenseKTileBytes, kDenseKTileBytes};
  const cuuint32_t weight_box[] = {kDenseKTileBytes / kUnitBytes, static_cast<cuuint32_t>(m_tiles),
                                   Tile::kStageKTiles};
  const CUresult weights =
      encode(&maps->weights, CU_TENSOR_MAP_DATA_TYPE_INT64, 3, const_cast<void*>(matrix.tiles),
             weight_extents, weight_strides, weight_box, element_strides,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  const cuuint64_t input_extents[] = {kKTileColumns, static_cast<cuuint64_t>(arguments.num_tokens),
                                      num_k_tiles};
  const cuuint64_t input_strides[] = {static_cast<cuuint64_t>(PackedInputBytes(matrix.num_k_tiles)),
                                      kInputKTileBytes};
  const cuuint32_t input_box[] = {kKTileColumns, Tile::kTokens, Tile::kStageKTiles};
  const CUresult inputs =
      encode(&maps->inputs, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
             const_cast<void*>(arguments.packed_input), input_extents, input_strides, input_box,
             element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return weights == CUDA_SUCCESS && inputs == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Tile>
DensePlan PlanOf(const ProductArguments& arguments, int m_tiles, int splits) {
  const auto divide = [](int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); };
  const int64_t num_k_tiles = arguments.matrix.num_k_tiles;
  const int64_t k_split_tiles = DenseKSplitTiles(arguments.matrix.rows, num_k_tiles);
  DensePlan plan = {};
  plan.m_tiles = m_tiles;
  plan.num_stages = Tile::NumStages(m_tiles, arguments.max_shared_bytes);
  plan.splits = splits;
  plan.token_blocks = divide(arguments.num_tokens, Tile::kTokens);
  plan.num_tiles = divide(NumMTiles(arguments.matrix.rows), m_tiles) * plan.token_blocks;
  plan.total_stages = divide(num_k_tiles, Tile::kStageKTiles);
  plan.k_split_stages = divide(k_split_tiles, Tile::kStageKTiles);
  return plan;
}

template <typename Tile>
cudaError_t LaunchDense(const ProductArguments& arguments, const DensePlan& plan,
                        cudaStream_t stream) {
  const EncodeTensorMap encode = FindEncodeTensorMap();
  if (encode == nullptr) return cudaErrorNotSupported;
  const int shared_bytes = Tile::SharedBytes(plan.m_tiles, plan.num_stages);
  cudaError_t error = cudaFuncSetAttribute(
      DenseProductHopper<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  DenseMaps maps;
  error = DescribeOperands<Tile>(encode, arguments, plan.m_tiles, &maps);
  if (error != cudaSuccess) return error;
  // Blocks that exchange sums have one tile.
  const int num_clusters =
      plan.splits > 1 ? plan.num_tiles : std::min(plan.num_tiles, arguments.num_sms);
  return LaunchClusters(DenseProductHopper<Tile>,
                        dim3(static_cast<unsigned>(num_clusters * plan.splits)), plan.splits,
                        Tile::kThreads, static_cast<size_t>(shared_bytes), stream, arguments, maps,
                        plan);
}

// Cycles of a product, about: fitted to the times of all tiles for 1 to 2,048 tokens and the sites
// of llama-3.2-1b and llama-3.1-8b on an H200. The quickest by it took 1.5% longer than the
// quickest.
template <typename Tile>
int64_t CostOf(const ProductArguments& arguments, const DensePlan& plan) {
  const int64_t num_blocks = int64_t{plan.num_tiles} * plan.splits;
  const int64_t rounds = (num_blocks + arguments.num_sms - 1) / arguments.num_sms;
  const int64_t k_tiles =
      int64_t{plan.splits > 1 ? plan.k_split_stages : plan.total_stages} * Tile::kStageKTiles;
  // A K tile: the tensor cores and a stage's iteration.
  constexpr int64_t kKTileCycles =
      4 * Tile::kWarpgroups * std::max(Tile::kTokens / 2, 34) + 8 / Tile::kStageKTiles;
  // Outputs, at 11 bytes a cycle; and what the blocks of a cluster exchange.
  const int64_t num_writes =
      plan.splits > 1 ? 1 : (plan.total_stages + plan.k_split_stages - 1) / plan.k_split_stages;
  const int64_t output_bytes = int64_t{plan.m_tiles} * kMTileRows * Tile::kTokens * 4;
  const int64_t exchange_cycles =
      plan.splits > 1 ? 5000 + 12 * Tile::kTokens * Tile::kWarpgroups : 0;
  const int64_t write_cycles = num_writes * output_bytes / 11 + exchange_cycles;
  // Those that take turns write while the next tile is multiplied.
  const int64_t tile_cycles =
      Tile::kTakesTurns ? std::max(k_tiles * kKTileCycles, write_cycles) : k_tiles * kKTileCycles;
  const int64_t own_cycles = rounds * tile_cycles;
  // What all SMs share: device memory, and L2.
  const int64_t k_tile_bytes = Tile::StageBytes(plan.m_tiles) / Tile::kStageKTiles;
  const int64_t memory_cycles =
      NumMTiles(arguments.matrix.rows) * arguments.matrix.num_k_tiles * kDenseKTileBytes / 3500;
  const int64_t cache_cycles = num_blocks * k_tiles * k_tile_bytes / 8000;
  const int64_t shared_cycles = std::max(memory_cycles, cache_cycles);
  return std::max(own_cycles, shared_cycles) + std::min(own_cycles, shared_cycles) * 2 / 5 +
         (Tile::kTakesTurns ? 200 + write_cycles : rounds * write_cycles) + 5 * num_blocks;
}

}  // namespace ultrasketch::cuda::dense_product_hopper

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_CUDA_DENSE_PRODUCT_HOPPER_CUH_
