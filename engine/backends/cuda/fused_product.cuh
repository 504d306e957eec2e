// Products of sign bits with one or two tokens, whose blocks make the inputs themselves.
//
// With one token a kernel of its own for the inputs is mostly a launch, a round trip to the
// second-level cache for what the kernel before wrote, and another one for what it writes. Each
// block of the product makes the whole input anew instead: as many blocks as there are compute the
// same, none waits for another, and a kernel's latency less is paid. Only where inputs are so long
// that reading them is what blocks wait for, the blocks of a cluster each make a share for all.
//
//   before the wait for the kernel before    bits on their way to shared memory, tables there, what
//                                            the threads will need of them reckoned
//   after it    x to shared memory, its largest magnitude      barrier
//               buckets' sums as integers, their total         barrier
//               bits in common counted (bit_planes.cuh), and
//               added in shared memory                         barrier
//               outputs
//
// In clusters blocks do the first two parts for each other, the sums of buckets before the largest
// magnitude, and wait until they have everything (barriers.cuh).
//
// What follows the wait is a chain of instructions of a few warps, each waiting for the one before,
// and its length is the kernel's time: it is written to be short. Integer sums are exact, so that
// warps may add theirs in any order.
//
// A `Source` says what an input is made of (fused_product.cu):
//
//   static constexpr int kWarps;          // of a block
//   static constexpr bool kInEntries;     // inputs lie in device memory as the sketch takes them
//   static constexpr int kClusterBlocks;  // that divide an input among them
//   struct State;
//   static int64_t StagedBytes(sketch)
//   State Begin<kThreads>(num_tokens, staged)    // before the wait; `staged` is shared memory
//   Loaded Load<kThreads>(state, token, staged, x, places)    // after it: puts a token's input in
//                                                             // x, with a barrier at the end; has
//                                                             // its largest magnitude, `maximum`
//   static constexpr bool kHasGain;       // the input is what is in x times a gain:
//   void GiveGain<kThreads>(loaded)       // by all threads, and after a barrier
//   float TakeGain<kThreads>()            // by any
//   const float* RowOf(token)             // instead of Load, of clusters
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_FUSED_PRODUCT_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_FUSED_PRODUCT_CUH_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/producer_rows.cuh"
#include "engine/codecs/cuda/barriers.cuh"
#include "engine/codecs/cuda/launch.cuh"
#include "engine/codecs/cuda/sketch.cuh"
#include "engine/codecs/fold/cuda/bit_planes.cuh"
#include "engine/codecs/fold/cuda/bit_product.cuh"

namespace ultrasketch::cuda {

// How the blocks divide a matrix, as those of FewPlan do, and a block's shared memory: offsets of
// the rows' scales, the planes of the tokens, x, and the tables. Gated: row tiles are taken in
// pairs of gates and ups.
struct FusedPlan {
  bool is_gated;
  int log2_k_warps;
  int tiles_per_group;
  int rows_per_block;
  int plane_bytes;  // of a token
  int scales;       // {row scale, bias}; at 0 are the sums, [row][token]
  int output_places;
  int planes;
  int x;
  int places;
  int groups;
  int staged;  // the source's own
  // [warp][staged_steps][lane]: the first bit steps of each warp. Those that are left, for which
  // there is no room, come from the second-level cache in their turn, one after the other.
  int bits;
  int staged_steps;
  int left_steps;
  int shared_bytes;
};

// A thread's quads where a cluster's blocks divide a token's: each block has a run of them, of
// whole warps' positions.
template <int kThreads, int kBlocks>
struct ClusterQuads {
  static constexpr int kRounds = 2;
  static constexpr int64_t kMostPositions = int64_t{kRounds} * kThreads * kBlocks * kQuad;

  int first;
  int end;
  QuadPlan plans[kRounds];

  __device__ ClusterQuads(const InputSketch& sketch, const SketchGroup* groups, int rank) {
    const int num_runs = static_cast<int>(sketch.num_steps) * kStepColumns / kWarpPositions;
    first = rank * num_runs / kBlocks * kWarpPositions + static_cast<int>(threadIdx.x) * kQuad;
    end = (rank + 1) * num_runs / kBlocks * kWarpPositions;
    GroupCursor cursor(sketch, groups);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      plans[round] = cursor.PlanQuad(first + round * kThreads * kQuad);
      WorkOutNow(plans[round].first_entry);
      WorkOutNow(plans[round].num_columns);
    }
  }
};

// A token's input besides its planes.
struct alignas(16) BlockTotal {
  float scale;
  uint32_t total;
  uint32_t is_not_finite;
  uint32_t largest_bits;  // of a magnitude; of clusters
};
// Of clusters: phases that end when all blocks have sent what they do for this one.
struct ClusterBarriers {
  SharedBarrier has_largest;
  SharedBarrier is_complete;
};

