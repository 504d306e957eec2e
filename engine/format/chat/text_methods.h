// Methods of Python's str on texts that keep track of what is plain.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_TEXT_METHODS_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_TEXT_METHODS_H_

#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/chat/jinja_value.h"

namespace ultrasketch::chat_internal {

enum class StripSides { kLeft, kRight, kBoth };

// `arguments`: none or one, the characters to strip instead of white space.
absl::StatusOr<Text> Strip(const Text& text, const std::vector<Value>& arguments, StripSides sides);

// `arguments`: old, new and, perhaps, how often at most.
absl::StatusOr<Text> Replace(const Text& text, const std::vector<Value>& arguments);

// A list. `arguments`: nothing (at white space), or a separator and, perhaps, how often at most.
absl::StatusOr<Value> Split(const Text& text, const std::vector<Value>& arguments);

absl::StatusOr<Text> Upper(const Text& text);
absl::StatusOr<Text> Lower(const Text& text);
// UNIMPLEMENTED outside ASCII.
absl::StatusOr<Text> Capitalize(const Text& text);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_TEXT_METHODS_H_
