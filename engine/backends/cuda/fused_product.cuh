// Products of sign bits with one or two tokens, whose blocks make the inputs themselves.
//
// With one token a kernel of its own for the inputs is mostly a launch, a round trip to L2 for what
// the kernel before wrote, and another one for what it writes. Here each block of the product makes
// the whole input again: as many blocks as there are compute the same, none waits for another,
// and a kernel's latency less is paid. Only where inputs are so long that reading them is what
// blocks wait for, the blocks of a cluster each make a part for all.
//
//   before the wait for the kernel before    bits on their way to shared memory, tables there, what
//                                            the threads will need of them computed
//   after it    x to shared memory, its absmax                 barrier
//               buckets' sums as integers, their total         barrier
//               bits in common counted (bit_serial.cuh), and
//               added in shared memory                         barrier
//               outputs
//
// In clusters blocks do the first two parts for each other, the sums of buckets before the absmax,
// and wait until they have everything (ptx/cluster.cuh).
//
// What follows the wait is a chain of instructions of a few warps, each waiting for the one before,
// and its length is the kernel's time: it is written to be short. Integer sums are exact, so that
// warps may add theirs in any order.
//
// A `Source` says what an input is made of (fused_product.cu):
//
//   static constexpr int kWarps;          // of a block
//   static constexpr bool kIsPermuted;    // inputs lie in device memory in permuted order
//   static constexpr int kClusterBlocks;  // that divide an input among them
//   struct State;
//   static int64_t StagedBytes(transform)
//   State Begin<kThreads>(num_tokens, staged)    // before the wait; `staged` is shared memory
//   Loaded Load<kThreads>(state, token, staged, x, indices)   // after it: puts a token's input in
//                                                             // x, with a barrier at the end; has
//                                                             // its `absmax`
//   static constexpr bool kHasInverseRms;    // the input is what is in x times it:
//   void GiveInverseRms<kThreads>(loaded)    // by all threads, and after a barrier
//   float TakeInverseRms<kThreads>()            // by any
//   const float* RowOf(token)             // instead of Load, of clusters
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_FUSED_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_FUSED_PRODUCT_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "engine/backends/cuda/input_rows.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/cuda/input_transform.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/ptx/cluster.cuh"
#include "engine/codecs/cuda/ptx/mbarrier.cuh"
#include "engine/codecs/cuda/ptx/mma.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"
#include "engine/codecs/fold/cuda/bit_serial.cuh"

namespace ultrasketch::cuda {

// How the blocks divide a matrix, as those of SkinnyPlan do, and a block's shared memory: offsets
// of the rows' scales, the tokens' bit-serial inputs, x, and the tables. Gated: M tiles are taken
// in pairs, one of gates and one of their ups.
struct FusedPlan {
  bool is_gated;
  int log2_k_warps;
  int tiles_per_group;
  int rows_per_block;
  int bit_serial_bytes;  // of a token
  int scales;            // {row scale, bias}; at 0 are the sums, [row][token]
  int output_places;
  int bit_serial;
  int x;
  int scatter_indices;
  int groups;
  int staged;  // the source's own
  // [warp][staged_k_tiles][lane]: the first bit K tiles of each warp. Those that are left, for
  // which there is no room, come from L2, one after the other.
  int bits;
  int staged_k_tiles;
  int left_k_tiles;
  int shared_bytes;
};

// A thread's quads where a cluster's blocks divide a token's: each block has a run of them, of
// whole warps' positions.
template <int kThreads, int kBlocks>
struct ClusterQuads {
  static constexpr int kRounds = 2;
  static constexpr int64_t kMaxPositions = int64_t{kRounds} * kThreads * kBlocks * kQuad;

  int first;
  int end;
  QuadPlan plans[kRounds];

  __device__ ClusterQuads(const InputTransform& transform, const TransformGroup* groups, int rank) {
    const int num_runs = static_cast<int>(transform.num_k_tiles) * kKTileColumns / kWarpPositions;
    first = rank * num_runs / kBlocks * kWarpPositions + static_cast<int>(threadIdx.x) * kQuad;
    end = (rank + 1) * num_runs / kBlocks * kWarpPositions;
    GroupCursor cursor(transform, groups);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      plans[round] = cursor.PlanQuad(first + round * kThreads * kQuad);
      Materialize(plans[round].first_permuted);
      Materialize(plans[round].num_columns);
    }
  }
};

