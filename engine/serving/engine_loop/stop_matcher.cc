#include "engine/serving/engine_loop/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

// What a byte of the spelled text is.
constexpr char kShown = 's';
constexpr char kHiddenFirst = 'f';  // the first of a hidden token
constexpr char kHidden = 'h';

// The length of the longest prefix of `pattern` that ends the text, after one more byte of it.
uint32_t NextPrefix(std::string_view pattern, const std::vector<uint32_t>& border, uint32_t prefix,
                    char byte) {
  while (prefix > 0 && (prefix == pattern.size() || pattern[prefix] != byte)) {
    prefix = border[prefix - 1];
  }
  return pattern[prefix] == byte ? prefix + 1 : 0;
}

bool IsInsideCharacter(std::string_view text, size_t position) {
  return position < text.size() && (static_cast<unsigned char>(text[position]) & 0xC0) == 0x80;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stop, bool include_stop_in_output)
    : include_stop_in_output_(include_stop_in_output) {
  patterns_.reserve(stop.size());
  for (const std::string& text : stop) {
    US_CHECK(!text.empty());
    Pattern pattern{text, std::vector<uint32_t>(text.size(), 0)};
    for (size_t i = 1; i < text.size(); ++i) {
      pattern.border[i] = NextPrefix(text, pattern.border, pattern.border[i - 1], text[i]);
    }
    longest_ = std::max(longest_, text.size());
    patterns_.push_back(std::move(pattern));
  }
}

std::string StopMatcher::Add(std::string_view shown, std::string_view spelled, size_t num_hidden) {
  US_CHECK(!matched() && num_hidden <= spelled.size());
  if (patterns_.empty()) return std::string(shown);
  const Match in_shown = MatchShown(shown);
  const Match in_spelled = MatchSpelled(spelled, num_hidden);
  const auto length = [this](const Match& match) {
    return patterns_[static_cast<size_t>(match.index)].text.size();
  };

  std::string text = std::exchange(held_, {});
  bool is_in_spelled = in_spelled.index >= 0;
  if (is_in_spelled && in_shown.index >= 0) {
    // Both pieces end at the same place: the first match has more behind it.
    const size_t shown_left = shown.size() - in_shown.end;
    const size_t spelled_left = spelled.size() - in_spelled.end;
    is_in_spelled = spelled_left != shown_left ? spelled_left > shown_left
                                               : length(in_spelled) > length(in_shown);
  }
  if (is_in_spelled) {
    held_ = std::move(text);
    held_ += shown;
    const size_t num_ordinary = spelled.size() - num_hidden;
    TakeSpelledMatch(in_spelled, num_ordinary - std::min(num_ordinary, in_spelled.end));
    return std::string();
  }
  if (in_shown.index >= 0) {
    matched_index_ = in_shown.index;
    text += shown.substr(0, in_shown.end);
    if (!include_stop_in_output_) text.resize(text.size() - length(in_shown));
    return text;
  }

  text += shown;
  size_t num_held = 0;
  for (const Pattern& pattern : patterns_) {
    if (!include_stop_in_output_) num_held = std::max<size_t>(num_held, pattern.shown_prefix);
    num_held = std::max(num_held, NumToHold(pattern.spelled_prefix));
  }
  num_held = std::min(num_held, text.size());
  while (num_held < text.size() && IsInsideCharacter(text, text.size() - num_held)) ++num_held;
  held_ = text.substr(text.size() - num_held);
  text.resize(text.size() - num_held);
  return text;
}

StopMatcher::Match StopMatcher::MatchShown(std::string_view text) {
  Match match;
  for (size_t i = 0; i < text.size() && match.index < 0; ++i) {
    size_t length = 0;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      pattern.shown_prefix =
          NextPrefix(pattern.text, pattern.border, pattern.shown_prefix, text[i]);
      if (pattern.shown_prefix < pattern.text.size() || pattern.text.size() <= length) continue;
      length = pattern.text.size();
      match = {static_cast<int>(p), i + 1};
    }
  }
  return match;
}

StopMatcher::Match StopMatcher::MatchSpelled(std::string_view text, size_t num_hidden) {
  const size_t hidden_begin = text.size() - num_hidden;
  Match match;
  for (size_t i = 0; i < text.size() && match.index < 0; ++i) {
    tail_ += i < hidden_begin ? kShown : i == hidden_begin ? kHiddenFirst : kHidden;
    const bool ends_inside = i >= hidden_begin && i + 1 < text.size();
    size_t length = 0;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      pattern.spelled_prefix =
          NextPrefix(pattern.text, pattern.border, pattern.spelled_prefix, text[i]);
      if (pattern.spelled_prefix < pattern.text.size() || pattern.text.size() <= length) continue;
      if (ends_inside || Tail(pattern.text.size()).front() == kHidden) continue;
      length = pattern.text.size();
      match = {static_cast<int>(p), i + 1};
    }
  }
  if (tail_.size() > 2 * longest_ && match.index < 0) tail_.erase(0, tail_.size() - longest_);
  return match;
}

std::string_view StopMatcher::Tail(size_t length) const {
  return std::string_view(tail_).substr(tail_.size() - length);
}

size_t StopMatcher::NumToHold(size_t length) const {
  std::string_view tail = Tail(length);
  if (include_stop_in_output_) {
    tail.remove_prefix(std::min(tail.find(kHiddenFirst), tail.size()));
  }
  return static_cast<size_t>(std::count(tail.begin(), tail.end(), kShown));
}

void StopMatcher::TakeSpelledMatch(const Match& match, size_t num_shown_after) {
  matched_index_ = match.index;
  matched_spelled_ = true;
  const std::string& pattern = patterns_[static_cast<size_t>(match.index)].text;
  num_cut_ = num_shown_after + NumToHold(pattern.size());
  if (include_stop_in_output_) {
    const std::string_view tail = Tail(pattern.size());
    ending_ = pattern.substr(std::min(tail.find(kHiddenFirst), tail.size()));
  }
}

std::string StopMatcher::AddUnmatched(std::string_view text) {
  US_CHECK(!matched());
  for (Pattern& pattern : patterns_) pattern.shown_prefix = pattern.spelled_prefix = 0;
  std::string shown = std::exchange(held_, {});
  shown.append(text);
  return shown;
}

std::string StopMatcher::Finish(std::string_view rest) {
  std::string text = std::exchange(held_, {});
  if (matched() && !matched_spelled_) return text;  // nothing: Add has shown all
  text += rest;
  if (!matched()) return text;
  // Bytes of a character that a hidden token parts are shown as one character, and spelled as two:
  // the cut may miss the border between characters there, never elsewhere.
  size_t size = text.size() - std::min(num_cut_, text.size());
  while (IsInsideCharacter(text, size)) --size;
  text.resize(size);
  return text.append(ending_);
}

}  // namespace ultrasketch
