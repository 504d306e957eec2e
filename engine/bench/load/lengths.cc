#include "engine/bench/load/lengths.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include "engine/base/file.h"
#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 28;

absl::Status Unusable(std::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("length ", A(Quoted(text)),
                   ": expected N, A:B with A at most B, lognormal:MEDIAN:SIGMA:MAX or file:PATH, "
                   "with numbers of tokens from 1 to ",
                   kMaxLoadTokens));
}

bool ParseTokens(absl::string_view text, int64_t& tokens) {
  return absl::SimpleAtoi(text, &tokens) && tokens >= 1 && tokens <= kMaxLoadTokens;
}

absl::StatusOr<std::vector<int64_t>> ReadList(const std::string& path) {
  US_ASSIGN_OR_RETURN(const std::string contents, ReadFile(path, kMaxFileBytes));
  std::vector<int64_t> list;
  int64_t line_number = 0;
  for (const absl::string_view line : absl::StrSplit(contents, '\n')) {
    ++line_number;
    const absl::string_view word = absl::StripAsciiWhitespace(line);
    if (word.empty()) continue;
    int64_t tokens = 0;
    if (!ParseTokens(word, tokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", line_number, ": expected a number of tokens from 1 to ",
                       kMaxLoadTokens, ", found ", A(Quoted(S(word)))));
    }
    list.push_back(tokens);
  }
  if (list.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected numbers of tokens, a line each, found none"));
  }
  return list;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(std::string_view text) {
  LengthDistribution result;
  absl::string_view rest = A(text);
  if (absl::ConsumePrefix(&rest, "file:")) {
    result.kind_ = Kind::kList;
    US_ASSIGN_OR_RETURN(result.list_, ReadList(std::string(rest)));
    result.longest_ = *std::max_element(result.list_.begin(), result.list_.end());
    return result;
  }
  if (absl::ConsumePrefix(&rest, "lognormal:")) {
    result.kind_ = Kind::kLognormal;
    const std::vector<absl::string_view> parts = absl::StrSplit(rest, ':');
    if (parts.size() != 3 || !absl::SimpleAtod(parts[0], &result.median_) ||
        !(result.median_ >= 1 && result.median_ <= static_cast<double>(kMaxLoadTokens)) ||
        !absl::SimpleAtod(parts[1], &result.sigma_) ||
        !(result.sigma_ >= 0 && result.sigma_ <= 10) || !ParseTokens(parts[2], result.longest_)) {
      return Unusable(text);
    }
    return result;
  }
  const std::pair<absl::string_view, absl::string_view> ends =
      absl::StrSplit(rest, absl::MaxSplits(':', 1));
  const bool is_range = absl::StrContains(rest, ":");
  if (!ParseTokens(ends.first, result.shortest_) ||
      !ParseTokens(is_range ? ends.second : ends.first, result.longest_) ||
      result.shortest_ > result.longest_) {
    return Unusable(text);
  }
  return result;
}

LengthDistribution LengthDistribution::Fixed(int64_t tokens) {
  LengthDistribution result;
  result.shortest_ = result.longest_ = tokens;
  return result;
}

int64_t LengthDistribution::Draw(uint64_t seed, uint64_t stream, uint64_t index) const {
  switch (kind_) {
    case Kind::kList:
      return list_[index % list_.size()];
    case Kind::kLognormal: {
      const double tokens = median_ * std::exp(sigma_ * NormalDouble(seed, stream, index));
      return std::llround(std::clamp(tokens, 1.0, static_cast<double>(longest_)));
    }
    case Kind::kUniform:
      break;
  }
  const double width = static_cast<double>(longest_ - shortest_ + 1);
  return shortest_ + static_cast<int64_t>(UniformDouble(seed, stream, index) * width);
}

}  // namespace ultrasketch
