// From logits on the device to tokens.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_SAMPLER_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_SAMPLER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/sampling/sampling.h"
#include "engine/base/thread_pool.h"

namespace ultrasketch::cuda {

// One thread at a time. Logits stay on the device, except where a request limits its choice to more
// than kMaxSelected tokens, or wants the log probabilities of as many, and where logits are not
// numbers, which the reference implementation words.
class CudaSampler {
 public:
  // `scratch` is device memory that is free while tokens are sampled.
  CudaSampler(CudaDevice& device, const CudaMemory& scratch, ThreadPool& pool)
      : device_(device), scratch_(scratch), pool_(pool) {}

  // Bytes of device memory.
  int64_t num_bytes() const { return memory_.num_bytes(); }

  // As Backend::Sample. `logits` is device memory, complete.
  absl::Status Sample(const float* logits, int64_t vocab_size,
                      absl::Span<const SampleRequest> requests, absl::Span<SampledToken> tokens);

 private:
  // Requests by index. Sets the tokens of those whose logits are usable and appends the others,
  // whose error the reference implementation words, to `rest`.
  absl::Status TakeMaxima(const float* logits, int64_t vocab_size,
                          absl::Span<const SampleRequest> requests, const std::vector<size_t>& some,
                          absl::Span<SampledToken> tokens, std::vector<size_t>& rest);
  // The others that the device draws.
  absl::Status SampleOnDevice(const float* logits, int64_t vocab_size,
                              absl::Span<const SampleRequest> requests,
                              absl::Span<const size_t> some, absl::Span<SampledToken> tokens,
                              std::vector<size_t>& rest);
  absl::Status SampleOnHost(const float* logits, int64_t vocab_size,
                            absl::Span<const SampleRequest> requests, absl::Span<const size_t> some,
                            absl::Span<SampledToken> tokens);
  absl::Status Reserve(int64_t num_bytes);
  absl::Status ReserveOnDevice(int64_t num_bytes);

  CudaDevice& device_;
  const CudaMemory& scratch_;
  ThreadPool& pool_;
  PinnedMemory host_;
  CudaMemory memory_;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_SAMPLER_H_
