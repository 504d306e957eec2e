#include "engine/backends/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "engine/backends/sampling/logits_math.h"
#include "engine/base/check.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// Buffers as large as the vocabulary, kept between draws: a fresh half megabyte costs more than
// the arithmetic on it.
struct Workspace {
  std::vector<float> logits;
  std::vector<float> weights;
  std::vector<double> block_sums;
  std::vector<Candidate> candidates;
};

Workspace& ThreadWorkspace() {
  thread_local Workspace workspace;
  return workspace;
}

// A candidate's weight: its probability, but for a common factor.
struct WeightedToken {
  int32_t id;
  double weight;
};

bool HasPenalty(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

// Bias, penalties, forbidden tokens. Ids outside the vocabulary have no logit to change.
void ApplyPenalties(const SampleRequest& request, absl::Span<float> logits) {
  const SamplingParams& params = *request.params;
  const auto in_vocabulary = [&](int32_t id) {
    return id >= 0 && static_cast<size_t>(id) < logits.size();
  };
  for (const auto& [id, bias] : params.logit_bias) {
    if (in_vocabulary(id)) logits[static_cast<size_t>(id)] += bias;
  }
  if (HasPenalty(params) && request.counts != nullptr) {
    const auto repeat = [&](int32_t id) {
      if (!in_vocabulary(id)) return;
      float& logit = logits[static_cast<size_t>(id)];
      if (logit == -std::numeric_limits<float>::infinity()) return;
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      // Penalties far from 1 overflow: that makes no token certain, and none impossible.
      constexpr float kMost = std::numeric_limits<float>::max();
      logit = std::clamp(logit, -kMost, kMost);
    };
    const TokenCounts& counts = *request.counts;
    for (const auto& [id, count] : counts.prompt) {
      if (count > 0) repeat(id);
    }
    for (const auto& [id, count] : counts.output) {
      if (count <= 0 || !in_vocabulary(id)) continue;
      const auto prompt = counts.prompt.find(id);
      if (prompt == counts.prompt.end() || prompt->second <= 0) repeat(id);
      logits[static_cast<size_t>(id)] -=
          params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
    }
  }
  for (const int32_t id : request.forbidden_ids) {
    if (in_vocabulary(id)) {
      logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
    }
  }
}

// The index whose share of [0, total) `point` falls into, over `weight(i)` for i in [begin, end).
// Rounding can leave `point` at or past the end: the last one with a weight gets it then.
template <typename Weight>
size_t IndexAt(double point, size_t begin, size_t end, const Weight& weight) {
  size_t last = begin;
  for (size_t i = begin; i < end; ++i) {
    const double share = weight(i);
    if (share <= 0) continue;
    if (point < share) return i;
    point -= share;
    last = i;
  }
  return last;
}

int32_t DrawFromAll(double uniform, double total, const Workspace& workspace) {
  const std::vector<double>& sums = workspace.block_sums;
  double point = uniform * total;
  size_t block = 0;
  size_t last = 0;
  for (; block < sums.size(); ++block) {
    if (sums[block] <= 0) continue;
    last = block;
    if (point < sums[block]) break;
    point -= sums[block];
  }
  const size_t begin = (block < sums.size() ? block : last) * kWeightBlock;
  const size_t end = std::min(begin + kWeightBlock, workspace.weights.size());
  return static_cast<int32_t>(
      IndexAt(point, begin, end, [&](size_t i) { return double{workspace.weights[i]}; }));
}

// Draws among the most likely tokens of `candidates` (most likely first) that together have at
// least `mass`.
int32_t DrawFromCandidates(double uniform, double mass,
                           absl::Span<const WeightedToken> candidates) {
  double kept_mass = 0;
  size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || kept_mass < mass)) {
    kept_mass += candidates[kept++].weight;
  }
  return candidates[IndexAt(uniform * kept_mass, 0, kept,
                            [&](size_t i) { return candidates[i].weight; })]
      .id;
}

// The tokens of `workspace.candidates` whose weight is at least `least_weight`, and above 0; the
// first has weight 1.
std::vector<WeightedToken> WeighCandidates(const Workspace& workspace, float maximum,
                                           float inverse_temperature, float least_weight) {
  std::vector<WeightedToken> weighted;
  weighted.reserve(workspace.candidates.size());
  for (const Candidate& candidate : workspace.candidates) {
    const float weight = ExpNonPositive((candidate.logit - maximum) * inverse_temperature);
    if (weight < least_weight || weight <= 0) break;  // they come in descending order
    weighted.push_back({candidate.id, double{weight}});
  }
  return weighted;
}

