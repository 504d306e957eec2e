// Chat templates that are hostile, and hostile messages. Input: a template, a NUL byte, a message.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/base/check.h"
#include "engine/base/strings.h"
#include "engine/format/chat/chat_template.h"

namespace ultrasketch {
namespace {

void Fuzz(std::string_view input) {
  const size_t source_end = std::min(input.find('\0'), input.size());
  const auto chat_template =
      ChatTemplate::Parse(input.substr(0, source_end), "input", {{"bos_token", "<s>"}});
  if (!chat_template.ok()) return;
  const std::string content(input.substr(std::min(source_end + 1, input.size())));
  const ChatMessage messages[] = {{"user", content}, {content.substr(0, 4), "Yes."}};
  const auto chat = (*chat_template)->Render(messages);
  if (!chat.ok()) return;
  US_CHECK(IsValidUtf8(chat->text));
  size_t end = 0;
  for (const ByteRange& range : chat->plain_ranges) {
    US_CHECK(range.begin >= end && range.begin < range.end);
    end = range.end;
  }
  US_CHECK(end <= chat->text.size());
}

}  // namespace
}  // namespace ultrasketch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ultrasketch::Fuzz(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
