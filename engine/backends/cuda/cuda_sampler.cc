#include "engine/backends/cuda/cuda_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"

#include "engine/backends/cuda/cuda_sampler_kernels.h"
#include "engine/backends/cuda/kernels.h"
#include "engine/base/mutex.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch::cuda {
namespace {

bool HasPenalty(const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  return request.counts != nullptr &&
         (params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
          params.frequency_penalty != 0.0f);
}

// Whether the request takes the most likely token of the logits as they are.
bool IsPlainGreedy(const SampleRequest& request) {
  const SamplingParams& params = *request.params;
  return IsGreedy(params) && params.num_logprobs < 0 && params.logit_bias.empty() &&
         request.forbidden_ids.empty() && !HasPenalty(request);
}

// What the device is given for a request.
bool FitsDevice(const SampleRequest& request, int64_t vocab_size) {
  constexpr int64_t kMaxVocabSize = int64_t{1} << 20;
  const SamplingParams& params = *request.params;
  return vocab_size <= kMaxVocabSize &&
         (params.top_k <= kMaxSelected || params.top_k >= vocab_size) &&
         params.num_logprobs <= kMaxSelected;
}

// Appends what changes a request's logits, an entry a token.
void AppendEdits(const SampleRequest& request, int64_t vocab_size, std::vector<LogitEdit>& edits) {
  const SamplingParams& params = *request.params;
  absl::flat_hash_map<int32_t, size_t> entries;
  const auto entry_of = [&](int32_t id) -> LogitEdit* {
    if (id < 0 || id >= vocab_size) return nullptr;
    const auto [entry, is_new] = entries.try_emplace(id, edits.size());
    if (is_new) {
      edits.push_back(LogitEdit());
      edits.back().id = id;
    }
    return &edits[entry->second];
  };
  for (const auto& [id, bias] : params.logit_bias) {
    if (LogitEdit* edit = entry_of(id)) {
      edit->bias = bias;
      edit->has_bias = 1;
    }
  }
  if (HasPenalty(request)) {
    for (const auto& [id, count] : request.counts->prompt) {
      if (count <= 0) continue;
      if (LogitEdit* edit = entry_of(id)) edit->is_repeated = 1;
    }
    for (const auto& [id, count] : request.counts->output) {
      if (count <= 0) continue;
      if (LogitEdit* edit = entry_of(id)) {
        edit->is_repeated = 1;
        edit->penalty =
            params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
        edit->has_penalty = 1;
      }
    }
  }
  for (const int32_t id : request.forbidden_ids) {
    if (LogitEdit* edit = entry_of(id)) edit->is_forbidden = 1;
  }
}

DrawRequest MakeDraw(const SampleRequest& request, int64_t vocab_size) {
  const SamplingParams& params = *request.params;
  DrawRequest draw = {};
  draw.logits_row = request.logits_row;
  draw.edited_row = -1;
  draw.repetition_penalty = params.repetition_penalty;
  draw.is_greedy = IsGreedy(params) ? 1 : 0;
  if (draw.is_greedy == 0) {
    draw.uniform = UniformDouble(params.seed, request.stream, request.index);
    // The bounds are those of the reference implementation.
    draw.inverse_temperature =
        static_cast<float>(std::clamp(1.0 / double{params.temperature}, 1e-37, 1e37));
  }
  draw.min_p = params.min_p;
  draw.top_p = params.top_p;
  draw.top_k = params.top_k < vocab_size ? params.top_k : 0;
  draw.wants_logprob = params.num_logprobs >= 0 ? 1 : 0;
  draw.num_most_likely =
      static_cast<int32_t>(std::clamp<int64_t>(params.num_logprobs, 0, vocab_size));
  return draw;
}

SampledToken ToToken(const DrawRequest& draw, const DrawResult& result,
                     const MostLikelyToken* most_likely) {
  SampledToken token;
  token.id = result.id;
  if (draw.wants_logprob == 0) return token;
  const double log_total = double{result.maximum} + std::log(result.total_weight);
  const auto logprob = [&](float logit) { return static_cast<float>(double{logit} - log_total); };
  token.logprob = logprob(result.logit);
  for (int32_t i = 0; i < draw.num_most_likely; ++i) {
    const MostLikelyToken& one = most_likely[draw.first_most_likely + i];
    token.top.push_back({one.id, logprob(one.logit)});
  }
  return token;
}

// Parts of a buffer that is there on the host and on the device.
class BufferPlan {
 public:
  template <typename T>
  int64_t Add(size_t count) {
    const int64_t offset = num_bytes_;
    num_bytes_ += static_cast<int64_t>((count * sizeof(T) + 15) / 16 * 16);
    return offset;
  }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  int64_t num_bytes_ = 0;
};

}  // namespace

