// Writing the outputs of a product by warpgroup instructions.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_OUTPUTS_CUH_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_OUTPUTS_CUH_

#include <cstdint>

#include "engine/codecs/absmaxmin/cuda/absmaxmin_product.cuh"

namespace ultrasketch::cuda {

// Writes the outputs of a warp's 16 rows by kTokens tokens. What they are scaled with is loaded
// before, all of it at once: with a load for each token, every one waited for by the stores of the
// token before, 64 tokens would take some 3 us.
template <int kTokens>
class OutputWriter {
 public:
  // The warp's first row and the first token.
  __device__ OutputWriter(const ProductArguments& arguments, int64_t first_row, int64_t first_token)
      : arguments_(arguments) {
    const PackedMatrix& matrix = arguments.matrix;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kTokenScales; ++i) {
      const int64_t token = first_token + i * 32 + lane;
      token_scales_[i] = token < arguments.num_tokens ? TokenScale(arguments, token) : 0.0f;
    }
    const int64_t lane_row = first_row + lane / 4;
    const int64_t lane_token = first_token + lane % 4 * 2;
    const auto num_tokens =
        static_cast<int>(min(arguments.num_tokens - lane_token, int64_t{kTokens}));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = lane_row + half * kHalfRows;
      row_scales_[half] = row < matrix.rows ? matrix.row_scales[row] : 0.0f;
      biases_[half] = row < matrix.rows ? BiasOf(matrix, row) : 0.0f;
      num_tokens_[half] = row < matrix.rows ? num_tokens : 0;
    }
    out_ = arguments.y + lane_token * matrix.rows + lane_row;
  }

  __device__ void Write(const float (&accumulators)[kTokens / 2]) const {
    // With a branch for each output, 256 tokens would take some 14,000 cycles.
    constexpr int kLastToken = kTokens - 7;  // for the first lane of a quad
    const bool is_whole = min(num_tokens_[0], num_tokens_[1]) > kLastToken;
    if (!__all_sync(0xffffffffu, is_whole)) {
      WriteWith(accumulators, [&](int token, int half, float* out, float value) {
        if (token < num_tokens_[half]) PutOutput(out, arguments_.accumulate, value);
      });
    } else if (arguments_.accumulate) {
      WriteWith(accumulators, [](int, int, float* out, float value) { AddOutput(out, value); });
    } else {
      // The compiler would not see that it is global memory.
      WriteWith(accumulators, [](int, int, float* out, float value) {
        asm volatile("st.global.f32 [%0], %1;" ::"l"(out), "f"(value) : "memory");
      });
    }
  }

 private:
  static constexpr int kTokenScales = (kTokens + 31) / 32;
  static constexpr int kHalfRows = 8;  // between a lane's two rows

  // Calls `put(token, half, out, value)` for each of the lane's outputs: of its row `half` and
  // `token`, counted from its first one.
  template <typename Put>
  __device__ void WriteWith(const float (&accumulators)[kTokens / 2], const Put& put) const {
    const int quad = static_cast<int>(threadIdx.x) % 4;
    const int64_t stride = arguments_.matrix.rows;
    float* out = out_;
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {
      const int token = i / 2 * 8 + i % 2;
      const float token_scale =
          __shfl_sync(0xffffffffu, token_scales_[token / 32], token % 32 + quad * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        put(token, half, out + half * kHalfRows,
            FinishAbsMaxMin(accumulators[i / 2 * 4 + half * 2 + i % 2], token_scale,
                            row_scales_[half], biases_[half]));
      }
      out += i % 2 == 0 ? stride : 7 * stride;
      // Keeps the compiler from working out all addresses before.
      asm volatile("" : "+l"(out));
    }
  }

  const ProductArguments& arguments_;
  float token_scales_[kTokenScales];
  float row_scales_[2];
  float biases_[2];
  int num_tokens_[2];  // of each of the lane's rows, from its first token on
  float* out_;         // of its first row and token
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_CUDA_ABSMAXMIN_OUTPUTS_CUH_
