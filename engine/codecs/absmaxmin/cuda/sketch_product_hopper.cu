// Products with an AbsMaxMin sketch by wgmma, for many tokens.
//
//                       kTokens tokens
//   64 or 128 rows  [ a warpgroup for each 64 rows ]   sums in registers
//
// Four more warps fill a ring of buffers ahead of them, a step of 64 columns each: they copy the
// inputs [tokens][64 columns] and decode the weights [64 columns][rows] from the rows' sketch,
// which stays in shared memory.
//
// 128 rows by 256 tokens: the tensor cores take 1,024 clocks for a step and read 80 bytes of shared
// memory a clock; decoding its 8,192 weights takes 240 clocks of logic operations in each of the
// four decoding warps, beside them. 2,048 tokens decode every weight eight times.
#include <algorithm>

#include "engine/codecs/absmaxmin/cuda/sketch_product.cuh"
#include "engine/codecs/absmaxmin/cuda/sketch_product_hopper.h"
#include "engine/codecs/absmaxmin/cuda/warpgroup.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kFillWarps = 4;
constexpr int kMaxStages = 4;
constexpr int kWarpgroupRows = 64;
constexpr int kWarpgroupBlocks = kWarpgroupRows / kSketchBlockRows;
// To begin at a multiple of 1024.
constexpr int kAlignment = 1024;

template <int kRowBlocksOf, int kTokensOf>
struct HopperTile {
  static constexpr int kRowBlocks = kRowBlocksOf;
  static constexpr int kTokens = kTokensOf;
  static constexpr int kWarpgroups = kRowBlocks / kWarpgroupBlocks;
  static constexpr int kThreads = 128 * kWarpgroups + 32 * kFillWarps;
  static constexpr int kInputBytes = kTokens * kInputRowBytes;
  static constexpr int kStageBytes = kInputBytes + kRowBlocks * kWeightBlockBytes;

  // 0 or 1: it does not fit.
  static int NumStages(int64_t words_per_block, int64_t max_shared_bytes) {
    constexpr int kStaticBytes = 2048;
    const int64_t left =
        max_shared_bytes - kStaticBytes - kAlignment - kRowBlocks * words_per_block * 4;
    return static_cast<int>(std::clamp<int64_t>(left / kStageBytes, 0, kMaxStages));
  }
  static int64_t SharedBytes(int64_t words_per_block, int num_stages) {
    return kAlignment + kRowBlocks * words_per_block * 4 + int64_t{num_stages} * kStageBytes;
  }
};

#if defined(US_BUILD_SM_90A)

