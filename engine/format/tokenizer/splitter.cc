#include "engine/format/tokenizer/splitter.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// A part of the text, matching or between matches. Only matches can be empty.
struct Span {
  TextRange range;
  bool is_match;
};

// The spans that cover [begin, end).
std::vector<Span> Spans(size_t begin, size_t end, const std::vector<TextRange>& matches,
                        bool invert) {
  std::vector<Span> spans;
  spans.reserve(2 * matches.size() + 1);
  size_t covered_end = begin;
  for (const TextRange& match : matches) {
    const TextRange range{begin + match.begin, begin + match.end};
    if (covered_end < range.begin) spans.push_back({{covered_end, range.begin}, invert});
    spans.push_back({range, !invert});
    covered_end = range.end;
  }
  if (covered_end < end) spans.push_back({{covered_end, end}, invert});
  return spans;
}

}  // namespace

absl::StatusOr<SplitBehavior> SplitBehaviorFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const std::string behavior, json.String());
  constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  };
  for (const auto& [name, value] : kBehaviors) {
    if (behavior == name) return value;
  }
  return json.DataLoss(absl::StrCat("unknown split behavior ", Quoted(behavior)));
}

void SplitAtMatches(size_t begin, size_t end, const std::vector<TextRange>& matches,
                    SplitBehavior behavior, bool invert, std::vector<TextRange>* pieces) {
  const std::vector<Span> spans = Spans(begin, end, matches, invert);
  const auto append = [pieces](const TextRange& range) {
    if (range.begin < range.end) pieces->push_back(range);
  };
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Span& span : spans) {
        if (!span.is_match) append(span.range);
      }
      return;
    case SplitBehavior::kIsolated:
      for (const Span& span : spans) append(span.range);
      return;
    case SplitBehavior::kMergedWithPrevious:
    case SplitBehavior::kMergedWithNext:
    case SplitBehavior::kContiguous:
      break;
  }
  // Adjacent spans `left` and `right` stay together. The first of several matches in a row is the
  // one that is merged, counted from the side that it is merged to.
  const auto joined = [behavior](bool left_is_match, bool right_is_match) {
    switch (behavior) {
      case SplitBehavior::kMergedWithPrevious:
        return !left_is_match && right_is_match;
      case SplitBehavior::kMergedWithNext:
        return left_is_match && !right_is_match;
      default:
        return left_is_match == right_is_match;
    }
  };
  for (size_t i = 0; i < spans.size();) {
    TextRange range = spans[i].range;
    size_t next = i + 1;
    while (next < spans.size() && joined(spans[next - 1].is_match, spans[next].is_match)) {
      range.end = spans[next].range.end;
      ++next;
    }
    append(range);
    i = next;
  }
}

}  // namespace ultrasketch::tokenizer_internal
