#include "engine/serving/engine_loop/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

// The length of the longest prefix of `pattern` that ends the text, after one more byte of it.
uint32_t NextState(std::string_view pattern, const std::vector<uint32_t>& border, uint32_t state,
                   char byte) {
  while (state > 0 && pattern[state] != byte) state = border[state - 1];
  return pattern[state] == byte ? state + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stop, bool include_stop_in_output)
    : include_stop_in_output_(include_stop_in_output) {
  patterns_.reserve(stop.size());
  for (const std::string& text : stop) {
    US_CHECK(!text.empty());
    Pattern pattern{text, std::vector<uint32_t>(text.size(), 0), 0};
    for (size_t i = 1; i < text.size(); ++i) {
      pattern.border[i] = NextState(text, pattern.border, pattern.border[i - 1], text[i]);
    }
    patterns_.push_back(std::move(pattern));
  }
}

std::string StopMatcher::Add(std::string_view text) {
  US_CHECK(!matched());
  for (size_t i = 0; i < text.size(); ++i) {
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      pattern.num_matched = NextState(pattern.text, pattern.border, pattern.num_matched, text[i]);
      if (pattern.num_matched < pattern.text.size()) continue;
      if (!matched() ||
          pattern.text.size() > patterns_[static_cast<size_t>(matched_index_)].text.size()) {
        matched_index_ = static_cast<int>(p);
      }
    }
    if (matched()) {
      std::string shown = std::exchange(held_, {});
      shown.append(text.substr(0, i + 1));
      if (!include_stop_in_output_) {
        shown.resize(shown.size() - patterns_[static_cast<size_t>(matched_index_)].text.size());
      }
      return shown;
    }
  }

  std::string shown = std::exchange(held_, {});
  shown.append(text);
  if (!include_stop_in_output_) {
    size_t num_held = 0;
    for (const Pattern& pattern : patterns_) {
      num_held = std::max<size_t>(num_held, pattern.num_matched);
    }
    held_ = shown.substr(shown.size() - num_held);
    shown.resize(shown.size() - num_held);
  }
  return shown;
}

std::string StopMatcher::AddUnmatched(std::string_view text) {
  US_CHECK(!matched());
  for (Pattern& pattern : patterns_) pattern.num_matched = 0;
  std::string shown = std::exchange(held_, {});
  shown.append(text);
  return shown;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace ultrasketch
