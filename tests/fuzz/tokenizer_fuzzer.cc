// The tokenizer on hostile files and texts. Input: a tokenizer.json, a NUL byte, a text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/strings.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {
namespace {

void CheckDecoding(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const bool skip_special_tokens : {false, true}) {
    const std::string text = tokenizer.Decode(ids, skip_special_tokens);
    US_CHECK(IsValidUtf8(text));
    DetokenizerStream stream(tokenizer, skip_special_tokens);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string piece = stream.Add(id);
      US_CHECK(IsValidUtf8(piece));
      streamed += piece;
    }
    US_CHECK(streamed + stream.Finish() == text);
  }
}

void Fuzz(std::string_view input) {
  const size_t json_end = std::min(input.find('\0'), input.size());
  const auto tokenizer = Tokenizer::Parse(input.substr(0, json_end), "input");
  if (!tokenizer.ok()) return;
  const std::string_view text = input.substr(std::min(json_end + 1, input.size()));
  for (const bool parse_special_tokens : {true, false}) {
    EncodeOptions options;
    options.parse_special_tokens = parse_special_tokens;
    const auto ids = (*tokenizer)->Encode(text, options);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) US_CHECK((*tokenizer)->IdToToken(id).has_value());
    CheckDecoding(**tokenizer, *ids);
  }
  const ByteRange plain_ranges[] = {{0, text.size() / 3}, {text.size() / 2, text.size()}};
  const auto plain_ids = (*tokenizer)->Encode(text, {.plain_ranges = plain_ranges});
  if (plain_ids.ok()) CheckDecoding(**tokenizer, *plain_ids);
  // Any ids can be decoded, those outside the vocabulary too.
  std::vector<int32_t> ids;
  for (const char byte : text) {
    ids.push_back(static_cast<int32_t>((ids.size() * 31 + static_cast<uint8_t>(byte)) %
                                       ((*tokenizer)->vocab_size() + 2)) -
                  1);
  }
  CheckDecoding(**tokenizer, ids);
}

}  // namespace
}  // namespace ultrasketch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ultrasketch::Fuzz(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