double TotalWeight(absl::Span<const WeightedToken> tokens) {
  double total = 0;
  for (const WeightedToken& token : tokens) total += token.weight;
  return total;
}

int32_t Draw(absl::Span<const float> logits, float maximum, const SampleRequest& request,
             Workspace& workspace) {
  const SamplingParams& params = *request.params;
  const double uniform = UniformDouble(params.seed, request.stream, request.index);
  // The bounds keep 0 * inverse_temperature and infinity * inverse_temperature from being NaN.
  const auto inverse_temperature =
      static_cast<float>(std::clamp(1.0 / double{params.temperature}, 1e-37, 1e37));
  const bool limits_count = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  const bool limits_mass = params.top_p < 1;

  if (limits_count) {
    SelectMostLikely(logits, static_cast<size_t>(params.top_k), workspace.candidates);
    const auto weighted = WeighCandidates(workspace, maximum, inverse_temperature, params.min_p);
    const double total = TotalWeight(weighted);
    return DrawFromCandidates(uniform, limits_mass ? double{params.top_p} * total : total,
                              weighted);
  }
  double total = ComputeWeights(logits, maximum, inverse_temperature, params.min_p,
                                workspace.weights, workspace.block_sums);
  if (limits_mass) {
    total = KeepTopP(logits, maximum, inverse_temperature, double{params.top_p} * total,
                     workspace.weights, workspace.block_sums);
  }
  return DrawFromAll(uniform, total, workspace);
}

void FillLogprobs(absl::Span<const float> logits, float maximum, int32_t num_logprobs,
                  Workspace& workspace, SampledToken& token) {
  const double log_total = LogSumExp(logits, maximum);
  const auto logprob = [&](float logit) { return static_cast<float>(double{logit} - log_total); };
  token.logprob = logprob(logits[static_cast<size_t>(token.id)]);
  if (num_logprobs == 0) return;
  SelectMostLikely(logits, static_cast<size_t>(num_logprobs), workspace.candidates);
  token.top.reserve(workspace.candidates.size());
  for (const Candidate& candidate : workspace.candidates) {
    token.top.push_back({candidate.id, logprob(candidate.logit)});
  }
}

}  // namespace

absl::StatusOr<SampledToken> SampleToken(absl::Span<const float> logits,
                                         const SampleRequest& request) {
  US_CHECK(request.params != nullptr);
  const SamplingParams& params = *request.params;
  Workspace& workspace = ThreadWorkspace();
  US_ASSIGN_OR_RETURN(const float raw_maximum, CheckedMaximum(logits));

  absl::Span<const float> adjusted = logits;
  float maximum = raw_maximum;
  const bool penalized = HasPenalty(params) && request.counts != nullptr;
  if (penalized || !params.logit_bias.empty() || !request.forbidden_ids.empty()) {
    workspace.logits.assign(logits.begin(), logits.end());
    ApplyPenalties(request, absl::MakeSpan(workspace.logits));
    adjusted = workspace.logits;
    auto adjusted_maximum = CheckedMaximum(adjusted);
    if (!adjusted_maximum.ok()) {
      // The model's own logits can be sampled, and neither bias nor penalty forbids a token.
      return absl::InvalidArgumentError(
          absl::StrCat("min_tokens: no token can be chosen beside the forbidden ones: ",
                       adjusted_maximum.status().message()));
    }
    maximum = *adjusted_maximum;
  }

  SampledToken token;
  if (IsGreedy(params)) {
    token.id = static_cast<int32_t>(std::find(adjusted.begin(), adjusted.end(), maximum) -
                                    adjusted.begin());
  } else {
    token.id = Draw(adjusted, maximum, request, workspace);
  }
  if (params.num_logprobs >= 0) {
    FillLogprobs(logits, raw_maximum, params.num_logprobs, workspace, token);
  }
  return token;
}

double LogProbability(absl::Span<const float> logits, int32_t id) {
  US_CHECK(id >= 0 && static_cast<size_t>(id) < logits.size());
  const absl::StatusOr<float> maximum = CheckedMaximum(logits);
  if (!maximum.ok()) return std::numeric_limits<double>::quiet_NaN();
  return double{logits[static_cast<size_t>(id)]} - LogSumExp(logits, *maximum);
}

}  // namespace ultrasketch
