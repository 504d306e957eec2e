// Products of sign bits with few tokens, whose blocks make the inputs themselves.
//
// With one token a kernel of its own for the inputs is mostly a launch, a round trip to the
// second-level cache for what the kernel before wrote, and another one for what it writes. Each
// block of the product makes the whole input anew instead: as many blocks as there are compute the
// same, none waits for another, and a kernel's latency less is paid.
#include <algorithm>

#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/producer_launch.cuh"
#include "engine/backends/cuda/producer_rows.cuh"
#include "engine/codecs/cuda/sketch.cuh"
#include "engine/codecs/fold/cuda/bit_product_few.cuh"

namespace ultrasketch::cuda {
namespace {

// Memory of a block: x, the sketch's tables, prepared rows.
template <typename Source>
struct InputsInBlock {
  static constexpr bool kInBlock = true;
  static constexpr int kWarps = Source::kWarps;
  static constexpr int kThreads = kWarps * 32;

  Source source;
  InputSketch sketch;
  uint8_t* prepared;  // in device memory, for others

  __host__ __device__ int64_t RowsOffset() const {
    return InputBytes(sketch.cols) + sketch.table_bytes() + sketch.group_bytes();
  }
  int64_t SharedBytes(int64_t num_tokens) const {
    return RowsOffset() + num_tokens * PreparedRowBytes(sketch.num_steps);
  }

  __device__ InputSketch Begin(uint8_t* memory) const {
    source.template Prefetch<kThreads>(sketch.cols);
    return StageSketch<kThreads>(sketch, memory + InputBytes(sketch.cols), {0, 1});
  }

  __device__ const uint8_t* Prepare(const InputSketch& staged, int num_tokens,
                                    uint8_t* memory) const {
    auto* const x = reinterpret_cast<float*>(memory);
    uint8_t* const rows = memory + RowsOffset();
    const int row_bytes = static_cast<int>(PreparedRowBytes(sketch.num_steps));
#pragma unroll 1
    for (int token = 0; token < num_tokens; ++token) {
      const RowRange range =
          source.template Load<kThreads>(token, static_cast<int>(sketch.cols), x);
      WriteBytePlanes<kThreads, TableWidth::kNarrow>(x, range.gain, range.maximum, staged, {0, 1},
                                                     rows + token * row_bytes);
    }
    __syncthreads();
    if (blockIdx.x == 0) {
#pragma unroll 1
      for (int offset = static_cast<int>(threadIdx.x) * 16; offset < num_tokens * row_bytes;
           offset += kThreads * 16) {
        *reinterpret_cast<uint4*>(prepared + offset) =
            *reinterpret_cast<const uint4*>(rows + offset);
      }
    }
    return rows;
  }
};

struct Normalized {
  static constexpr int kWarps = 8;
  const float* hidden;
  const float* weight;
  float epsilon;

  template <int kThreads>
  __device__ void Prefetch(int64_t cols) const {
    if (blockIdx.x > 0) return;
    PrefetchRange(weight, cols * int64_t{sizeof(float)}, static_cast<int>(threadIdx.x), kThreads);
  }
  template <int kThreads>
  __device__ RowRange Load(int token, int cols, float* x) const {
    return LoadNormalized<kThreads>(hidden + int64_t{token} * cols, weight, cols, epsilon, x);
  }
};

struct Attended {
  static constexpr int kWarps = 8;
  AttentionArguments arguments;
  const AttentionToken* tokens;

  template <int kThreads>
  __device__ void Prefetch(int64_t /*cols*/) const {}
  template <int kThreads>
  __device__ RowRange Load(int token, int cols, float* x) const {
    return LoadAttention<kThreads>(arguments, tokens[token],
                                   arguments.attended + int64_t{token} * cols, x);
  }
};

struct Rows {
  // The longest rows, of up to four times as many columns as others.
  static constexpr int kWarps = 16;
  const float* rows;

  template <int kThreads>
  __device__ void Prefetch(int64_t /*cols*/) const {}
  template <int kThreads>
  __device__ RowRange Load(int token, int cols, float* x) const {
    return LoadRow<kThreads>(rows + int64_t{token} * cols, cols, x);
  }
};

template <typename Source>
cudaError_t Launch(const ProductArguments& arguments, bool is_gated, const FusedInput& input,
                   const Source& source, cudaStream_t stream) {
  return LaunchBitProductTile(
      arguments, is_gated,
      InputsInBlock<Source>{source, input.sketch, static_cast<uint8_t*>(input.prepared)}, stream);
}

}  // namespace

bool CanFuseProduct(const PackedMatrix& matrix, const InputSketch& sketch, int64_t num_tokens,
                    int64_t max_shared_bytes) {
  if (num_tokens > kMostFusedTokens || sketch.form != PreparedForm::kBytePlanes ||
      sketch.num_groups == 0 || sketch.column_bytes != 2) {
    return false;
  }
  const InputsInBlock<Rows> inputs = {{}, sketch, nullptr};
  // The shape of most sums, two row tiles for each group of warps.
  constexpr int kWarps = decltype(inputs)::kWarps;
  const FewPlan plan = {kWarps, DivideSteps(matrix, kWarps).num_k_warps, 2, false};
  return inputs.SharedBytes(num_tokens) + FewShape<1, 4>::SharedBytes(plan) <=
         std::min(kMostFewSharedBytes, max_shared_bytes - kStaticFewBytes);
}

cudaError_t LaunchFusedProduct(const ProductArguments& arguments, bool is_gated,
                               const FusedInput& input, cudaStream_t stream) {
  switch (input.kind) {
    case FusedInput::Kind::kNormalized:
      return Launch(arguments, is_gated, input, Normalized{input.rows, input.weight, input.epsilon},
                    stream);
    case FusedInput::Kind::kAttended:
      return Launch(arguments, is_gated, input, Attended{input.attention, input.attention_tokens},
                    stream);
    case FusedInput::Kind::kRows:
      return Launch(arguments, is_gated, input, Rows{input.rows}, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ultrasketch::cuda
