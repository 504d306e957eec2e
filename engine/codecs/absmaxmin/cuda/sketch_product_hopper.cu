// Products with an AbsMaxMin sketch by wgmma.
//
//                            kTokens tokens
//   32, 64 or 128 rows  [ a warpgroup for each 64 rows ]   sums in registers
//
// Four to sixteen more warps fill a ring of buffers ahead of them, a step of 64 columns each: they
// decode the weights [64 columns][rows] from the rows' sketch, which stays in shared memory, and
// have the inputs [tokens][64 columns] copied. 32 rows are multiplied as 64, twice the same ones.
//
// 128 rows by 192 tokens: the tensor cores take 768 clocks for a step and read 85 bytes of shared
// memory a clock; decoding its 8,192 weights reads and writes 29 more and takes two fifths of the
// issue slots. Few tokens: decoding is all of the time, see sketch_decode.cuh, or with 32 rows the
// turns of the one warpgroup that multiplies, some 400 clocks each, which take two steps at once.
#include <algorithm>

#include "engine/codecs/absmaxmin/cuda/sketch_product.cuh"
#include "engine/codecs/absmaxmin/cuda/sketch_product_hopper.h"
#include "engine/codecs/cuda/warpgroup.cuh"

namespace ultrasketch::cuda {
namespace {

#if defined(US_BUILD_SM_90A)

constexpr int kMaxStages = 16;
constexpr int kHalves = kStepColumns / kHalfStep;
constexpr int kWarpgroupRows = 64;
// To begin at a multiple of 1024.
constexpr int kAlignment = 1024;
// What the barriers and the classes take besides.
constexpr int kStaticBytes = 2048;

template <int kRowBlocksOf, int kTokensOf>
struct HopperTile {
  static constexpr int kRowBlocks = kRowBlocksOf;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kRows = kRowBlocks * kSketchBlockRows;
  static constexpr int kWarpgroups = (kRows + kWarpgroupRows - 1) / kWarpgroupRows;
  // As many as the sums leave registers for: one warp issues an instruction every seven clocks.
  static constexpr int kFillWarps = kTokens == 256                     ? 4
                                    : kRowBlocks == 1                  ? 16
                                    : kRowBlocks == 2 && kTokens <= 64 ? 12
                                                                       : 8;
  static constexpr int kThreads = 128 * kWarpgroups + 32 * kFillWarps;
  static constexpr int kInputBytes = kTokens * kInputRowBytes;
  static constexpr int kStageBytes = kInputBytes + kRowBlocks * kWeightBlockBytes;

  // A warp decodes half of a step's columns for one row block or two; where that leaves warps,
  // several steps are filled at once.
  static constexpr int kFillersPerStep = std::min(kFillWarps, kHalves* kRowBlocks);
  static constexpr int kFillerBlocks = kHalves * kRowBlocks / kFillersPerStep;
  static constexpr int kStepsAtOnce = kFillWarps / kFillersPerStep;
  // Steps that a warpgroup multiplies at once: with few tokens, waiting and fencing takes longer.
  static constexpr int kBatch = kTokens <= 64 ? 2 : 1;
  // The steps of a batch are read while those of the one before are given back.
  static constexpr int kMinStages = std::max(kStepsAtOnce + 1, 2 * kBatch);

  // Two blocks to a multiprocessor where that leaves registers for the sums.
  static constexpr int kBlocks = kRowBlocks == 2 && kTokens <= 64 ? 2 : 1;

