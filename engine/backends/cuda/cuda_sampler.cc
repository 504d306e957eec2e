#include "engine/backends/cuda/cuda_sampler.h"

#include <algorithm>
#include <utility>

#include "engine/backends/cuda/kernels.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"

namespace ultrasketch::cuda {
namespace {

// Whether the request takes the most likely token of the logits as they are.
bool IsPlainGreedy(const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  const bool has_penalty = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
                           params.frequency_penalty != 0.0f;
  return params.temperature == 0.0f && params.num_logprobs < 0 && params.logit_bias.empty() &&
         request.forbidden_ids.empty() && !(has_penalty && request.counts != nullptr);
}

}  // namespace

absl::Status CudaSampler::Sample(const float* logits, int64_t vocab_size,
                                 absl::Span<const SampleRequest> requests,
                                 absl::Span<SampledToken> tokens) {
  std::vector<size_t> greedy;
  std::vector<size_t> others;
  for (size_t i = 0; i < requests.size(); ++i) {
    (IsPlainGreedy(requests[i]) ? greedy : others).push_back(i);
  }
  US_RETURN_IF_ERROR(TakeMaxima(logits, vocab_size, requests, greedy, tokens, others));

  // As many rows at a time as a bounded buffer holds.
  constexpr int64_t kHostBytes = int64_t{32} << 20;
  const int64_t row_bytes = vocab_size * static_cast<int64_t>(sizeof(float));
  const auto at_once = static_cast<size_t>(std::max<int64_t>(1, kHostBytes / row_bytes));
  for (size_t first = 0; first < others.size(); first += at_once) {
    US_RETURN_IF_ERROR(SampleOnHost(logits, vocab_size, requests,
                                    absl::MakeConstSpan(others).subspan(first, at_once), tokens));
  }
  return absl::OkStatus();
}

absl::Status CudaSampler::TakeMaxima(const float* logits, int64_t vocab_size,
                                     absl::Span<const SampleRequest> requests,
                                     const std::vector<size_t>& some,
                                     absl::Span<SampledToken> tokens, std::vector<size_t>& rest) {
  if (some.empty()) return absl::OkStatus();
  const auto count = static_cast<int64_t>(some.size());
  // Row numbers, then results, in both buffers.
  const int64_t row_bytes = (count * static_cast<int64_t>(sizeof(int32_t)) + 255) / 256 * 256;
  const int64_t result_bytes = count * static_cast<int64_t>(sizeof(RowMaximum));
  US_RETURN_IF_ERROR(Reserve(row_bytes + result_bytes));
  if (memory_.num_bytes() < row_bytes + result_bytes) {
    US_ASSIGN_OR_RETURN(memory_, CudaMemory::Allocate(device_, 2 * (row_bytes + result_bytes)));
  }
  auto* rows = reinterpret_cast<int32_t*>(host_.bytes());
  for (size_t i = 0; i < some.size(); ++i) {
    rows[i] = static_cast<int32_t>(requests[some[i]].logits_row);
  }
  device_.Check(cudaMemcpyAsync(memory_.data(), rows, static_cast<size_t>(row_bytes),
                                cudaMemcpyHostToDevice, device_.stream()),
                "copying row numbers");
  auto* results = reinterpret_cast<RowMaximum*>(memory_.bytes() + row_bytes);
  device_.Check(LaunchRowMaxima(logits, vocab_size, reinterpret_cast<int32_t*>(memory_.data()),
                                count, results, device_.stream()),
                "finding the most likely tokens");
  device_.Check(
      cudaMemcpyAsync(host_.bytes() + row_bytes, results, static_cast<size_t>(result_bytes),
                      cudaMemcpyDeviceToHost, device_.stream()),
      "copying the most likely tokens");
  US_RETURN_IF_ERROR(device_.Finish("finding the most likely tokens"));
  const auto* maxima = reinterpret_cast<const RowMaximum*>(host_.bytes() + row_bytes);
  for (size_t i = 0; i < some.size(); ++i) {
    if (maxima[i].usable != 0) {
      tokens[some[i]] = SampledToken();
      tokens[some[i]].id = maxima[i].id;
    } else {
      rest.push_back(some[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status CudaSampler::SampleOnHost(const float* logits, int64_t vocab_size,
                                       absl::Span<const SampleRequest> requests,
                                       absl::Span<const size_t> some,
                                       absl::Span<SampledToken> tokens) {
  const int64_t row_bytes = vocab_size * static_cast<int64_t>(sizeof(float));
  US_RETURN_IF_ERROR(Reserve(static_cast<int64_t>(some.size()) * row_bytes));
  for (size_t i = 0; i < some.size(); ++i) {
    device_.Check(
        cudaMemcpyAsync(host_.bytes() + static_cast<int64_t>(i) * row_bytes,
                        logits + requests[some[i]].logits_row * vocab_size,
                        static_cast<size_t>(row_bytes), cudaMemcpyDeviceToHost, device_.stream()),
        "copying logits");
  }
  US_RETURN_IF_ERROR(device_.Finish("copying logits"));
  Mutex mutex;
  absl::Status first_error;
  pool_.ParallelFor(static_cast<int64_t>(some.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const size_t index = some[static_cast<size_t>(i)];
      const auto* row = reinterpret_cast<const float*>(host_.bytes() + i * row_bytes);
      absl::StatusOr<SampledToken> token =
          SampleToken(absl::MakeConstSpan(row, static_cast<size_t>(vocab_size)), requests[index]);
      if (token.ok()) {
        tokens[index] = *std::move(token);
      } else {
        MutexLock lock(mutex);
        first_error.Update(token.status());
      }
    }
  });
  return first_error;
}

absl::Status CudaSampler::Reserve(int64_t num_bytes) {
  if (num_bytes <= host_.num_bytes()) return absl::OkStatus();
  US_ASSIGN_OR_RETURN(host_, PinnedMemory::Allocate(device_, num_bytes));
  return absl::OkStatus();
}

}  // namespace ultrasketch::cuda
