// The "added_tokens" of a tokenizer file: tokens that are found in the text before it is split, and
// that the model never sees.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_ADDED_VOCABULARY_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_ADDED_VOCABULARY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/strings.h"
#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/normalizer.h"
#include "engine/format/tokenizer/regex.h"
#include "engine/format/tokenizer/tokenizer.h"
#include "engine/format/tokenizer/vocabulary.h"

namespace ultrasketch::tokenizer_internal {

struct AddedToken {
  int32_t id;
  std::string content;
  bool single_word;  // only between characters that are no word's
  bool lstrip;       // takes the white space before it along
  bool rstrip;       // takes the white space after it along
  bool normalized;   // looked for in the normalized text, and normalized itself
  bool special;      // not part of the text that the model writes
};

// A set of patterns, and the longest of them at a place in the text.
class PatternTrie {
 public:
  // `pattern` is not empty. Of equal patterns the first added counts.
  void Add(std::string_view pattern, int32_t value);

  struct Match {
    TextRange range;
    int32_t value;
  };
  // Of the matches that `accept` takes the leftmost at or after `from`, and the longest that begins
  // there.
  std::optional<Match> Find(std::string_view text, size_t from,
                            absl::FunctionRef<bool(const Match&)> accept) const;

 private:
  std::array<bool, 256> is_first_byte_ = {};
  absl::flat_hash_map<uint64_t, int32_t> edges_;  // node << 8 | byte -> node; the root is node 0
  std::vector<int32_t> values_ = {-1};            // by node; -1: no pattern ends there
};

// Immutable and thread-safe.
class AddedVocabulary {
 public:
  // `json` is the array, null when there is none; `normalizer` may be null. DATA_LOSS for ids or
  // contents that contradict each other or the model's vocabulary.
  static absl::StatusOr<std::unique_ptr<AddedVocabulary>> FromJson(
      const JsonValue* json, const Vocabulary& model_vocabulary, const Normalizer* normalizer);

  // A part of a text: an added token, or (token null) what lies between added tokens.
  struct Segment {
    TextRange range;
    const AddedToken* token;
  };
  enum class Side { kRaw, kNormalized };
  // Appends the segments of `text`, looking for the tokens that are matched in the raw or in the
  // normalized text. Special tokens are passed over unless `parse_special`; tokens that overlap
  // `plain_ranges` (see EncodeOptions) are no matches.
  void FindSegments(std::string_view text, Side side, bool parse_special,
                    absl::Span<const ByteRange> plain_ranges, std::vector<Segment>* segments) const;

  // Null when no added token has this id.
  const AddedToken* Find(int32_t id) const;
  std::optional<int32_t> FindId(std::string_view content) const;
  // Whether a special token is spelled like this.
  bool IsSpecial(std::string_view content) const { return special_.contains(A(content)); }
  // One more than the largest id; 0 when there are no added tokens.
  int32_t size() const { return size_; }

 private:
  AddedVocabulary() = default;
  absl::Status Add(const JsonValue& json, const Vocabulary& model_vocabulary);
  absl::Status BuildTries(const JsonValue& json, const Normalizer* normalizer);

  std::vector<AddedToken> tokens_;               // in the file's order
  absl::flat_hash_map<int32_t, int32_t> by_id_;  // values are indices of tokens_
  absl::flat_hash_map<std::string, int32_t> by_content_;
  absl::flat_hash_set<std::string> special_;
  PatternTrie raw_;  // values are indices of tokens_
  PatternTrie normalized_;
  int32_t size_ = 0;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_ADDED_VOCABULARY_H_
