#include "engine/format/chat/text.h"

#include <algorithm>
#include <utility>

#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::chat_internal {
namespace {

void AddRange(size_t begin, size_t end, std::vector<ByteRange>* ranges) {
  if (begin == end) return;
  if (!ranges->empty() && ranges->back().end == begin) {
    ranges->back().end = end;
  } else {
    ranges->push_back({begin, end});
  }
}

// The first range that ends after `offset`.
std::vector<ByteRange>::const_iterator FirstAfter(const std::vector<ByteRange>& ranges,
                                                  size_t offset) {
  return std::upper_bound(ranges.begin(), ranges.end(), offset,
                          [](size_t value, const ByteRange& range) { return value < range.end; });
}

}  // namespace

Text Text::Plain(std::string bytes) {
  Text text = Literal(std::move(bytes));
  AddRange(0, text.bytes.size(), &text.plain_ranges);
  return text;
}

Text Text::Literal(std::string bytes) {
  Text text;
  text.bytes = std::move(bytes);
  return text;
}

void Text::Append(const Text& other) {
  const size_t offset = bytes.size();
  for (const ByteRange& range : other.plain_ranges) {
    AddRange(offset + range.begin, offset + range.end, &plain_ranges);
  }
  bytes += other.bytes;
}

void Text::AppendAs(std::string_view other, const Text& source, size_t begin, size_t end) {
  const size_t offset = bytes.size();
  bytes += other;
  if (source.HasPlain(begin, end)) AddRange(offset, bytes.size(), &plain_ranges);
}

Text Text::Substring(size_t begin, size_t end) const {
  Text part = Literal(bytes.substr(begin, end - begin));
  for (auto range = FirstAfter(plain_ranges, begin);
       range != plain_ranges.end() && range->begin < end; ++range) {
    AddRange(std::max(range->begin, begin) - begin, std::min(range->end, end) - begin,
             &part.plain_ranges);
  }
  return part;
}

bool Text::HasPlain(size_t begin, size_t end) const {
  const auto range = FirstAfter(plain_ranges, begin);
  return range != plain_ranges.end() && range->begin < end;
}

bool IsPythonSpace(uint32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0d) || (code_point >= 0x1c && code_point <= 0x20) ||
         code_point == 0x85 || code_point == 0xa0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200a) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202f || code_point == 0x205f ||
         code_point == 0x3000;
}

int64_t NumCodePoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char byte) { return (static_cast<uint8_t>(byte) & 0xc0) != 0x80; });
}

std::vector<size_t> CodePointOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size(); i += tokenizer_internal::Utf8Length(text[i])) {
    offsets.push_back(i);
  }
  offsets.push_back(text.size());
  return offsets;
}

}  // namespace ultrasketch::chat_internal