// A token's packed input besides its bits.
struct alignas(16) BlockTotal {
  float scale;
  uint32_t total;
  uint32_t is_not_finite;
  uint32_t absmax_bits;  // the absmax of x; in clusters
};
// In clusters: phases that end when all blocks have sent what they do for this one.
struct ClusterBarriers {
  Mbarrier has_absmax;
  Mbarrier is_complete;
};

template <typename Source, int kTokens>
__device__ inline void MakeProduct(const ProductArguments& arguments, const FusedPlan& plan,
                                   const InputTransform& transform, const Source& source,
                                   const uint16_t* output_indices) {
  constexpr int kThreads = Source::kWarps * 32;
  constexpr int kClusterBlocks = Source::kClusterBlocks;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ BlockTotal totals[kTokens];
  [[maybe_unused]] __shared__ ClusterBarriers barriers[kTokens];
  LaunchDependents();

  const PackedMatrix& matrix = arguments.matrix;
  int thread = static_cast<int>(threadIdx.x);
  Materialize(thread);  // it would be read again, and slowly, for each use
  if (thread == 0) {
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      totals[token] = {};
      if constexpr (kClusterBlocks > 1) {
        constexpr int kReductionBytes = kClusterBlocks * Source::kWarps * int{sizeof(uint32_t)};
        const uint32_t has_absmax = SharedAddress(&barriers[token].has_absmax);
        const uint32_t is_complete = SharedAddress(&barriers[token].is_complete);
        MbarrierInit(has_absmax, 1);
        MbarrierInit(is_complete, 1);
        MbarrierArriveExpectTx(has_absmax, kReductionBytes);
        MbarrierArriveExpectTx(is_complete, plan.bit_serial_bytes + kReductionBytes);
      }
    }
    if constexpr (kClusterBlocks > 1) FenceMbarrierInit();
  }
  if constexpr (kClusterBlocks > 1) ClusterArriveRelaxed();
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const int num_k_warps = 1 << plan.log2_k_warps;
  const int k_warp = warp & (num_k_warps - 1);
  const int group = warp >> plan.log2_k_warps;
  const int num_k_tiles = static_cast<int>(matrix.num_k_tiles) / kKTilesPerBitKTile;
  const int num_rows = static_cast<int>(matrix.rows);
  const int last_tile = static_cast<int>(NumMTiles(num_rows)) - 1;
  const int block_row = static_cast<int>(blockIdx.x) * plan.rows_per_block;
  const int first_tile = block_row / kMTileRows + group * plan.tiles_per_group;

  // The matrix's tile at a place in the order of the blocks. Places past the end repeat the last
  // tile; their sums are dropped.
  const auto tile_at = [&](int place) {
    place = min(place, last_tile);
    return plan.is_gated ? place % 2 * ((last_tile + 1) / 2) + place / 2 : place;
  };
  // This warp's bit K tiles: of each of its M tiles k_warp, k_warp + num_k_warps and so on. Of a
  // tile, where this lane's bits begin.
  const int k_tiles_each = (num_k_tiles - k_warp + num_k_warps - 1) >> plan.log2_k_warps;
  const int k_tile_stride = num_k_warps * kBitKTileBytes;
  const auto bits_of = [&](int tile) {
    const int index = tile_at(first_tile + tile) * num_k_tiles + k_warp;
    return static_cast<uint32_t>(index) * kBitKTileBytes + static_cast<uint32_t>(lane * 16);
  };
  const auto* const all_bits = static_cast<const uint8_t*>(matrix.tiles);
  uint8_t* staged_bits =
      shared + plan.bits + warp * (plan.staged_k_tiles * kBitKTileBytes) + lane * 16;

  auto* const sums = reinterpret_cast<uint32_t*>(shared);
  auto* const scales = reinterpret_cast<float2*>(shared + plan.scales);
  auto* const x = reinterpret_cast<float*>(shared + plan.x);
  const auto* const scatter_indices =
      reinterpret_cast<const uint16_t*>(shared + plan.scatter_indices);
  const auto* const groups = reinterpret_cast<const TransformGroup*>(shared + plan.groups);
  const auto stage = [&](const void* from, int num_bytes, uint8_t* to) {
#pragma unroll 1
    for (int offset = thread * 16; offset < num_bytes; offset += kThreads * 16) {
      CopyAsync16(to + offset, static_cast<const uint8_t*>(from) + offset);
    }
  };
  if constexpr (!Source::kIsPermuted) {
    stage(transform.scatter_indices, static_cast<int>(transform.table_bytes()),
          shared + plan.scatter_indices);
  }
  if (transform.num_groups > 1) {
    stage(transform.groups, static_cast<int>(transform.group_bytes()), shared + plan.groups);
  }
  const auto state = source.template Begin<kThreads>(kTokens, shared + plan.staged);
  CommitCopies();
  // To where this lane reads them; the rest to L2.
  int turn = 0;