  static int64_t SharedBytes(const BucketTables& tables, int num_stages) {
    return kAlignment + kRowBlocks * tables.words_per_block * 4 +
           ColumnQueue::SharedBytes(kFillWarps, tables.entry_words) +
           int64_t{num_stages} * kStageBytes;
  }
  // Less than kMinStages: it does not fit. Where that many fit, a buffer is always filled by the
  // same warps.
  static int NumStages(const BucketTables& tables, int64_t max_shared_bytes, int blocks) {
    const int64_t left = max_shared_bytes / blocks - kStaticBytes - SharedBytes(tables, 0);
    const int fitting = static_cast<int>(std::clamp<int64_t>(left / kStageBytes, 0, kMaxStages));
    const int rounded = fitting / kStepsAtOnce * kStepsAtOnce;
    return rounded >= kMinStages ? rounded : fitting;
  }
  // Blocks that fit into a multiprocessor; 0: it does not fit.
  static int BlocksAtOnce(const BucketTables& tables, int64_t max_shared_bytes) {
    int blocks = kBlocks;
    while (blocks > 0 && NumStages(tables, max_shared_bytes, blocks) < kMinStages) --blocks;
    return blocks;
  }
};

// What all warps of a block share.
template <typename Tile>
struct Shared {
  SketchPart parts[kMaxSketchParts];
  SharedBarrier full[kMaxStages];
  SharedBarrier empty[kMaxStages];
};

template <typename Tile>
__device__ inline void FillStages(const ProductArguments& arguments, const CUtensorMap& inputs,
                                  int num_stages, uint8_t* stages, const uint32_t* words,
                                  uint8_t* ring_of_columns, Shared<Tile>& shared) {
  const PackedMatrix& matrix = arguments.matrix;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int fill_warp = static_cast<int>(threadIdx.x) / 32 - Tile::kWarpgroups * 4;
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  const auto num_steps = static_cast<int>(matrix.num_steps);
  const int filler = fill_warp % Tile::kFillersPerStep;
  const int first_step = fill_warp / Tile::kFillersPerStep;
  const int column = filler % kHalves * kHalfStep + lane;
  const int block = filler / kHalves * Tile::kFillerBlocks;
  const bool copies_inputs = filler == 0 && lane == 0;
  const auto first_token = static_cast<int>(blockIdx.y * Tile::kTokens);
  const uint32_t* block_words = words + block * words_per_block;
  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  Ring ring(num_stages);
  ring.Advance(first_step);
  ColumnQueue columns(matrix.buckets, num_steps, ring_of_columns, fill_warp, lane, column,
                      first_step, Tile::kStepsAtOnce);
  const auto begin_step = [&](int step) {
    WaitForPhase(empty[ring.slot()], ring.parity() ^ 1);
    uint8_t* stage = stages + ring.slot() * Tile::kStageBytes;
    // Those of the first steps are copied by a warp that multiplies.
    if (copies_inputs && step >= num_stages) {
      CopyBox(inputs, step * kStepColumns, first_token, Tile::kInputBytes, stage,
              full[ring.slot()]);
    }
    return stage + Tile::kInputBytes + block * kWeightBlockBytes;
  };
  const auto end_step = [&] {
    __syncwarp();
    if (lane == 0) Arrive(full[ring.slot()]);
    ring.Advance(Tile::kStepsAtOnce);
  };
  DecodeSteps<Tile::kFillerBlocks>(shared.parts, matrix.buckets.num_parts, block_words,
                                   words_per_block, column, first_step, Tile::kStepsAtOnce, columns,
                                   begin_step, end_step);
}

template <typename Tile>
__device__ inline void MultiplyStages(const ProductArguments& arguments, int num_stages,
                                      uint8_t* stages, Shared<Tile>& shared) {
  const PackedMatrix& matrix = arguments.matrix;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Lets the compiler know that it is the same for all lanes.
  const int warpgroup = __shfl_sync(0xffffffffu, warp / 4, 0);
  const auto num_steps = static_cast<int>(matrix.num_steps);
  // Between the first 32 rows and the other 32.
  constexpr uint32_t kBlockDistance = Tile::kRowBlocks == 1 ? 0 : kWeightBlockBytes;
  constexpr int kWarpgroupBytes = kWarpgroupRows / kSketchBlockRows * kWeightBlockBytes;
  const uint32_t first_stage = SharedAddress(stages);
  // Units of eight columns by 32 rows, and of eight tokens by 64 columns. Further on in shared
  // memory it is the descriptor plus the distance in units of 16 bytes.
  const uint64_t first_weights =
      OperandDescriptor(first_stage + Tile::kInputBytes + warpgroup * kWarpgroupBytes,
                        kBlockDistance, 8 * kSketchBlockRows * 2, OperandSwizzle::k64Bytes);
  const uint64_t first_inputs =
      OperandDescriptor(first_stage, 0, 8 * kInputRowBytes, OperandSwizzle::k128Bytes);
  const BarrierArray full(shared.full);
  const BarrierArray empty(shared.empty);
  float sums[Tile::kTokens / 2];
#pragma unroll
  for (int i = 0; i < Tile::kTokens / 2; ++i) sums[i] = 0.0f;
  Ring ring(num_stages);
  Ring given_back(num_stages);
  int num_held = 0;
  const auto multiply = [&]<int kSteps>() {
    int slots[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      WaitForPhase(full[ring.slot()], ring.parity());
      slots[i] = ring.slot();
      ring.Advance();
    }
    // Here rather than where weights are written: it would wait for the columns that those warps
    // have asked for.
    FenceForWarpgroups();
    FenceWarpgroup();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint64_t stage = static_cast<uint32_t>(slots[i] * (Tile::kStageBytes / 16));
#pragma unroll
      for (int column = 0; column < kStepColumns; column += 16) {
        WarpgroupMultiply(first_weights + stage + column * kSketchBlockRows * 2 / 16,
                          first_inputs + stage + column * 2 / 16, sums);
      }
    }
    CommitWarpgroup();
    WaitForWarpgroup<1>();
    // Of the batch before.
    for (; num_held > 0; --num_held) {
      if (lane == 0) Arrive(empty[given_back.slot()]);
      given_back.Advance();
    }
    num_held = kSteps;
  };
  int step = 0;
  for (; step + Tile::kBatch <= num_steps; step += Tile::kBatch) {
    multiply.template operator()<Tile::kBatch>();
  }
  if constexpr (Tile::kBatch > 1) {
    for (; step < num_steps; ++step) multiply.template operator()<1>();
  }
  WaitForWarpgroup<0>();
  FenceSums(sums);

