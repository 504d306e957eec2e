// Unicode normalization forms by ICU, in time that does not depend on how the text is arranged.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_NORMALIZATION_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_NORMALIZATION_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch::tokenizer_internal {

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };

// Rewrites `*text`, well-formed UTF-8, and moves `*ranges` of it, ascending and apart from each
// other, to what has become of them, with the characters around them that they affect. O(n log n).
// INTERNAL when ICU fails (out of memory, missing data).
absl::Status NormalizeUnicode(NormalizationForm form, std::string* text,
                              std::vector<ByteRange>* ranges);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_UNICODE_NORMALIZATION_H_
