#include <cmath>
#include <limits>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

#include "engine/backends/sampling/sampling.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

template <typename T>
absl::Status OutOfRange(std::string_view field, std::string_view expected, T found) {
  return absl::InvalidArgumentError(
      absl::StrCat(A(field), ": expected ", A(expected), ", found ", found));
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params, int32_t vocab_size) {
  if (!(params.temperature >= 0) || !std::isfinite(params.temperature)) {
    return OutOfRange("temperature", "a finite number of at least 0", params.temperature);
  }
  if (params.top_k < 0) return OutOfRange("top_k", "0 (all) or more", params.top_k);
  if (!(params.top_p >= 0 && params.top_p <= 1)) {
    return OutOfRange("top_p", "a number from 0 to 1", params.top_p);
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return OutOfRange("min_p", "a number from 0 to 1", params.min_p);
  }
  if (!(params.repetition_penalty > 0) || !std::isfinite(params.repetition_penalty)) {
    return OutOfRange("repetition_penalty", "a finite number above 0", params.repetition_penalty);
  }
  if (!(params.presence_penalty >= -2 && params.presence_penalty <= 2)) {
    return OutOfRange("presence_penalty", "a number from -2 to 2", params.presence_penalty);
  }
  if (!(params.frequency_penalty >= -2 && params.frequency_penalty <= 2)) {
    return OutOfRange("frequency_penalty", "a number from -2 to 2", params.frequency_penalty);
  }
  absl::flat_hash_set<int32_t> biased_ids;
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return OutOfRange("logit_bias", absl::StrCat("token ids from 0 to ", vocab_size - 1), id);
    }
    if (!std::isfinite(bias)) {
      return OutOfRange("logit_bias", absl::StrCat("a finite number for token ", id), bias);
    }
    if (!biased_ids.insert(id).second) {
      return OutOfRange("logit_bias", "each token once, token twice", id);
    }
  }
  if (params.num_logprobs < -1 || params.num_logprobs > vocab_size) {
    return OutOfRange("num_logprobs", absl::StrCat("-1 (none) to ", vocab_size),
                      params.num_logprobs);
  }
  return absl::OkStatus();
}

}  // namespace ultrasketch
