// The "pattern" of Split and Replace: a string or a regular expression.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PATTERN_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PATTERN_H_

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/regex.h"

namespace ultrasketch::tokenizer_internal {

// Immutable and thread-safe.
class Pattern {
 public:
  // From {"String": s} or {"Regex": r}. An error names the place in the file.
  static absl::StatusOr<Pattern> FromJson(const JsonValue& json);

  // Matches `literal`, which is not empty.
  static Pattern Literal(std::string literal);
  static absl::StatusOr<Pattern> FromRegex(std::string_view oniguruma);

  // Replaces the contents of `matches` by the matches in `text`, as in Regex::FindAll. An empty
  // text has none, whatever the pattern.
  absl::Status FindAll(std::string_view text, std::vector<TextRange>* matches,
                       const std::atomic<bool>* cancelled = nullptr) const;

  // Writes `text` with `content` in the place of every match; `matches` are FindAll's.
  // RESOURCE_EXHAUSTED when the result would pass kMaxTextBytes.
  absl::StatusOr<std::string> ReplaceAll(std::string_view text, std::string_view content,
                                         std::vector<TextRange>* matches) const;

  // The literal to match; empty when the pattern is a regular expression.
  const std::string& literal() const { return literal_; }

 private:
  Pattern() = default;

  std::string literal_;
  std::unique_ptr<Regex> regex_;
};

// What a text may grow to while it is normalized.
inline constexpr size_t kMaxTextBytes = size_t{1} << 30;

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_PATTERN_H_