#pragma unroll 1
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    const uint8_t* bits = all_bits + bits_of(tile);
#pragma unroll 1
    for (int k_tile = 0; k_tile < k_tiles_each; ++k_tile) {
      if (turn < plan.staged_k_tiles) {
        CopyAsync16(staged_bits + turn * kBitKTileBytes, bits);
      } else if (lane % (kLineBytes / 16) == 0) {
        Prefetch(bits);
      }
      ++turn;
      bits += k_tile_stride;
    }
  }
  CommitCopies();
#pragma unroll 1
  for (int i = thread; i < plan.rows_per_block * kTokens; i += kThreads) sums[i] = 0;
#pragma unroll 1
  for (int row = thread; row < plan.rows_per_block; row += kThreads) {
    if (block_row + row >= num_rows) continue;
    const int matrix_row = tile_at((block_row + row) / kMTileRows) * kMTileRows + row % kMTileRows;
    scales[row] = {matrix.row_scales[matrix_row], BiasOf(matrix, matrix_row)};
  }
  // Outputs are those of pairs of tiles, or of tiles.
  const int halves = plan.is_gated ? 2 : 1;
  const int block_outputs = plan.rows_per_block / halves;
  const int first_output = block_row / halves;
  const int num_outputs = num_rows / halves;
  auto* const output_places = reinterpret_cast<uint16_t*>(shared + plan.output_places);
  if (output_indices != nullptr) {
#pragma unroll 1
    for (int output = thread; output < block_outputs; output += kThreads) {
      if (first_output + output < num_outputs) {
        output_places[output] = output_indices[first_output + output];
      }
    }
  }
  WaitForCopies<1>();
  __syncthreads();  // the tables are there
  const auto plan_quads = [&] {
    if constexpr (kClusterBlocks > 1) {
      const ClusterQuads<kThreads, kClusterBlocks> quads(transform, groups, ClusterRank());
      ClusterWait();  // what others add to is there
      return quads;
    } else {
      struct {
        GroupCursor cursor;
        QuadPlan first;
      } quads = {GroupCursor(transform, groups), {}};
      quads.first = quads.cursor.PlanQuad(FirstQuad<kThreads>({0, 1}));
      Materialize(quads.first.first_permuted);
      Materialize(quads.first.num_columns);
      return quads;
    }
  };
  const auto quads = plan_quads();
  const BitTranspose exchange;
  // The first token's bits of this lane, and accumulators of rows l / 4 and l / 4 + 8.
  int first_input = plan.bit_serial + k_warp * kBitKTileBytes + lane * BitTranspose::kWordBytes;
  Materialize(first_input);
  int first_sum = (group * plan.tiles_per_group * kMTileRows + lane / 4) * kTokens;
  Materialize(first_sum);
  WaitForGridDependency();

