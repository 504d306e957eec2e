// A string that knows which of its bytes came from outside the template.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_TEXT_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch::chat_internal {

struct Text {
  std::string bytes;                    // UTF-8
  std::vector<ByteRange> plain_ranges;  // what the messages say: ascending, not empty, apart
  // Whether filter "safe" made it: Jinja escapes what is joined to such a string.
  bool is_markup = false;

  // All of `bytes` is plain.
  static Text Plain(std::string bytes);
  static Text Literal(std::string bytes);

  void Append(const Text& other);
  void AppendLiteral(std::string_view other) { bytes += other; }
  // `other`, plain where bytes [begin, end) of `source` are.
  void AppendAs(std::string_view other, const Text& source, size_t begin, size_t end);

  Text Substring(size_t begin, size_t end) const;
  bool HasPlain(size_t begin, size_t end) const;
};

// What Python's str.isspace takes for white space.
bool IsPythonSpace(uint32_t code_point);

// The number of code points.
int64_t NumCodePoints(std::string_view text);

// The offset of each code point, and the size of the text.
std::vector<size_t> CodePointOffsets(std::string_view text);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_TEXT_H_
