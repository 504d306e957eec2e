// An NVIDIA GPU of compute capability 8.0 or later as a device.
//
// The residual stream and the outputs of products are floats. Products multiply either fp16 inputs
// with a power of two for each token by fp16 weights, with float accumulators, or int16 inputs with
// a scale for each token by sign bits, int8 or int4, with int32 accumulators: which, the codec says
// (InputForm in engine/codecs/cuda/tile_layout.h). Keys and values are fp16 or int8.
//
// A token's results are the same to the bit whatever else is in the step and however its sequence
// is spread over steps: no order of additions depends on the number of tokens. That is why products
// are our own kernels and not cuBLAS, which chooses another algorithm for another number of tokens.
//
// Tokens are sampled on the device, too, except for the few requests that cuda_sampler.h names:
// their logits are copied to the host, for the reference implementation (engine/backends/sampling).
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_BACKEND_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"

namespace ultrasketch {

// Holds a stream and 96 MiB of workspace, which it shares with options.beside, a backend of the
// same device or null. UNAVAILABLE when there is no such device or it cannot be used,
// RESOURCE_EXHAUSTED when the workspace does not fit.
absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackend(int ordinal,
                                                           const BackendOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_BACKEND_H_