  const int tile_row = warpgroup * kWarpgroupRows + warp % 4 * 16 + lane / 4;
  if (tile_row >= Tile::kRows) return;
  const int64_t first_row = int64_t{blockIdx.x} * Tile::kRows + tile_row;
  float row_scales[2];
  float biases[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first_row + half * 8;
    row_scales[half] = row < matrix.rows ? matrix.row_scales[row] : 0.0f;
    biases[half] = row < matrix.rows ? BiasOf(matrix, row) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < Tile::kTokens / 4; ++i) {
    const int64_t token = int64_t{blockIdx.y} * Tile::kTokens + i / 2 * 8 + lane % 4 * 2 + i % 2;
    if (token >= arguments.num_tokens) continue;
    const float token_scale = TokenScale(arguments, token);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + half * 8;
      if (row >= matrix.rows) continue;
      WriteOutput(arguments, token, row, sums[i / 2 * 4 + half * 2 + i % 2], token_scale,
                  row_scales[half], biases[half]);
    }
  }
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    HopperProduct(const __grid_constant__ ProductArguments arguments,
                  const __grid_constant__ CUtensorMap inputs, int num_stages) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ Shared<Tile> shared;
  uint8_t* stages =
      dynamic_shared + (kAlignment - SharedAddress(dynamic_shared) % kAlignment) % kAlignment;
  auto* words = reinterpret_cast<uint32_t*>(stages + num_stages * Tile::kStageBytes);
  auto* ring_of_columns = reinterpret_cast<uint8_t*>(
      words + Tile::kRowBlocks * arguments.matrix.buckets.words_per_block);
  AllowNextKernel();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int slot = 0; slot < num_stages; ++slot) {
      InitBarrier(SharedAddress(&shared.full[slot]), Tile::kFillersPerStep + 1);
      InitBarrier(SharedAddress(&shared.empty[slot]), Tile::kWarpgroups * 4);
    }
  }
  constexpr int kPartWords = sizeof(SketchPart) / 4;
  for (int i = thread; i < matrix.buckets.num_parts * kPartWords; i += Tile::kThreads) {
    reinterpret_cast<int32_t*>(shared.parts)[i] =
        static_cast<const int32_t*>(matrix.buckets.parts)[i];
  }
  CopySketch(matrix, int64_t{blockIdx.x} * Tile::kRowBlocks, Tile::kRowBlocks, thread,
             Tile::kThreads, words);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();

  if (thread >= Tile::kWarpgroups * 128) {
    FillStages<Tile>(arguments, inputs, num_stages, stages, words, ring_of_columns, shared);
  } else {
    // The first weights are decoded while the kernel that writes the inputs ends.
    WaitForKernelBefore();
    if (thread == 0) {
      const BarrierArray full(shared.full);
      const int num_copies = min(num_stages, static_cast<int>(matrix.num_steps));
      for (int step = 0; step < num_copies; ++step) {
        CopyBox(inputs, step * kStepColumns, static_cast<int>(blockIdx.y) * Tile::kTokens,
                Tile::kInputBytes, stages + step * Tile::kStageBytes, full[step]);
      }
    }
    __syncwarp();
    MultiplyStages<Tile>(arguments, num_stages, stages, shared);
  }
#endif
}

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// The driver's, which is not linked.
EncodeFunction FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeFunction>(function);
}

// Boxes of `num_tokens` prepared inputs by 64 columns; rows past the last token are zero.
cudaError_t DescribeInputs(const ProductArguments& arguments, int num_tokens, CUtensorMap* map) {
  static const EncodeFunction encode = FindEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  const int64_t num_steps = arguments.matrix.num_steps;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(num_steps * kStepColumns),
                                static_cast<cuuint64_t>(arguments.num_tokens)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(PreparedRowBytes(num_steps))};
  const cuuint32_t box[] = {kStepColumns, static_cast<cuuint32_t>(num_tokens)};
  const cuuint32_t element_strides[] = {1, 1};
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(arguments.prepared), extents,
      strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Tile>
