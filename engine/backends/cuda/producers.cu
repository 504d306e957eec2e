// Kernels that produce the inputs of linear sites, and the rows of the embedding.
//
// A block holds one token's input in shared memory and sketches it there. Bound by latency: one
// pass over the row, one reduction, one pass over the buckets.
#include <cuda_fp16.h>

#include <algorithm>

#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/producer_launch.cuh"
#include "engine/backends/cuda/producer_rows.cuh"
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

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    RmsNorm(const float* hidden, const int32_t* rows, const float* weight, float epsilon,
            const __grid_constant__ InputSketch input_sketch, uint8_t* prepared, bool is_staged) {
  extern __shared__ __align__(16) float x[];
  AllowNextKernel();
  const InputSketch sketch =
      StageSketch<kThreads>(input_sketch, StagedTables(x, input_sketch, is_staged), ThisShare());
  if (blockIdx.x == 0) {
    PrefetchRange(weight, sketch.cols * int64_t{sizeof(float)}, static_cast<int>(threadIdx.x),
                  kThreads);
  }
  AwaitTables();
  WaitForKernelBefore();
  const int64_t index = blockIdx.x;
  const RowRange row = LoadNormalized<kThreads>(
      hidden + (rows != nullptr ? rows[index] : index) * sketch.cols, weight,
      static_cast<int>(sketch.cols), epsilon, SketchedRow(x, sketch));
  WritePrepared<kThreads>(x, row.gain, row.maximum, sketch, ThisShare(),
                          prepared + index * PreparedRowBytes(sketch.num_steps));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    SwiGlu(const float* gate_up, const __grid_constant__ InputSketch input_sketch,
           uint8_t* prepared, bool is_staged) {
  extern __shared__ __align__(16) float x[];
  AllowNextKernel();
  const InputSketch sketch =
      StageSketch<kThreads>(input_sketch, StagedTables(x, input_sketch, is_staged), ThisShare());
  AwaitTables();
  WaitForKernelBefore();
  const int64_t token = blockIdx.x;
  const float* gate = gate_up + token * 2 * sketch.cols;
  const RowRange row = LoadSwiGlu<kThreads>(gate, gate + sketch.cols, static_cast<int>(sketch.cols),
                                            SketchedRow(x, sketch));
  WritePrepared<kThreads>(x, row.gain, row.maximum, sketch, ThisShare(),
                          prepared + token * PreparedRowBytes(sketch.num_steps));
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    Sketch(const float* rows, bool is_in_entries, const __grid_constant__ InputSketch input_sketch,
           uint8_t* prepared, bool is_staged) {
  extern __shared__ __align__(16) float x[];
  AllowNextKernel();
  const InputSketch sketch =
      StageSketch<kThreads>(input_sketch, StagedTables(x, input_sketch, is_staged), ThisShare());
  AwaitTables();
  WaitForKernelBefore();
  const int64_t token = blockIdx.x;
  SketchedRow sketched(x, sketch);
  if (is_in_entries) sketched.places = nullptr;
  const RowRange row =
      LoadRow<kThreads>(rows + token * sketch.cols, static_cast<int>(sketch.cols), sketched);
  WritePrepared<kThreads>(x, row.gain, row.maximum, sketch, ThisShare(),
                          prepared + token * PreparedRowBytes(sketch.num_steps));
}

}  // namespace

int64_t MaxInputColumns(int max_shared_bytes) {
  constexpr int kReductionBytes = 1024;
  return (max_shared_bytes - kReductionBytes) / int64_t{sizeof(float)};
}

cudaError_t LaunchEmbed(const PackedMatrix& table, int64_t hidden_size, const TokenInput* tokens,
                        int64_t num_tokens, float* hidden, cudaStream_t stream) {
  return LaunchKernel(Embed, dim3(static_cast<unsigned>(num_tokens)), kProducerThreads,
                      /*shared_bytes=*/0, stream, table, hidden_size, tokens, hidden);
}

cudaError_t LaunchRmsNorm(const float* hidden, const int32_t* rows, int64_t num_rows,
                          const float* weight, float epsilon, const InputSketch& sketch,
                          int num_multiprocessors, void* prepared, cudaStream_t stream) {
  return LaunchProducer([](auto threads) { return RmsNorm<threads.value>; }, num_rows, sketch,
                        num_multiprocessors, stream, hidden, rows, weight, epsilon, sketch,
                        static_cast<uint8_t*>(prepared));
}

cudaError_t LaunchSwiGlu(const float* gate_up, int64_t num_tokens, const InputSketch& sketch,
                         int num_multiprocessors, void* prepared, cudaStream_t stream) {
  return LaunchProducer([](auto threads) { return SwiGlu<threads.value>; }, num_tokens, sketch,
                        num_multiprocessors, stream, gate_up, sketch,
                        static_cast<uint8_t*>(prepared));
}

cudaError_t LaunchSketch(const float* rows, bool is_in_entries, int64_t num_tokens,
                         const InputSketch& sketch, int num_multiprocessors, void* prepared,
                         cudaStream_t stream) {
  return LaunchProducer([](auto threads) { return Sketch<threads.value>; }, num_tokens, sketch,
                        num_multiprocessors, stream, rows, is_in_entries, sketch,
                        static_cast<uint8_t*>(prepared));
}

}  // namespace ultrasketch::cuda
