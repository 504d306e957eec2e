// Kernels that produce the inputs of linear sites, and the rows of the embedding.
//
// A block holds one token's input in shared memory and sketches it there. Bound by latency: one
// pass over the row, one reduction, one pass over the buckets.
#include <cuda_fp16.h>

#include <algorithm>

#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/producer_launch.cuh"
#include "engine/codecs/cuda/device_code.cuh"
#include "engine/codecs/cuda/sketch.cuh"

namespace ultrasketch::cuda {
namespace {

__global__ void __launch_bounds__(kProducerThreads)
    Embed(const __grid_constant__ PackedMatrix table, int64_t hidden_size, const TokenInput* tokens,
          float* hidden) {
  AllowNextKernel();
  WaitForKernelBefore();
  const int64_t token = blockIdx.x;
  const int64_t row = tokens[token].id;
  const auto* values = static_cast<const __half*>(table.tiles);
  const float scale = table.row_scales[row];
  for (int64_t i = threadIdx.x; i < hidden_size; i += kProducerThreads) {
    hidden[token * hidden_size + i] =
        __half2float(values[DenseOffset(row, i, table.num_steps)]) * scale;
  }
}

// Calls `take(i)` for each of this thread's `count` columns, four neighbours at a time as
// `take4(i)` where that is how they are aligned: loads of several are in flight then.
template <typename Take4, typename Take>
__device__ inline void ForColumns(int64_t count, const Take4& take4, const Take& take) {
  if (count % 4 == 0) {
#pragma unroll 4
    for (int64_t i = int64_t{threadIdx.x} * 4; i < count; i += kProducerThreads * 4) take4(i);
    return;
  }
  for (int64_t i = threadIdx.x; i < count; i += kProducerThreads) take(i);
}

__device__ inline float4 Load4(const float* values, int64_t i) {
  return *reinterpret_cast<const float4*>(values + i);
}

__global__ void __launch_bounds__(kProducerThreads)
    RmsNorm(const float* hidden, const int32_t* rows, const float* weight, float epsilon,
            const __grid_constant__ InputSketch input_sketch, uint8_t* prepared, bool is_staged) {
  extern __shared__ __align__(16) float x[];
  AllowNextKernel();
  const InputSketch sketch = StageSketch<kProducerThreads>(
      input_sketch, StagedTables(x, input_sketch, is_staged), ThisShare());
  if (blockIdx.x == 0) {
    PrefetchRange(weight, sketch.cols * int64_t{sizeof(float)}, static_cast<int>(threadIdx.x),
                  kProducerThreads);
  }
  WaitForKernelBefore();
  const int64_t index = blockIdx.x;
  const float* source = hidden + (rows != nullptr ? rows[index] : index) * sketch.cols;
  float squares = 0.0f;
  float maximum = 0.0f;
  const auto take = [&](float value, float weight_value) {
    const float weighted = value * weight_value;
    squares = __fmaf_rn(value, value, squares);
    maximum = fmaxf(maximum, fabsf(weighted));
    return weighted;
  };
  ForColumns(
      sketch.cols,
      [&](int64_t i) {
        const float4 values = Load4(source, i);
        const float4 weights = Load4(weight, i);
        *reinterpret_cast<float4*>(x + i) = {take(values.x, weights.x), take(values.y, weights.y),
                                             take(values.z, weights.z), take(values.w, weights.w)};
      },
      [&](int64_t i) { x[i] = take(source[i], weight[i]); });
  WaitForCopies<0>();
  // Its barrier makes x and the tables complete, too.
  const SumAndMax row = BlockSumAndMax<kProducerThreads>(squares, maximum);
  const float gain = 1.0f / sqrtf(row.sum / static_cast<float>(sketch.cols) + epsilon);
  WritePrepared<kProducerThreads>(x, gain, row.maximum, sketch, ThisShare(),
                                  prepared + index * PreparedRowBytes(sketch.num_steps));
}

__global__ void __launch_bounds__(kProducerThreads)
    SwiGlu(const float* gate_up, const __grid_constant__ InputSketch input_sketch,
           uint8_t* prepared, bool is_staged) {
  extern __shared__ __align__(16) float x[];
  AllowNextKernel();
  const InputSketch sketch = StageSketch<kProducerThreads>(
      input_sketch, StagedTables(x, input_sketch, is_staged), ThisShare());
  WaitForKernelBefore();
  const int64_t token = blockIdx.x;
  const float* gate = gate_up + token * 2 * sketch.cols;
  const float* up = gate + sketch.cols;
  float maximum = 0.0f;
  const auto take = [&](float gate_value, float up_value) {
    const float value = __fdividef(gate_value, 1.0f + __expf(-gate_value)) * up_value;
    maximum = fmaxf(maximum, fabsf(value));
    return value;
  };
  ForColumns(
      sketch.cols,
      [&](int64_t i) {
        const float4 gates = Load4(gate, i);
        const float4 ups = Load4(up, i);
        *reinterpret_cast<float4*>(x + i) = {take(gates.x, ups.x), take(gates.y, ups.y),
                                             take(gates.z, ups.z), take(gates.w, ups.w)};
      },
      [&](int64_t i) { x[i] = take(gate[i], up[i]); });
  WaitForCopies<0>();
  maximum = BlockSumAndMax<kProducerThreads>(0.0f, maximum).maximum;
  WritePrepared<kProducerThreads>(x, 1.0f, maximum, sketch, ThisShare(),
                                  prepared + token * PreparedRowBytes(sketch.num_steps));
}

}  // namespace

int64_t MaxInputColumns(int max_shared_bytes) {
  constexpr int kReductionBytes = 1024;
  return (max_shared_bytes - kReductionBytes) / static_cast<int64_t>(sizeof(float));
}

cudaError_t LaunchEmbed(const PackedMatrix& table, int64_t hidden_size, const TokenInput* tokens,
                        int64_t num_tokens, float* hidden, cudaStream_t stream) {
  return LaunchKernel(Embed, dim3(static_cast<unsigned>(num_tokens)), kProducerThreads,
                      /*shared_bytes=*/0, stream, table, hidden_size, tokens, hidden);
}

cudaError_t LaunchRmsNorm(const float* hidden, const int32_t* rows, int64_t num_rows,
                          const float* weight, float epsilon, const InputSketch& sketch,
                          int num_multiprocessors, void* prepared, cudaStream_t stream) {
  return LaunchProducer(RmsNorm, num_rows, sketch, num_multiprocessors, stream, hidden, rows,
                        weight, epsilon, sketch, static_cast<uint8_t*>(prepared));
}

cudaError_t LaunchSwiGlu(const float* gate_up, int64_t num_tokens, const InputSketch& sketch,
                         int num_multiprocessors, void* prepared, cudaStream_t stream) {
  return LaunchProducer(SwiGlu, num_tokens, sketch, num_multiprocessors, stream, gate_up, sketch,
                        static_cast<uint8_t*>(prepared));
}

}  // namespace ultrasketch::cuda