template <typename Source, int kTokens>
__device__ inline void MakeProduct(const ProductArguments& arguments, const FusedPlan& plan,
                                   const InputSketch& sketch, const Source& source,
                                   const uint16_t* entry_places) {
  constexpr int kThreads = Source::kWarps * 32;
  constexpr int kClusterBlocks = Source::kClusterBlocks;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ BlockTotal totals[kTokens];
  [[maybe_unused]] __shared__ ClusterBarriers barriers[kTokens];
  AllowNextKernel();

  const PackedMatrix& matrix = arguments.matrix;
  int thread = static_cast<int>(threadIdx.x);
  WorkOutNow(thread);  // it would be read anew, and slowly, for each use
  if (thread == 0) {
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      totals[token] = {};
      if constexpr (kClusterBlocks > 1) {
        constexpr int kReductionBytes = kClusterBlocks * Source::kWarps * int{sizeof(uint32_t)};
        const uint32_t has_largest = SharedAddress(&barriers[token].has_largest);
        const uint32_t is_complete = SharedAddress(&barriers[token].is_complete);
        InitBarrier(has_largest, 1);
        InitBarrier(is_complete, 1);
        ArriveAndExpect(has_largest, kReductionBytes);
        ArriveAndExpect(is_complete, plan.plane_bytes + kReductionBytes);
      }
    }
    if constexpr (kClusterBlocks > 1) ShowToCluster();
  }
  if constexpr (kClusterBlocks > 1) ArriveAtClusterRelaxed();
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const int num_k_warps = 1 << plan.log2_k_warps;
  const int k_warp = warp & (num_k_warps - 1);
  const int group = warp >> plan.log2_k_warps;
  const int num_steps = static_cast<int>(matrix.num_steps) / kStepsPerBitStep;
  const int num_rows = static_cast<int>(matrix.rows);
  const int last_tile = static_cast<int>(NumRowTiles(num_rows)) - 1;
  const int block_row = static_cast<int>(blockIdx.x) * plan.rows_per_block;
  const int first_tile = block_row / kTileRows + group * plan.tiles_per_group;

  // The matrix's tile at a place in the order of the blocks. Places past the end repeat the last
  // tile; their sums are dropped.
  const auto tile_at = [&](int place) {
    place = min(place, last_tile);
    return plan.is_gated ? place % 2 * ((last_tile + 1) / 2) + place / 2 : place;
  };
  // This warp's bit steps: of each of its row tiles k_warp, k_warp + num_k_warps and so on. Of a
  // tile, where this lane's bits begin.
  const int steps_each = (num_steps - k_warp + num_k_warps - 1) >> plan.log2_k_warps;
  const int step_stride = num_k_warps * kBitStepBytes;
  const auto bits_of = [&](int tile) {
    const int index = tile_at(first_tile + tile) * num_steps + k_warp;
    return static_cast<uint32_t>(index) * kBitStepBytes + static_cast<uint32_t>(lane * 16);
  };
  const auto* const all_bits = static_cast<const uint8_t*>(matrix.tiles);
  uint8_t* staged_bits =
      shared + plan.bits + warp * (plan.staged_steps * kBitStepBytes) + lane * 16;

  auto* const sums = reinterpret_cast<uint32_t*>(shared);
  auto* const scales = reinterpret_cast<float2*>(shared + plan.scales);
  auto* const x = reinterpret_cast<float*>(shared + plan.x);
  const auto* const places = reinterpret_cast<const uint16_t*>(shared + plan.places);
  const auto* const groups = reinterpret_cast<const SketchGroup*>(shared + plan.groups);
  const auto stage = [&](const void* from, int num_bytes, uint8_t* to) {
#pragma unroll 1
    for (int offset = thread * 16; offset < num_bytes; offset += kThreads * 16) {
      CopyAsync16(to + offset, static_cast<const uint8_t*>(from) + offset);
    }
  };
  if constexpr (!Source::kInEntries) {
    stage(sketch.places, static_cast<int>(sketch.table_bytes()), shared + plan.places);
  }
  if (sketch.num_groups > 1) {
    stage(sketch.groups, static_cast<int>(sketch.group_bytes()), shared + plan.groups);
  }
  const auto state = source.template Begin<kThreads>(kTokens, shared + plan.staged);
  CommitCopies();
  // To where this lane reads them; the rest to the second-level cache.
  int turn = 0;
