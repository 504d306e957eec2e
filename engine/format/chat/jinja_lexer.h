// Cuts a Jinja template into tokens, as jinja2 3.1 does with trim_blocks and lstrip_blocks.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_LEXER_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_LEXER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ultrasketch::chat_internal {

// Where errors are. Offsets are bytes of `text`.
struct Source {
  std::string name;  // stands before line and column in messages
  std::string text;  // with "\n" line ends, without the last of them

  // "NAME:LINE:COLUMN: message", both counted from 1, columns in code points.
  absl::Status Error(absl::StatusCode code, size_t offset, std::string_view message) const;
};

// `text` with line ends as jinja2 reads them.
Source MakeSource(std::string_view text, std::string_view name);

struct Token {
  enum class Kind {
    kData,        // text between tags, white space stripped already
    kBlockBegin,  // {%
    kBlockEnd,
    kPrintBegin,  // {{
    kPrintEnd,
    kName,
    kString,  // `text` is what it means
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind;
  size_t offset;
  std::string text;
  int64_t integer = 0;
  double real = 0;
};

// The tokens of all of the source, kEnd at last. INVALID_ARGUMENT for a syntax error, UNIMPLEMENTED
// for what is not supported (raw blocks, names outside ASCII).
absl::StatusOr<std::vector<Token>> Tokenize(const Source& source);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_LEXER_H_