#pragma unroll 1
  for (int token = 0; token < kTokens; ++token) {
    uint8_t* const row = shared + plan.bit_serial + token * plan.bit_serial_bytes;
    if constexpr (kClusterBlocks > 1) {
      // Each block makes its run of positions and sends them to all.
      using Quads = std::decay_t<decltype(quads)>;
      const float* const entries = source.RowOf(token);
      float absmax = 0.0f;
      QuadValues sums[Quads::kRounds];
      float weights[Quads::kRounds];
#pragma unroll
      for (int round = 0; round < Quads::kRounds; ++round) {
        const int first = quads.first + round * kThreads * kQuad;
        if (first < quads.end) {
          sums[round] =
              SumPlannedQuad(entries, transform, groups, first, quads.plans[round], weights[round],
                             [&](float permuted) { absmax = fmaxf(absmax, fabsf(permuted)); });
        }
      }
      absmax = WarpAbsMax(absmax);
      const uint32_t block_total = SharedAddress(&totals[token]);
      const uint32_t has_absmax = SharedAddress(&barriers[token].has_absmax);
      const uint32_t is_complete = SharedAddress(&barriers[token].is_complete);
      // A lane for each block.
      if (lane < kClusterBlocks) {
        RedAsyncMax(MapToRank(block_total + offsetof(BlockTotal, absmax_bits), lane),
                    __float_as_uint(absmax), MapToRank(has_absmax, lane));
      }
      MbarrierWait(has_absmax, 0);
      const Int16Scale scale =
          ScaleToInt16(__uint_as_float(totals[token].absmax_bits) * transform.max_amplification);
      int total = 0;
      bool is_finite = true;
#pragma unroll
      for (int round = 0; round < Quads::kRounds; ++round) {
        const int first = quads.first + round * kThreads * kQuad;
        if (first >= quads.end) break;
        uint32_t integers[kQuad];
        ToIntegers(sums[round], weights[round] * scale.factor, integers, total, is_finite);
        const BitTranspose::Words words = exchange.Trade(integers);
        const uint32_t address = SharedAddress(row + exchange.OffsetOf(first));
#pragma unroll
        for (int rank = 0; rank < kClusterBlocks; ++rank) {
          const uint32_t in_cluster = MapToRank(address, rank);
          const uint32_t barrier = MapToRank(is_complete, rank);
          StoreAsync(in_cluster, words.lower, barrier);
          StoreAsync(in_cluster + BitTranspose::kUpperBitsBytes, words.upper, barrier);
        }
      }
      total = WarpTotal(total, is_finite);
      if (lane < kClusterBlocks) {
        const uint32_t of_block = MapToRank(block_total, lane);
        const uint32_t barrier = MapToRank(is_complete, lane);
        if (total == kNotFinite) {
          RedAsyncMax(of_block + offsetof(BlockTotal, is_not_finite), 1, barrier);
        } else {
          RedAsyncAdd(of_block + offsetof(BlockTotal, total), static_cast<uint32_t>(total),
                      barrier);
        }
      }
      if (thread == 0) totals[token].scale = scale.inverse;
      MbarrierWait(is_complete, 0);
    } else {
      const auto loaded =
          source.template Load<kThreads>(state, token, shared + plan.staged, x, scatter_indices);
      if constexpr (Source::kHasInverseRms) source.template GiveInverseRms<kThreads>(loaded);
      const Int16Scale scale = ScaleToInt16(loaded.absmax * transform.max_amplification);
      int total = 0;
      bool is_finite = true;
      SumBuckets<kThreads>(
          x, transform, groups, {0, 1}, quads.cursor, quads.first,
          [&](int position, const QuadValues& quad, float weight) {
            uint32_t integers[kQuad];
            ToIntegers(quad, weight * scale.factor, integers, total, is_finite);
            const BitTranspose::Words words = exchange.Trade(integers);
            uint8_t* const bit_serial = row + exchange.OffsetOf(position);
            *reinterpret_cast<uint32_t*>(bit_serial) = words.lower;
            *reinterpret_cast<uint32_t*>(bit_serial + BitTranspose::kUpperBitsBytes) = words.upper;
          });
      total = WarpTotal(total, is_finite);
      if (lane == 0) {
        if (total == kNotFinite) {
          atomicOr(&totals[token].is_not_finite, 1);
        } else {
          atomicAdd(&totals[token].total, static_cast<uint32_t>(total));
        }
      }
      __syncthreads();
      if (thread == 0) {
        float inverse_rms = 1.0f;
        if constexpr (Source::kHasInverseRms)
          inverse_rms = source.template TakeInverseRms<kThreads>();
        totals[token].scale = inverse_rms * scale.inverse;
      }
    }
  }

  WaitForCopies<0>();
