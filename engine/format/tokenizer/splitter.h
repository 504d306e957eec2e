// Cutting pieces of text at the matches of a pattern.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_SPLITTER_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_SPLITTER_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/regex.h"

namespace ultrasketch::tokenizer_internal {

// What becomes of a match.
enum class SplitBehavior {
  kRemoved,             // dropped
  kIsolated,            // a piece of its own
  kMergedWithPrevious,  // the end of the piece before it
  kMergedWithNext,      // the beginning of the piece after it
  kContiguous,          // one piece with the matches next to it
};

// From a string, in the spellings of tokenizer files ("Removed", ...).
absl::StatusOr<SplitBehavior> SplitBehaviorFromJson(const JsonValue& json);

// Appends to `pieces` the pieces of [begin, end) of a text, given the successive matches in that
// part (`matches`, relative to `begin`). With `invert`, what lies between the matches is cut at
// instead.
void SplitAtMatches(size_t begin, size_t end, const std::vector<TextRange>& matches,
                    SplitBehavior behavior, bool invert, std::vector<TextRange>* pieces);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_SPLITTER_H_
