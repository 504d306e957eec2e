// The regular expressions of tokenizer files. They are written for Oniguruma (Ruby's syntax), which
// the `tokenizers` library uses, and run here by PCRE2.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_REGEX_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_REGEX_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ultrasketch::tokenizer_internal {

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin;
  size_t end;
};

// The same expression in PCRE2's syntax, for PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE. UNIMPLEMENTED
// for constructs that the two engines treat differently and that are not translated.
absl::StatusOr<std::string> TranslateRegex(std::string_view oniguruma);

// A compiled expression. Immutable and thread-safe.
class Regex {
 public:
  // UNIMPLEMENTED when the expression is malformed or uses something not supported.
  static absl::StatusOr<std::unique_ptr<Regex>> Compile(std::string_view oniguruma);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Appends the successive matches in `text` (well-formed UTF-8), from left to right, without
  // overlaps; an empty match right after another match is passed over. RESOURCE_EXHAUSTED when the
  // expression backtracks without end on this text. CANCELLED between matches, as in EncodeOptions.
  absl::Status FindAll(std::string_view text, std::vector<TextRange>* matches,
                       const std::atomic<bool>* cancelled = nullptr) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_REGEX_H_