absl::Status CudaSampler::Sample(const float* logits, int64_t vocab_size,
                                 absl::Span<const SampleRequest> requests,
                                 absl::Span<SampledToken> tokens) {
  std::vector<size_t> greedy;
  std::vector<size_t> others;
  for (size_t i = 0; i < requests.size(); ++i) {
    (IsPlainGreedy(requests[i]) ? greedy : others).push_back(i);
  }
  std::vector<size_t> on_device;
  std::vector<size_t> on_host;
  for (const size_t i : others) {
    (FitsDevice(requests[i], vocab_size) ? on_device : on_host).push_back(i);
  }
  US_RETURN_IF_ERROR(TakeMaxima(logits, vocab_size, requests, greedy, tokens, on_host));
  // As many at a time as the scratch memory holds rows.
  const int64_t row_bytes = vocab_size * static_cast<int64_t>(sizeof(float));
  const auto draws_at_once =
      static_cast<size_t>(std::max<int64_t>(1, scratch_.num_bytes() / row_bytes));
  for (size_t first = 0; first < on_device.size(); first += draws_at_once) {
    US_RETURN_IF_ERROR(SampleOnDevice(logits, vocab_size, requests,
                                      absl::MakeConstSpan(on_device).subspan(first, draws_at_once),
                                      tokens, on_host));
  }

  // As many rows at a time as a bounded buffer holds.
  constexpr int64_t kHostBytes = int64_t{32} << 20;
  const auto at_once = static_cast<size_t>(std::max<int64_t>(1, kHostBytes / row_bytes));
  for (size_t first = 0; first < on_host.size(); first += at_once) {
    US_RETURN_IF_ERROR(SampleOnHost(logits, vocab_size, requests,
                                    absl::MakeConstSpan(on_host).subspan(first, at_once), tokens));
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
  US_RETURN_IF_ERROR(ReserveOnDevice(row_bytes + result_bytes));
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

absl::Status CudaSampler::SampleOnDevice(const float* logits, int64_t vocab_size,
                                         absl::Span<const SampleRequest> requests,
                                         absl::Span<const size_t> some,
                                         absl::Span<SampledToken> tokens,
                                         std::vector<size_t>& rest) {
  const int64_t row_bytes = vocab_size * static_cast<int64_t>(sizeof(float));
  std::vector<DrawRequest> draws;
  std::vector<size_t> drawn;
  std::vector<LogitEdit> edits;
  int32_t num_edited = 0;
  int32_t num_most_likely = 0;
  for (const size_t index : some) {
    DrawRequest draw = MakeDraw(requests[index], vocab_size);
    draw.first_edit = static_cast<int32_t>(edits.size());
    AppendEdits(requests[index], vocab_size, edits);
    draw.num_edits = static_cast<int32_t>(edits.size()) - draw.first_edit;
    if (draw.num_edits > 0 && (num_edited + 1) * row_bytes > scratch_.num_bytes()) {
      rest.push_back(index);
      continue;
    }
    if (draw.num_edits > 0) draw.edited_row = num_edited++;
    draw.first_most_likely = num_most_likely;
    num_most_likely += draw.num_most_likely;
    draws.push_back(draw);
    drawn.push_back(index);
  }
  if (draws.empty()) return absl::OkStatus();

  BufferPlan plan;
  const int64_t draws_at = plan.Add<DrawRequest>(draws.size());
  const int64_t edits_at = plan.Add<LogitEdit>(edits.size());
  const int64_t input_bytes = plan.num_bytes();
  const int64_t results_at = plan.Add<DrawResult>(draws.size());
  const int64_t most_likely_at = plan.Add<MostLikelyToken>(static_cast<size_t>(num_most_likely));
  US_RETURN_IF_ERROR(Reserve(plan.num_bytes()));
  US_RETURN_IF_ERROR(ReserveOnDevice(plan.num_bytes()));
  std::memcpy(host_.bytes() + draws_at, draws.data(), draws.size() * sizeof(DrawRequest));
  if (!edits.empty()) {
    std::memcpy(host_.bytes() + edits_at, edits.data(), edits.size() * sizeof(LogitEdit));
  }
  device_.Check(cudaMemcpyAsync(memory_.data(), host_.bytes(), static_cast<size_t>(input_bytes),
                                cudaMemcpyHostToDevice, device_.stream()),
                "copying requests");
  DrawArguments arguments;
  arguments.logits = logits;
  arguments.vocab_size = vocab_size;
  arguments.requests = reinterpret_cast<const DrawRequest*>(memory_.bytes() + draws_at);
  arguments.num_requests = static_cast<int64_t>(draws.size());
  arguments.edits = reinterpret_cast<const LogitEdit*>(memory_.bytes() + edits_at);
  arguments.edited_rows = static_cast<float*>(scratch_.data());
  arguments.results = reinterpret_cast<DrawResult*>(memory_.bytes() + results_at);
  arguments.most_likely = reinterpret_cast<MostLikelyToken*>(memory_.bytes() + most_likely_at);
  device_.Check(LaunchDraws(arguments, device_.stream()), "drawing tokens");
  device_.Check(cudaMemcpyAsync(host_.bytes() + results_at, memory_.bytes() + results_at,
                                static_cast<size_t>(plan.num_bytes() - results_at),
                                cudaMemcpyDeviceToHost, device_.stream()),
                "copying tokens");
  US_RETURN_IF_ERROR(device_.Finish("drawing tokens"));
  const auto* results = reinterpret_cast<const DrawResult*>(host_.bytes() + results_at);
  const auto* most_likely =
      reinterpret_cast<const MostLikelyToken*>(host_.bytes() + most_likely_at);
  for (size_t i = 0; i < draws.size(); ++i) {
    if (results[i].usable == 0) {
      rest.push_back(drawn[i]);
    } else {
      tokens[drawn[i]] = ToToken(draws[i], results[i], most_likely);
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

absl::Status CudaSampler::ReserveOnDevice(int64_t num_bytes) {
  if (num_bytes <= memory_.num_bytes()) return absl::OkStatus();
  US_ASSIGN_OR_RETURN(memory_, CudaMemory::Allocate(device_, 2 * num_bytes));
  return absl::OkStatus();
}

}  // namespace ultrasketch::cuda