#pragma unroll 1
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    const uint8_t* bits = all_bits + bits_of(tile);
#pragma unroll 1
    for (int step = 0; step < steps_each; ++step) {
      if (turn < plan.staged_steps) {
        CopyAsync16(staged_bits + turn * kBitStepBytes, bits);
      } else if (lane % (kLineBytes / 16) == 0) {
        Prefetch(bits);
      }
      ++turn;
      bits += step_stride;
    }
  }
  CommitCopies();
#pragma unroll 1
  for (int i = thread; i < plan.rows_per_block * kTokens; i += kThreads) sums[i] = 0;
#pragma unroll 1
  for (int row = thread; row < plan.rows_per_block; row += kThreads) {
    if (block_row + row >= num_rows) continue;
    const int matrix_row = tile_at((block_row + row) / kTileRows) * kTileRows + row % kTileRows;
    scales[row] = {matrix.row_scales[matrix_row], BiasOf(matrix, matrix_row)};
  }
  // Of pairs of tiles, or of tiles.
  const int halves = plan.is_gated ? 2 : 1;
  const int block_outputs = plan.rows_per_block / halves;
  const int first_output = block_row / halves;
  const int num_outputs = num_rows / halves;
  auto* const output_places = reinterpret_cast<uint16_t*>(shared + plan.output_places);
  if (entry_places != nullptr) {
#pragma unroll 1
    for (int output = thread; output < block_outputs; output += kThreads) {
      if (first_output + output < num_outputs) {
        output_places[output] = entry_places[first_output + output];
      }
    }
  }
  WaitForCopies<1>();
  __syncthreads();  // the tables are there
  const auto plan_quads = [&] {
    if constexpr (kClusterBlocks > 1) {
      const ClusterQuads<kThreads, kClusterBlocks> quads(sketch, groups, ClusterRank());
      WaitForCluster();  // what others add to is there
      return quads;
    } else {
      struct {
        GroupCursor cursor;
        QuadPlan first;
      } quads = {GroupCursor(sketch, groups), {}};
      quads.first = quads.cursor.PlanQuad(FirstQuad<kThreads>({0, 1}));
      WorkOutNow(quads.first.first_entry);
      WorkOutNow(quads.first.num_columns);
      return quads;
    }
  };
  const auto quads = plan_quads();
  const PlaneExchange exchange;
  // The first token's planes of this lane, and sums of rows l / 4 and l / 4 + 8.
  int first_input = plan.planes + k_warp * kBitStepBytes + lane * PlaneExchange::kWordBytes;
  WorkOutNow(first_input);
  int first_sum = (group * plan.tiles_per_group * kTileRows + lane / 4) * kTokens;
  WorkOutNow(first_sum);
  WaitForKernelBefore();

