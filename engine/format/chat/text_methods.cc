#include "engine/format/chat/text_methods.h"

#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "unicode/ucasemap.h"

#include "engine/base/status.h"
#include "engine/format/chat/jinja_builtins.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::chat_internal {
namespace {

using tokenizer_internal::LastCodePoint;
using tokenizer_internal::NextCodePoint;

bool IsAscii(std::string_view text) {
  for (const char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) return false;
  }
  return true;
}

// How often at most, from the argument at `index`; negative is no limit.
absl::StatusOr<int64_t> MaxCount(const std::vector<Value>& arguments, size_t index) {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  if (index >= arguments.size() || IsNone(arguments[index])) return kNoLimit;
  const auto* count = std::get_if<int64_t>(&arguments[index]);
  if (count == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a count, found ", A(DescribeKind(arguments[index]))));
  }
  return *count < 0 ? kNoLimit : *count;
}

using CaseFunction = int32_t(const UCaseMap*, char*, int32_t, const char*, int32_t, UErrorCode*);

// The mapping of Unicode, without a language. What was plain in part is plain as a whole: one
// character may become several.
absl::StatusOr<Text> MapCase(const Text& text, CaseFunction* function) {
  UErrorCode error = U_ZERO_ERROR;
  UCaseMap* map = ucasemap_open("", 0, &error);
  std::string mapped(3 * text.bytes.size() + 16, '\0');
  const int32_t size = function(map, mapped.data(), static_cast<int32_t>(mapped.size()),
                                text.bytes.data(), static_cast<int32_t>(text.bytes.size()), &error);
  ucasemap_close(map);
  if (U_FAILURE(error)) return absl::InternalError(u_errorName(error));
  mapped.resize(static_cast<size_t>(size));
  return text.plain_ranges.empty() ? Text::Literal(std::move(mapped))
                                   : Text::Plain(std::move(mapped));
}

absl::StatusOr<Value> SplitAtSpace(const Text& text) {
  std::vector<Value> parts;
  size_t part_begin = 0;
  for (size_t position = 0; position <= text.bytes.size();) {
    size_t next = position;
    const bool ends =
        position == text.bytes.size() || IsPythonSpace(NextCodePoint(text.bytes, &next));
    if (ends) {
      if (part_begin < position) parts.push_back(MakeText(text.Substring(part_begin, position)));
      part_begin = next;
    }
    position = ends && position == text.bytes.size() ? position + 1 : next;
  }
  return MakeList(List::Kind::kList, std::move(parts));
}

}  // namespace

absl::StatusOr<Text> Strip(const Text& text, const std::vector<Value>& arguments,
                           StripSides sides) {
  std::vector<uint32_t> characters;
  const bool strips_space = arguments.empty() || IsNone(arguments[0]);
  if (!strips_space) {
    US_ASSIGN_OR_RETURN(const Text* set, PlainText(arguments[0], "characters to strip"));
    for (size_t i = 0; i < set->bytes.size();) characters.push_back(NextCodePoint(set->bytes, &i));
  }
  const auto is_stripped = [&](uint32_t code_point) {
    if (strips_space) return IsPythonSpace(code_point);
    for (const uint32_t character : characters) {
      if (character == code_point) return true;
    }
    return false;
  };
  size_t begin = 0;
  size_t end = text.bytes.size();
  while (sides != StripSides::kRight && begin < end) {
    size_t next = begin;
    if (!is_stripped(NextCodePoint(text.bytes, &next))) break;
    begin = next;
  }
  while (sides != StripSides::kLeft && begin < end) {
    size_t length;
    if (!is_stripped(LastCodePoint(std::string_view(text.bytes).substr(0, end), &length))) break;
    end -= length;
  }
  return text.Substring(begin, end);
}

absl::StatusOr<Text> Replace(const Text& text, const std::vector<Value>& arguments) {
  US_ASSIGN_OR_RETURN(const Text* from, PlainText(arguments[0], "what to replace"));
  US_ASSIGN_OR_RETURN(const Text* to, PlainText(arguments[1], "what to replace it by"));
  US_ASSIGN_OR_RETURN(int64_t count, MaxCount(arguments, 2));
  if (from->bytes.empty()) {
    return absl::UnimplementedError("replacing an empty string is not supported");
  }
  Text replaced;
  size_t begin = 0;
  while (count-- > 0) {
    const size_t found = text.bytes.find(from->bytes, begin);
    if (found == std::string::npos) break;
    replaced.Append(text.Substring(begin, found));
    replaced.Append(*to);
    begin = found + from->bytes.size();
    US_RETURN_IF_ERROR(CheckTextSize(replaced.bytes.size()));
  }
  replaced.Append(text.Substring(begin, text.bytes.size()));
  return replaced;
}

absl::StatusOr<Value> Split(const Text& text, const std::vector<Value>& arguments) {
  if (arguments.empty()) return SplitAtSpace(text);
  US_ASSIGN_OR_RETURN(const Text* separator, PlainText(arguments[0], "a separator"));
  US_ASSIGN_OR_RETURN(int64_t count, MaxCount(arguments, 1));
  if (separator->bytes.empty()) return absl::InvalidArgumentError("the separator is empty");
  std::vector<Value> parts;
  size_t begin = 0;
  while (count-- > 0) {
    const size_t found = text.bytes.find(separator->bytes, begin);
    if (found == std::string::npos) break;
    parts.push_back(MakeText(text.Substring(begin, found)));
    begin = found + separator->bytes.size();
  }
  parts.push_back(MakeText(text.Substring(begin, text.bytes.size())));
  return MakeList(List::Kind::kList, std::move(parts));
}

absl::StatusOr<Text> Upper(const Text& text) {
  if (!IsAscii(text.bytes)) return MapCase(text, ucasemap_utf8ToUpper);
  Text upper = text;
  absl::AsciiStrToUpper(&upper.bytes);
  return upper;
}

absl::StatusOr<Text> Lower(const Text& text) {
  if (!IsAscii(text.bytes)) return MapCase(text, ucasemap_utf8ToLower);
  Text lower = text;
  absl::AsciiStrToLower(&lower.bytes);
  return lower;
}

absl::StatusOr<Text> Capitalize(const Text& text) {
  if (!IsAscii(text.bytes)) {
    return absl::UnimplementedError("\"capitalize\" is supported for ASCII");
  }
  US_ASSIGN_OR_RETURN(Text capitalized, Lower(text));
  if (!text.bytes.empty()) capitalized.bytes[0] = absl::ascii_toupper(text.bytes[0]);
  return capitalized;
}

}  // namespace ultrasketch::chat_internal