#pragma unroll 1
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    int counts[kTokens][2][4] = {};  // of bits 0 to 7 and of 8 to 15
    const auto multiply = [&](const uint4& bits, int k_tile) {
      const uint8_t* inputs = shared + first_input + k_tile * (num_k_warps * kBitKTileBytes);
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        MmaAndPopc(bits, BitTranspose::Load(inputs), counts[token][0]);
        MmaAndPopc(bits, BitTranspose::Load(inputs + BitTranspose::kUpperBitsBytes),
                   counts[token][1]);
        inputs += plan.bit_serial_bytes;
      }
    };
    const int num_staged = min(max(plan.staged_k_tiles - tile * k_tiles_each, 0), k_tiles_each);
    int k_tile = 0;
    // Chains of K tiles overlap.
#pragma unroll 4
    for (; k_tile < num_staged; ++k_tile) {
      multiply(*reinterpret_cast<const uint4*>(staged_bits + k_tile * kBitKTileBytes), k_tile);
    }
#pragma unroll 1
    for (; k_tile < k_tiles_each; ++k_tile) {
      const uint8_t* const left = all_bits + bits_of(tile) + k_tile * k_tile_stride;
      multiply(__ldcs(reinterpret_cast<const uint4*>(left)), k_tile);
    }
    staged_bits += num_staged * kBitKTileBytes;
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const auto& [low, high] = counts[token];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = 2 * half;
        atomicAdd(&sums[first_sum + half * 8 * kTokens + token],
                  WeighCounts(low[i], low[i + 1], high[i], high[i + 1]));
      }
    }
    first_sum += kMTileRows * kTokens;
  }
  __syncthreads();

  const auto output_of = [&](int row, int token) {
    const BlockTotal total = totals[token];
    const float2 scale = scales[row];
    const InputTotal input_total = {
        total.is_not_finite != 0 ? __int_as_float(0x7fffffff) : total.scale,
        static_cast<int>(total.total)};
    return FinishBits(0, static_cast<int>(sums[row * kTokens + token]), input_total, scale.x,
                      scale.y);
  };
#pragma unroll 1
  for (int output = thread; output < block_outputs; output += kThreads) {
    if (first_output + output >= num_outputs) break;
#pragma unroll 1
    for (int token = 0; token < kTokens; ++token) {
      if (plan.is_gated) {
        const int gate = output / kMTileRows * (2 * kMTileRows) + output % kMTileRows;
        const float value =
            SwiGluValue(output_of(gate, token), output_of(gate + kMTileRows, token));
        float* const y = arguments.y + token * num_outputs;
        if (output_indices != nullptr) {
          PutAt(y, output_places[output], value);
        } else {
          y[first_output + output] = value;
        }
      } else {
        PutOutput(arguments, token, first_output + output, output_of(output, token));
      }
    }
  }
}

// Blocks find room beside those of the products before and after: two to an SM, of which the launch
// takes one. Small blocks of one token have registers for three, which was measured to be quicker
// with small models.
template <typename Source, int kTokens>
__global__ void __launch_bounds__(Source::kWarps * 32, Source::kWarps <= 8 && kTokens == 1 ? 3 : 2)
    FusedProduct(const __grid_constant__ ProductArguments arguments,
                 const __grid_constant__ FusedPlan plan,
                 const __grid_constant__ InputTransform transform,
                 const __grid_constant__ Source source, const uint16_t* output_indices) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (Source::kClusterBlocks == 1)
#endif
  {
    MakeProduct<Source, kTokens>(arguments, plan, transform, source, output_indices);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_FUSED_PRODUCT_CUH_