// A ring of `num_slots` buffers, used one after the other.
class Ring {
 public:
  __device__ explicit Ring(int num_slots) : num_slots_(num_slots) {}
  __device__ int slot() const { return slot_; }
  __device__ int parity() const { return parity_; }
  __device__ void Advance() {
    if (++slot_ == num_slots_) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  int num_slots_;
  int slot_ = 0;
  int parity_ = 0;
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    HopperProduct(const __grid_constant__ ProductArguments arguments, int num_stages) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t dynamic_shared[];
  __shared__ SketchPart parts[kMaxSketchParts];
  __shared__ SharedBarrier full[kMaxStages];
  __shared__ SharedBarrier empty[kMaxStages];
  uint8_t* shared =
      dynamic_shared + (kAlignment - SharedAddress(dynamic_shared) % kAlignment) % kAlignment;
  AllowNextKernel();

  const PackedMatrix& matrix = arguments.matrix;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const auto num_steps = static_cast<int>(matrix.num_steps);
  const auto words_per_block = static_cast<int>(matrix.buckets.words_per_block);
  const int64_t first_block = int64_t{blockIdx.x} * Tile::kRowBlocks;
  const int64_t first_token = int64_t{blockIdx.y} * Tile::kTokens;
  auto* words = reinterpret_cast<uint32_t*>(shared + num_stages * Tile::kStageBytes);

  if (thread == 0) {
    for (int slot = 0; slot < num_stages; ++slot) {
      InitBarrier(&full[slot], kFillWarps * 32);
      InitBarrier(&empty[slot], Tile::kWarpgroups * 4);
    }
  }
  constexpr int kPartWords = sizeof(SketchPart) / 4;
  for (int i = thread; i < matrix.buckets.num_parts * kPartWords; i += Tile::kThreads) {
    reinterpret_cast<int32_t*>(parts)[i] = static_cast<const int32_t*>(matrix.buckets.parts)[i];
  }
  CopySketch(matrix, first_block, Tile::kRowBlocks, thread, Tile::kThreads, words);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  WaitForKernelBefore();

  if (warp >= Tile::kWarpgroups * 4) {
    const int fill_thread = thread - Tile::kWarpgroups * 128;
    const int fill_warp = fill_thread / 32;
    // A warp decodes half of the columns for half of the row blocks.
    constexpr int kBlocks = Tile::kRowBlocks / 2;
    const int column = fill_warp % 2 * kHalfStep + lane;
    const int block = fill_warp / 2 * kBlocks;
    // A step's inputs arrive while the next one is decoded, if there is a third buffer for it.
    const bool is_late = num_stages > 2;
    PartCursor loaded(parts);
    PartCursor decoded(parts);
    ColumnBuckets next = LoadColumnBuckets(matrix.buckets.entries, loaded.At(0), 0, column);
    Ring ring(num_stages);
    int previous_slot = 0;
    for (int step = 0; step < num_steps; ++step) {
      const ColumnBuckets current = next;
      if (step + 1 < num_steps) {
        next = LoadColumnBuckets(matrix.buckets.entries, loaded.At(step + 1), step + 1, column);
      }
      WaitForPhase(&empty[ring.slot()], ring.parity() ^ 1);
      uint8_t* stage = shared + ring.slot() * Tile::kStageBytes;
      CopyInputs<Tile::kTokens>(arguments, first_token, step, fill_thread, kFillWarps * 32, stage);
      CommitCopies();
      DecodeStepColumn<kBlocks>(words + block * words_per_block, words_per_block, decoded.At(step),
                                current, step, column,
                                stage + Tile::kInputBytes + block * kWeightBlockBytes);
      if (is_late) {
        if (step > 0) {
          WaitForCopies<1>();
          FenceForWarpgroups();
          Arrive(&full[previous_slot]);
        }
      } else {
        WaitForCopies<0>();
        FenceForWarpgroups();
        Arrive(&full[ring.slot()]);
      }
      previous_slot = ring.slot();
      ring.Advance();
    }
    if (is_late) {
      WaitForCopies<0>();
      FenceForWarpgroups();
      Arrive(&full[previous_slot]);
    }
    return;
  }

  const int warpgroup = warp / 4;
  const uint32_t first_stage = SharedAddress(shared);
  float sums[Tile::kTokens / 2];
#pragma unroll
  for (int i = 0; i < Tile::kTokens / 2; ++i) sums[i] = 0.0f;
  Ring ring(num_stages);
  int previous_slot = 0;
  for (int step = 0; step < num_steps; ++step) {
    WaitForPhase(&full[ring.slot()], ring.parity());
    const uint32_t inputs = first_stage + ring.slot() * Tile::kStageBytes;
    const uint32_t weights =
        inputs + Tile::kInputBytes + warpgroup * kWarpgroupBlocks * kWeightBlockBytes;
    FenceWarpgroup();
#pragma unroll
    for (int column = 0; column < kStepColumns; column += 16) {
      // Units of eight columns by 32 rows, and of eight tokens by 64 columns.
      WarpgroupMultiply(
          OperandDescriptor(weights + column * kSketchBlockRows * 2, kWeightBlockBytes,
                            8 * kSketchBlockRows * 2, OperandSwizzle::k64Bytes),
          OperandDescriptor(inputs + column * 2, 0, 8 * kInputRowBytes, OperandSwizzle::k128Bytes),
          sums);
    }
    CommitWarpgroup();
    WaitForWarpgroup<1>();
    if (step > 0 && lane == 0) Arrive(&empty[previous_slot]);
    previous_slot = ring.slot();
    ring.Advance();
  }
  WaitForWarpgroup<0>();
  FenceSums(sums);

  const int64_t first_row =
      first_block * kSketchBlockRows + warpgroup * kWarpgroupRows + warp % 4 * 16 + lane / 4;
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
    const int64_t token = first_token + i / 2 * 8 + lane % 4 * 2 + i % 2;
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
#endif
}

template <typename Tile>
cudaError_t Launch(const ProductArguments& arguments, int max_shared_bytes, cudaStream_t stream) {
  const int64_t words_per_block = arguments.matrix.buckets.words_per_block;
  const int num_stages = Tile::NumStages(words_per_block, max_shared_bytes);
  const auto shared_bytes = static_cast<int>(Tile::SharedBytes(words_per_block, num_stages));
  const cudaError_t error = cudaFuncSetAttribute(
      HopperProduct<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  constexpr int kRows = Tile::kRowBlocks * kSketchBlockRows;
  const dim3 grid(
      static_cast<unsigned>((arguments.matrix.rows + kRows - 1) / kRows),
      static_cast<unsigned>((arguments.num_tokens + Tile::kTokens - 1) / Tile::kTokens));
  return LaunchKernel(HopperProduct<Tile>, grid, Tile::kThreads, static_cast<size_t>(shared_bytes),
                      stream, arguments, num_stages);
}

#endif

using Large = HopperTile<4, 256>;
using Medium = HopperTile<4, 128>;
using Small = HopperTile<2, 128>;

template <typename Tile>
bool Fits(const ProductArguments& arguments, int max_shared_bytes) {
  return Tile::NumStages(arguments.matrix.buckets.words_per_block, max_shared_bytes) >= 2;
}

// Clocks of a step, measured or estimated, times how many tiles a multiprocessor gets.
template <typename Tile>
int64_t Cost(const ProductArguments& arguments, int max_shared_bytes, int64_t clocks) {
  if (!Fits<Tile>(arguments, max_shared_bytes)) return INT64_MAX;
  constexpr int kRows = Tile::kRowBlocks * kSketchBlockRows;
  const int64_t tiles = (arguments.matrix.rows + kRows - 1) / kRows *
                        ((arguments.num_tokens + Tile::kTokens - 1) / Tile::kTokens);
  const int64_t rounds =
      (tiles + arguments.num_multiprocessors - 1) / arguments.num_multiprocessors;
  return rounds * clocks;
}

}  // namespace

bool FitsHopperProduct([[maybe_unused]] const ProductArguments& arguments,
                       [[maybe_unused]] int compute_capability,
                       [[maybe_unused]] int max_shared_bytes) {
#if defined(US_BUILD_SM_90A)
  return compute_capability == 90 && Fits<Small>(arguments, max_shared_bytes);
#else
  return false;
#endif
}

cudaError_t LaunchHopperProduct([[maybe_unused]] const ProductArguments& arguments,
                                [[maybe_unused]] int max_shared_bytes,
                                [[maybe_unused]] cudaStream_t stream) {
#if defined(US_BUILD_SM_90A)
  const int64_t large = Cost<Large>(arguments, max_shared_bytes, 1250);
  const int64_t medium = Cost<Medium>(arguments, max_shared_bytes, 800);
  const int64_t small = Cost<Small>(arguments, max_shared_bytes, 450);
  if (large <= medium && large <= small) return Launch<Large>(arguments, max_shared_bytes, stream);
  if (medium <= small) return Launch<Medium>(arguments, max_shared_bytes, stream);
  return Launch<Small>(arguments, max_shared_bytes, stream);
#else
  return cudaErrorNotSupported;
#endif
}

}  // namespace ultrasketch::cuda