#pragma unroll 1
  for (int token = 0; token < kTokens; ++token) {
    uint8_t* const row = shared + plan.planes + token * plan.plane_bytes;
    if constexpr (kClusterBlocks > 1) {
      // Each block makes its run of positions and sends them to all.
      using Quads = std::decay_t<decltype(quads)>;
      const float* const entries = source.RowOf(token);
      float largest = 0.0f;
      QuadValues sums[Quads::kRounds];
      float weights[Quads::kRounds];
#pragma unroll
      for (int round = 0; round < Quads::kRounds; ++round) {
        const int first = quads.first + round * kThreads * kQuad;
        if (first < quads.end) {
          sums[round] =
              SumPlannedQuad(entries, sketch, groups, first, quads.plans[round], weights[round],
                             [&](float entry) { largest = fmaxf(largest, fabsf(entry)); });
        }
      }
      largest = WarpMaxMagnitude(largest);
      const uint32_t block_total = SharedAddress(&totals[token]);
      const uint32_t has_largest = SharedAddress(&barriers[token].has_largest);
      const uint32_t is_complete = SharedAddress(&barriers[token].is_complete);
      // A lane for each block.
      if (lane < kClusterBlocks) {
        RaiseInCluster(AddressInCluster(block_total + offsetof(BlockTotal, largest_bits), lane),
                       __float_as_uint(largest), AddressInCluster(has_largest, lane));
      }
      WaitForPhase(has_largest, 0);
      const PlaneScale scale =
          ScaleToPlanes(__uint_as_float(totals[token].largest_bits) * sketch.max_gain);
      int total = 0;
      bool is_finite = true;
#pragma unroll
      for (int round = 0; round < Quads::kRounds; ++round) {
        const int first = quads.first + round * kThreads * kQuad;
        if (first >= quads.end) break;
        uint32_t integers[kQuad];
        ToIntegers(sums[round], weights[round] * scale.factor, integers, total, is_finite);
        const PlaneExchange::Words words = exchange.Trade(integers);
        const uint32_t address = SharedAddress(row + exchange.OffsetOf(first));
#pragma unroll
        for (int rank = 0; rank < kClusterBlocks; ++rank) {
          const uint32_t in_cluster = AddressInCluster(address, rank);
          const uint32_t barrier = AddressInCluster(is_complete, rank);
          StoreInCluster(in_cluster, words.lower, barrier);
          StoreInCluster(in_cluster + PlaneExchange::kUpperPlaneBytes, words.upper, barrier);
        }
      }
      total = WarpTotal(total, is_finite);
      if (lane < kClusterBlocks) {
        const uint32_t of_block = AddressInCluster(block_total, lane);
        const uint32_t barrier = AddressInCluster(is_complete, lane);
        if (total == kNotFinite) {
          RaiseInCluster(of_block + offsetof(BlockTotal, is_not_finite), 1, barrier);
        } else {
          AddInCluster(of_block + offsetof(BlockTotal, total), static_cast<uint32_t>(total),
                       barrier);
        }
      }
      if (thread == 0) totals[token].scale = scale.inverse;
      WaitForPhase(is_complete, 0);
    } else {
      const auto loaded =
          source.template Load<kThreads>(state, token, shared + plan.staged, x, places);
      if constexpr (Source::kHasGain) source.template GiveGain<kThreads>(loaded);
      const PlaneScale scale = ScaleToPlanes(loaded.maximum * sketch.max_gain);
      int total = 0;
      bool is_finite = true;
      SumBuckets<kThreads>(
          x, sketch, groups, {0, 1}, quads.cursor, quads.first,
          [&](int position, const QuadValues& quad, float weight) {
            uint32_t integers[kQuad];
            ToIntegers(quad, weight * scale.factor, integers, total, is_finite);
            const PlaneExchange::Words words = exchange.Trade(integers);
            uint8_t* const planes = row + exchange.OffsetOf(position);
            *reinterpret_cast<uint32_t*>(planes) = words.lower;
            *reinterpret_cast<uint32_t*>(planes + PlaneExchange::kUpperPlaneBytes) = words.upper;
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
        float gain = 1.0f;
        if constexpr (Source::kHasGain) gain = source.template TakeGain<kThreads>();
        totals[token].scale = gain * scale.inverse;
      }
    }
  }

  WaitForCopies<0>();
#pragma unroll 1
  for (int tile = 0; tile < plan.tiles_per_group; ++tile) {
    int counts[kTokens][2][4] = {};  // of planes 0 to 7 and of 8 to 15
    const auto multiply = [&](const uint4& bits, int step) {
      const uint8_t* inputs = shared + first_input + step * (num_k_warps * kBitStepBytes);
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        CountCommonBits(bits, PlaneExchange::Load(inputs), counts[token][0]);
        CountCommonBits(bits, PlaneExchange::Load(inputs + PlaneExchange::kUpperPlaneBytes),
                        counts[token][1]);
        inputs += plan.plane_bytes;
      }
    };
    const int num_staged = min(max(plan.staged_steps - tile * steps_each, 0), steps_each);
    int step = 0;
    // Chains of steps overlap.
#pragma unroll 4
    for (; step < num_staged; ++step) {
      multiply(*reinterpret_cast<const uint4*>(staged_bits + step * kBitStepBytes), step);
    }
#pragma unroll 1
    for (; step < steps_each; ++step) {
      const uint8_t* const left = all_bits + bits_of(tile) + step * step_stride;
      multiply(__ldcs(reinterpret_cast<const uint4*>(left)), step);
    }
    staged_bits += num_staged * kBitStepBytes;
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
    first_sum += kTileRows * kTokens;
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
        const int gate = output / kTileRows * (2 * kTileRows) + output % kTileRows;
        const float value = SwiGluValue(output_of(gate, token), output_of(gate + kTileRows, token));
        float* const y = arguments.y + token * num_outputs;
        if (entry_places != nullptr) {
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

// Blocks find room beside those of the products before and after: two to a multiprocessor, of which
// the launch takes one. Small blocks of one token have registers for three, which was measured to
// be quicker with small models.
template <typename Source, int kTokens>
__global__ void __launch_bounds__(Source::kWarps * 32, Source::kWarps <= 8 && kTokens == 1 ? 3 : 2)
    FusedProduct(const __grid_constant__ ProductArguments arguments,
                 const __grid_constant__ FusedPlan plan, const __grid_constant__ InputSketch sketch,
                 const __grid_constant__ Source source, const uint16_t* entry_places) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (Source::kClusterBlocks == 1)
#endif
  {
    MakeProduct<Source, kTokens>(arguments, plan, sketch, source, entry_places);
  }
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_FUSED_PRODUCT_CUH_