cudaError_t Launch(const ProductArguments& arguments, int max_shared_bytes, cudaStream_t stream) {
  const BucketTables& tables = arguments.matrix.buckets;
  const int num_stages =
      Tile::NumStages(tables, max_shared_bytes, Tile::BlocksAtOnce(tables, max_shared_bytes));
  const auto shared_bytes = static_cast<int>(Tile::SharedBytes(tables, num_stages));
  cudaError_t error = cudaFuncSetAttribute(
      HopperProduct<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  CUtensorMap inputs;
  error = DescribeInputs(arguments, Tile::kTokens, &inputs);
  if (error != cudaSuccess) return error;
  const dim3 grid(
      static_cast<unsigned>((arguments.matrix.rows + Tile::kRows - 1) / Tile::kRows),
      static_cast<unsigned>((arguments.num_tokens + Tile::kTokens - 1) / Tile::kTokens));
  return LaunchKernel(HopperProduct<Tile>, grid, Tile::kThreads, static_cast<size_t>(shared_bytes),
                      stream, arguments, inputs, num_stages);
}

// Clocks that a multiprocessor needs for a step of all the tiles that it gets, about.
template <typename Tile>
int64_t Cost(const ProductArguments& arguments, int max_shared_bytes) {
  const int64_t blocks = Tile::BlocksAtOnce(arguments.matrix.buckets, max_shared_bytes);
  if (blocks == 0) return INT64_MAX;
  const int64_t tiles = (arguments.matrix.rows + Tile::kRows - 1) / Tile::kRows *
                        ((arguments.num_tokens + Tile::kTokens - 1) / Tile::kTokens);
  const int64_t blocks_at_once = arguments.num_multiprocessors * blocks;
  const int64_t rounds = (tiles + blocks_at_once - 1) / blocks_at_once;
  constexpr int64_t kUnitClocks = 1000;  // for half a step's columns and 32 rows, by one warp
  constexpr int64_t kDecodeClocks = kUnitClocks * kHalves * Tile::kRowBlocks / Tile::kFillWarps;
  // A warpgroup's wait, fence and first instruction, between steps or pairs of them.
  constexpr int64_t kTurnClocks = 400 / Tile::kBatch;
  const int64_t multiply_clocks =
      Tile::kWarpgroups * std::max<int64_t>(Tile::kTokens * 2, 128) * blocks * 9 / 8;
  return rounds * std::max({kDecodeClocks, kTurnClocks, multiply_clocks});
}

struct Choice {
  int64_t cost = INT64_MAX;
  cudaError_t (*launch)(const ProductArguments&, int, cudaStream_t) = nullptr;
};

template <typename Tile>
void Consider(const ProductArguments& arguments, int max_shared_bytes, Choice& choice) {
  const int64_t cost = Cost<Tile>(arguments, max_shared_bytes);
  if (cost < choice.cost) choice = {cost, Launch<Tile>};
}

Choice ChooseTile(const ProductArguments& arguments, int max_shared_bytes) {
  Choice choice;
  const auto consider = [&]<int kTokens>() {
    Consider<HopperTile<2, kTokens>>(arguments, max_shared_bytes, choice);
    Consider<HopperTile<1, kTokens>>(arguments, max_shared_bytes, choice);
  };
  if (arguments.num_tokens <= 8) {
    consider.template operator()<8>();
  } else if (arguments.num_tokens <= 16) {
    consider.template operator()<16>();
  } else if (arguments.num_tokens <= 32) {
    consider.template operator()<32>();
  } else if (arguments.num_tokens <= 64) {
    consider.template operator()<64>();
  } else {
    Consider<HopperTile<4, 256>>(arguments, max_shared_bytes, choice);
    Consider<HopperTile<4, 192>>(arguments, max_shared_bytes, choice);
    Consider<HopperTile<4, 128>>(arguments, max_shared_bytes, choice);
    Consider<HopperTile<2, 128>>(arguments, max_shared_bytes, choice);
    Consider<HopperTile<1, 64>>(arguments, max_shared_bytes, choice);
  }
  return choice;
}

#endif

}  // namespace

bool FitsHopperProduct([[maybe_unused]] const ProductArguments& arguments,
                       [[maybe_unused]] int compute_capability,
                       [[maybe_unused]] int max_shared_bytes) {
#if defined(US_BUILD_SM_90A)
  return compute_capability == 90 && ChooseTile(arguments, max_shared_bytes).launch != nullptr;
#else
  return false;
#endif
}

cudaError_t LaunchHopperProduct([[maybe_unused]] const ProductArguments& arguments,
                                [[maybe_unused]] int max_shared_bytes,
                                [[maybe_unused]] cudaStream_t stream) {
#if defined(US_BUILD_SM_90A)
  return ChooseTile(arguments, max_shared_bytes).launch(arguments, max_shared_bytes, stream);
#else
  return cudaErrorNotSupported;
#endif
}

}  // namespace ultrasketch::cuda
