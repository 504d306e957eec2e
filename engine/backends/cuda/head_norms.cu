// One warp a head: bound by latency, then by memory.
#include "engine/backends/cuda/head_norms.h"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/launch.cuh"

namespace ultrasketch::cuda {
namespace {

constexpr int kWarps = 4;

// Grid: (tokens, groups of kWarps heads).
__global__ void __launch_bounds__(kWarps * 32)
    NormalizeHeads(const __grid_constant__ HeadNormArguments arguments) {
  LaunchDependents();
  WaitForGridDependency();
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int num_normed = arguments.num_heads + arguments.num_kv_heads;
  if (head >= num_normed) return;
  const int head_dim = arguments.head_dim;
  const int64_t width = (int64_t{num_normed} + arguments.num_kv_heads) * head_dim;
  float* const row = arguments.qkv + blockIdx.x * width + int64_t{head} * head_dim;
  const float* const weight =
      head < arguments.num_heads ? arguments.query_weight : arguments.key_weight;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float squares = 0.0f;
  for (int i = lane; i < head_dim; i += 32) squares = __fmaf_rn(row[i], row[i], squares);
  const float scale =
      rsqrtf(__fdividef(WarpSum(squares), static_cast<float>(head_dim)) + arguments.epsilon);
  for (int i = lane; i < head_dim; i += 32) row[i] = row[i] * scale * weight[i];
}

}  // namespace

cudaError_t LaunchNormalizeHeads(const HeadNormArguments& arguments, cudaStream_t stream) {
  const int num_normed = arguments.num_heads + arguments.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(arguments.num_tokens),
                  static_cast<unsigned>((num_normed + kWarps - 1) / kWarps));
  return LaunchKernel(NormalizeHeads, grid, kWarps * 32, /*shared_bytes=*/0, stream, arguments);
}

}  // namespace ultrasketch::cuda
