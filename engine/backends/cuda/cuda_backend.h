// An NVIDIA GPU of compute capability 8.0 or later as a device.
//
// The residual stream and the outputs of products are floats. Inputs of products are binary16 with
// a power of two for each token (engine/codecs/cuda/tile_layout.h), weights are sign bits or
// binary16, sums are floats. Keys and values are binary16.
//
// A token's results are the same to the bit whatever else is in the step and however its sequence
// is spread over steps: no order of additions depends on the number of tokens. That is why products
// are our own kernels and not cuBLAS, which chooses another algorithm for another number of tokens.
//
// Greedy choices are made on the device. Every other sampling option is served by the reference
// implementation (engine/backends/sampling) on the host, to which the row's logits are copied.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_BACKEND_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"

namespace ultrasketch {

// Holds a stream and 96 MiB of workspace. UNAVAILABLE when there is no such device or it cannot be
// used, RESOURCE_EXHAUSTED when the workspace does not fit.
absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackend(int ordinal,
                                                           const BackendOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_BACKEND_H_
