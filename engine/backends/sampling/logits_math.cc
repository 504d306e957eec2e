#include "engine/backends/sampling/logits_math.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ultrasketch {
namespace {

// An integer that orders as the float does, -NaN < -infinity < ... < infinity < NaN. Integer
// minima and maxima vectorise without fast-math, and show a NaN wherever it is.
inline int32_t OrderedKey(float value) {
  const auto bits = std::bit_cast<int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

constexpr int32_t kInfinityKey = 0x7f800000;
constexpr int32_t kMinusInfinityKey = ~0x7f800000;

// ExpNonPositive, to be inlined into loops.
[[gnu::always_inline]] inline float Exponential(float x) {
  // x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor series, whose remainder is below 6e-9;
  // 2^n by its exponent bits. Everything is branch-free, so that loops over it vectorise.
  constexpr float kLeast = -87.0f;
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // 9 bits: its product with n is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction bits
  const float bounded = x > kLeast ? x : kLeast;
  const float shifted = bounded * kLog2E + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float power = 1.0f / 5040;
  power = power * r + 1.0f / 720;
  power = power * r + 1.0f / 120;
  power = power * r + 1.0f / 24;
  power = power * r + 1.0f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  // The low bits of `shifted` hold n.
  const int32_t exponent = (std::bit_cast<int32_t>(shifted) - 0x4b400000) << 23;
  const float result = std::bit_cast<float>(std::bit_cast<int32_t>(power) + exponent);
  return x < kLeast ? 0.0f : result;
}

// Weights [0, count) of one block, and their sum in eight interleaved parts: a fixed order that the
// compiler can vectorise.
[[gnu::always_inline]] inline double ComputeBlockPortably(const float* logits, size_t count,
                                                          float maximum, float inverse_temperature,
                                                          float least_weight, float* weights) {
  for (size_t i = 0; i < count; ++i) {
    const float weight = Exponential((logits[i] - maximum) * inverse_temperature);
    weights[i] = weight >= least_weight ? weight : 0.0f;
  }
  constexpr size_t kLanes = 8;
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += double{weights[i + lane]};
  }
  double sum = 0;
  for (; i < count; ++i) sum += double{weights[i]};
  for (const double lane : lanes) sum += lane;
  return sum;
}

#if defined(__x86_64__)
// The same operations on wider registers. AVX2 alone, without FMA: fused operations would round
// differently, and the same seed give another text on another processor.
[[gnu::target("avx2")]] double ComputeBlockAvx2(const float* logits, size_t count, float maximum,
                                                float inverse_temperature, float least_weight,
                                                float* weights) {
  return ComputeBlockPortably(logits, count, maximum, inverse_temperature, least_weight, weights);
}
#endif

double ComputeBlock(const float* logits, size_t count, float maximum, float inverse_temperature,
                    float least_weight, float* weights) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) {
    return ComputeBlockAvx2(logits, count, maximum, inverse_temperature, least_weight, weights);
  }
#endif
  return ComputeBlockPortably(logits, count, maximum, inverse_temperature, least_weight, weights);
}

absl::Status NotFinite(absl::Span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isnan(logits[i]) && logits[i] != std::numeric_limits<float>::infinity()) continue;
    return absl::InternalError(absl::StrCat("logits: entry ", i, " of ", logits.size(), " is ",
                                            std::isnan(logits[i]) ? "NaN" : "infinite",
                                            ", expected a finite number"));
  }
  return absl::InternalError(
      absl::StrCat("logits: none of ", logits.size(), " tokens is possible"));
}

}  // namespace

absl::StatusOr<float> CheckedMaximum(absl::Span<const float> logits) {
  int32_t least = std::numeric_limits<int32_t>::max();
  int32_t most = std::numeric_limits<int32_t>::min();
  for (const float logit : logits) {
    const int32_t key = OrderedKey(logit);
    least = std::min(least, key);
    most = std::max(most, key);
  }
  const bool usable = least >= kMinusInfinityKey && most < kInfinityKey && most > kMinusInfinityKey;
  if (!usable) return NotFinite(logits);
  return std::bit_cast<float>(most ^ ((most >> 31) & 0x7fffffff));
}

