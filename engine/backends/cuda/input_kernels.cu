// Kernels that produce the inputs of linear sites.
//
// A block holds one token's input in shared memory and packs it there. Bound by latency: one
// pass over the row, one reduction, one pass over the buckets.
#include <algorithm>

#include "engine/backends/cuda/input_launch.cuh"
#include "engine/backends/cuda/input_rows.cuh"
#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/input_transform.cuh"

namespace ultrasketch::cuda {
namespace {

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    RmsNorm(const float* hidden, const int32_t* rows, const float* weight, float epsilon,
            const __grid_constant__ InputTransform input_transform, uint8_t* packed_input,
            bool has_tables) {
  extern __shared__ __align__(16) float x[];
  LaunchDependents();
  const InputTransform transform = LoadTransformTables<kThreads>(
      input_transform, StagedTables(x, input_transform, has_tables), ThisInputSplit());
  if (blockIdx.x == 0) {
    PrefetchRange(weight, transform.cols * int64_t{sizeof(float)}, static_cast<int>(threadIdx.x),
                  kThreads);
  }
  AwaitTables();
  WaitForGridDependency();
  const int64_t index = blockIdx.x;
  const RowRange row = LoadNormalized<kThreads>(
      hidden + (rows != nullptr ? rows[index] : index) * transform.cols, weight,
      static_cast<int>(transform.cols), epsilon, TransformedRow(x, transform));
  WritePackedInput<kThreads>(x, row.inverse_rms, row.absmax, transform, ThisInputSplit(),
                             packed_input + index * PackedInputBytes(transform.num_k_tiles));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    SwiGlu(const float* gate_up, const __grid_constant__ InputTransform input_transform,
           uint8_t* packed_input, bool has_tables) {
  extern __shared__ __align__(16) float x[];
  LaunchDependents();
  const InputTransform transform = LoadTransformTables<kThreads>(
      input_transform, StagedTables(x, input_transform, has_tables), ThisInputSplit());
  AwaitTables();
  WaitForGridDependency();
  const int64_t token = blockIdx.x;
  const float* gate = gate_up + token * 2 * transform.cols;
  const RowRange row = LoadSwiGlu<kThreads>(
      gate, gate + transform.cols, static_cast<int>(transform.cols), TransformedRow(x, transform));
  WritePackedInput<kThreads>(x, row.inverse_rms, row.absmax, transform, ThisInputSplit(),
                             packed_input + token * PackedInputBytes(transform.num_k_tiles));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    Transform(const float* rows, bool is_permuted,
              const __grid_constant__ InputTransform input_transform, uint8_t* packed_input,
              bool has_tables) {
  extern __shared__ __align__(16) float x[];
  LaunchDependents();
  const InputTransform transform = LoadTransformTables<kThreads>(
      input_transform, StagedTables(x, input_transform, has_tables), ThisInputSplit());
  AwaitTables();
  WaitForGridDependency();
  const int64_t token = blockIdx.x;
  TransformedRow transformed(x, transform);
  if (is_permuted) transformed.scatter_indices = nullptr;
  const RowRange row = LoadRow<kThreads>(rows + token * transform.cols,
                                         static_cast<int>(transform.cols), transformed);
  WritePackedInput<kThreads>(x, row.inverse_rms, row.absmax, transform, ThisInputSplit(),
                             packed_input + token * PackedInputBytes(transform.num_k_tiles));
}

}  // namespace

int64_t MaxInputColumns(int max_shared_bytes) {
  constexpr int kReductionBytes = 1024;
  return (max_shared_bytes - kReductionBytes) / int64_t{sizeof(float)};
}

cudaError_t LaunchRmsNorm(const float* hidden, const int32_t* rows, int64_t num_rows,
                          const float* weight, float epsilon, const InputTransform& transform,
                          int num_sms, void* packed_input, cudaStream_t stream) {
  return LaunchInputKernel([](auto threads) { return RmsNorm<threads.value>; }, num_rows, transform,
                           num_sms, stream, hidden, rows, weight, epsilon, transform,
                           static_cast<uint8_t*>(packed_input));
}

cudaError_t LaunchSwiGlu(const float* gate_up, int64_t num_tokens, const InputTransform& transform,
                         int num_sms, void* packed_input, cudaStream_t stream) {
  return LaunchInputKernel([](auto threads) { return SwiGlu<threads.value>; }, num_tokens,
                           transform, num_sms, stream, gate_up, transform,
                           static_cast<uint8_t*>(packed_input));
}

cudaError_t LaunchTransform(const float* rows, bool is_permuted, int64_t num_tokens,
                            const InputTransform& transform, int num_sms, void* packed_input,
                            cudaStream_t stream) {
  return LaunchInputKernel([](auto threads) { return Transform<threads.value>; }, num_tokens,
                           transform, num_sms, stream, rows, is_permuted, transform,
                           static_cast<uint8_t*>(packed_input));
}

}  // namespace ultrasketch::cuda
