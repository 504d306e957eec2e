#include "engine/bench/load/metrics_delta.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include "engine/base/strings.h"

namespace ultrasketch {

Counters ParseCounters(std::string_view page) {
  Counters counters;
  for (absl::string_view line : absl::StrSplit(A(page), '\n')) {
    line = absl::StripSuffix(line, "\r");
    if (line.empty() || line.front() == '#') continue;
    // Labels may have spaces within.
    const size_t labels_end = line.rfind('}');
    const size_t space = line.find(' ', labels_end == absl::string_view::npos ? 0 : labels_end);
    if (space == absl::string_view::npos) continue;
    const std::string_view sample = S(line.substr(0, space));
    const std::string_view name = sample.substr(0, sample.find('{'));
    const absl::string_view value = line.substr(space + 1);
    double number = 0;
    if ((name.ends_with("_total") || name.ends_with("_sum") || name.ends_with("_count")) &&
        absl::SimpleAtod(value.substr(0, value.find(' ')), &number) && std::isfinite(number)) {
      counters[std::string(sample)] = number;
    }
  }
  return counters;
}

Counters AddedBetween(const Counters& before, const Counters& after) {
  Counters added;
  for (const auto& [sample, value] : after) {
    const auto begin = before.find(sample);
    const double growth = value - (begin == before.end() ? 0 : begin->second);
    if (growth > 0) added[sample] = growth;
  }
  return added;
}

}  // namespace ultrasketch