float ExpNonPositive(float x) { return Exponential(x); }

double ComputeWeights(absl::Span<const float> logits, float maximum, float inverse_temperature,
                      float least_weight, std::vector<float>& weights,
                      std::vector<double>& block_sums) {
  weights.resize(logits.size());
  block_sums.clear();
  double total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kWeightBlock) {
    const size_t count = std::min(kWeightBlock, logits.size() - begin);
    block_sums.push_back(ComputeBlock(logits.data() + begin, count, maximum, inverse_temperature,
                                      least_weight, weights.data() + begin));
    total += block_sums.back();
  }
  return total;
}

double LogSumExp(absl::Span<const float> logits, float maximum) {
  float weights[kWeightBlock];
  double total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kWeightBlock) {
    const size_t count = std::min(kWeightBlock, logits.size() - begin);
    total += ComputeBlock(logits.data() + begin, count, maximum, 1.0f, 0.0f, weights);
  }
  return double{maximum} + std::log(total);
}

double KeepTopP(absl::Span<const float> logits, float maximum, float inverse_temperature,
                double least_mass, std::vector<float>& weights, std::vector<double>& block_sums) {
  // Mass by likelihood, in classes a factor of e^(1/32) wide: only the class that the limit falls
  // into has to be sorted.
  constexpr float kClassesPerUnit = 32;
  constexpr size_t kNumClasses = 87 * 32 + 1;
  const auto class_of = [&](size_t i) {
    const float depth = (maximum - logits[i]) * inverse_temperature * kClassesPerUnit;
    return std::min(static_cast<size_t>(depth), kNumClasses - 1);
  };
  std::array<double, kNumClasses> class_mass = {};
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weights[i] > 0) class_mass[class_of(i)] += double{weights[i]};
  }
  double mass = 0;
  size_t last_class = 0;
  for (size_t c = 0; c < kNumClasses && (c == 0 || mass < least_mass); ++c) {
    if (class_mass[c] <= 0) continue;
    last_class = c;
    mass += class_mass[c];
  }
  mass -= class_mass[last_class];

  std::vector<Candidate> candidates;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weights[i] > 0 && class_of(i) == last_class) {
      candidates.push_back({logits[i], static_cast<int32_t>(i)});
    }
  }
  std::sort(candidates.begin(), candidates.end());
  size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || mass < least_mass)) {
    mass += double{weights[static_cast<size_t>(candidates[kept++].id)]};
  }
  const Candidate last_kept = candidates[kept - 1];

  double total = 0;
  for (size_t block = 0; block < block_sums.size(); ++block) {
    const size_t begin = block * kWeightBlock;
    const size_t end = std::min(begin + kWeightBlock, logits.size());
    double sum = 0;
    for (size_t i = begin; i < end; ++i) {
      if (last_kept < Candidate{logits[i], static_cast<int32_t>(i)}) weights[i] = 0;
      sum += double{weights[i]};
    }
    block_sums[block] = sum;
    total += sum;
  }
  return total;
}

void SelectMostLikely(absl::Span<const float> logits, size_t count,
                      std::vector<Candidate>& selected) {
  selected.clear();
  count = std::min(count, logits.size());
  if (count == 0) return;
  // Twice `count` candidates are collected, then cut to the best `count`, and so on. Ids come in
  // ascending order, so a later token with the logit of the last one kept never displaces it.
  const size_t capacity = std::min(logits.size(), 2 * count + 64);
  selected.reserve(capacity);
  float to_beat = -std::numeric_limits<float>::infinity();
  bool full = false;
  const auto cut = [&] {
    std::nth_element(selected.begin(), selected.begin() + static_cast<ptrdiff_t>(count) - 1,
                     selected.end());
    selected.resize(count);
    to_beat = selected.back().logit;
    full = true;
  };
  for (size_t id = 0; id < logits.size(); ++id) {
    if (full && !(logits[id] > to_beat)) continue;
    if (selected.size() == capacity) {
      cut();
      if (!(logits[id] > to_beat)) continue;
    }
    selected.push_back({logits[id], static_cast<int32_t>(id)});
  }
  if (selected.size() > count) cut();
  std::sort(selected.begin(), selected.end());
}

}  // namespace ultrasketch
