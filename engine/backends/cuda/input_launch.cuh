// Launching kernels that produce packed inputs: one block a token, or several where tokens are few.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_INPUT_LAUNCH_CUH_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_INPUT_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "engine/codecs/cuda/input_transform.cuh"
#include "engine/codecs/cuda/launch.cuh"

namespace ultrasketch::cuda {

// Threads of a block, where one is not enough to hide what it waits for; with many tokens blocks of
// fewer threads do the same in fewer instructions.
inline constexpr int kInputThreads = 512;
inline constexpr int kWideInputThreads = 256;    // of rows of kWideColumns and more
inline constexpr int kNarrowInputThreads = 128;  // of shorter ones
inline constexpr int64_t kWideColumns = 4096;

__device__ inline InputSplit ThisInputSplit() {
  return {static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y)};
}

// Bytes of a token's input in shared memory. The transform's tables may follow.
US_HOST_DEVICE inline int64_t InputBytes(const InputTransform& transform) {
  return (transform.cols * int64_t{sizeof(float)} + 15) / 16 * 16;
}

__device__ inline uint8_t* StagedTables(float* x, const InputTransform& transform,
                                        bool has_tables) {
  return has_tables ? reinterpret_cast<uint8_t*>(x) + InputBytes(transform) : nullptr;
}

// Blocks that a token is split over: no more than find room at once, nor than have buckets for each
// thread.
inline int NumInputSplits(int64_t num_tokens, const InputTransform& transform, int num_sms) {
  const int64_t room = num_sms / std::max<int64_t>(num_tokens, 1);
  const int64_t useful = transform.num_k_tiles * kKTileColumns / (kQuad * kInputThreads);
  return static_cast<int>(std::max<int64_t>(1, std::min({int64_t{kMaxInputSplits}, room, useful})));
}

// Allows `kernel` more shared memory than every kernel may have.
template <typename Kernel>
cudaError_t AllowSharedMemory(Kernel kernel, int64_t num_bytes) {
  constexpr int64_t kAlwaysAllowed = 48 * 1024 - 1024;  // but for what kernels declare statically
  if (num_bytes <= kAlwaysAllowed) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(num_bytes));
}

// A kernel with shared memory for cols floats and, where they fit beside those of another block,
// the transform's tables; grid (tokens, splits).
template <typename Kernel, typename... Arguments>
cudaError_t LaunchInputKernelWith(Kernel kernel, int num_threads, int num_splits,
                                  int64_t num_tokens, const InputTransform& transform,
                                  cudaStream_t stream, const Arguments&... arguments) {
  constexpr int64_t kMaxStagedBytes = 96 * 1024;
  int64_t shared_bytes = InputBytes(transform);
  const int64_t staged_bytes = transform.table_bytes() + transform.group_bytes();
  const bool has_tables = shared_bytes + staged_bytes <= kMaxStagedBytes;
  if (has_tables) shared_bytes += staged_bytes;
  if (const cudaError_t error = AllowSharedMemory(kernel, shared_bytes); error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(num_tokens), static_cast<unsigned>(num_splits));
  return LaunchKernel(kernel, grid, num_threads, static_cast<size_t>(shared_bytes), stream,
                      arguments..., has_tables);
}

// `kernel_of(std::integral_constant<int, kThreads>())` is the kernel with blocks of kThreads
// threads. Its result does not depend on that.
template <typename KernelOf, typename... Arguments>
cudaError_t LaunchInputKernel(const KernelOf& kernel_of, int64_t num_tokens,
                              const InputTransform& transform, int num_sms, cudaStream_t stream,
                              const Arguments&... arguments) {
  const auto launch = [&](auto threads, int num_splits) {
    return LaunchInputKernelWith(kernel_of(threads), threads.value, num_splits, num_tokens,
                                 transform, stream, arguments...);
  };
  if (num_tokens <= 2 * num_sms) {
    return launch(std::integral_constant<int, kInputThreads>(),
                  NumInputSplits(num_tokens, transform, num_sms));
  }
  if (transform.cols >= kWideColumns) {
    return launch(std::integral_constant<int, kWideInputThreads>(), 1);
  }
  return launch(std::integral_constant<int, kNarrowInputThreads>(), 1);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_INPUT_LAUNCH_CUH_
