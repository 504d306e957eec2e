#include "engine/format/chat/jinja_lexer.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/chat/text.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::chat_internal {
namespace {

using tokenizer_internal::AppendUtf8;
using tokenizer_internal::LastCodePoint;
using tokenizer_internal::NextCodePoint;

bool IsOpener(char c) { return c == '{' || c == '%' || c == '#'; }
bool IsNameCharacter(char c) { return absl::ascii_isalnum(c) || c == '_'; }

size_t SkipSpace(std::string_view text, size_t position) {
  while (position < text.size()) {
    size_t next = position;
    if (!IsPythonSpace(NextCodePoint(text, &next))) break;
    position = next;
  }
  return position;
}

size_t TrailingSpaceBegin(std::string_view text) {
  while (!text.empty()) {
    size_t length;
    if (!IsPythonSpace(LastCodePoint(text, &length))) break;
    text.remove_suffix(length);
  }
  return text.size();
}

class Lexer {
 public:
  explicit Lexer(const Source& source) : source_(source), text_(source.text) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (position_ < text_.size()) US_RETURN_IF_ERROR(LexDataAndTag());
    Add(Token::Kind::kEnd, text_.size());
    return std::move(tokens_);
  }

 private:
  absl::Status Error(size_t offset, std::string_view message) const {
    return source_.Error(absl::StatusCode::kInvalidArgument, offset, message);
  }
  absl::Status Unimplemented(size_t offset, std::string_view message) const {
    return source_.Error(absl::StatusCode::kUnimplemented, offset, message);
  }
  void Add(Token::Kind kind, size_t offset, std::string text = {}) {
    tokens_.push_back({kind, offset, std::move(text)});
  }
  bool At(std::string_view expected) const { return text_.substr(position_).starts_with(expected); }

  // The text up to the next tag or the end, and that tag.
  absl::Status LexDataAndTag() {
    size_t tag = text_.find('{', position_);
    while (tag != std::string_view::npos &&
           (tag + 1 == text_.size() || !IsOpener(text_[tag + 1]))) {
      tag = text_.find('{', tag + 1);
    }
    if (tag == std::string_view::npos) {
      Add(Token::Kind::kData, position_, std::string(text_.substr(position_)));
      position_ = text_.size();
      return absl::OkStatus();
    }
    const char opener = text_[tag + 1];
    const char sign = tag + 2 < text_.size() ? text_[tag + 2] : ' ';
    std::string_view data = text_.substr(position_, tag - position_);
    if (sign == '-') {
      data = data.substr(0, TrailingSpaceBegin(data));
    } else if (sign != '+' && opener != '{') {  // lstrip_blocks
      const size_t line_begin = data.rfind('\n') + 1;
      const bool is_line_start = line_begin > 0 || is_line_start_;
      if (is_line_start && TrailingSpaceBegin(data) <= line_begin)
        data = data.substr(0, line_begin);
    }
    if (!data.empty()) Add(Token::Kind::kData, position_, std::string(data));
    position_ = tag + (sign == '-' || sign == '+' ? 3 : 2);
    is_line_start_ = false;
    if (opener == '#') return SkipComment(tag);
    Add(opener == '%' ? Token::Kind::kBlockBegin : Token::Kind::kPrintBegin, tag);
    return LexTag(tag, opener == '%');
  }

  absl::Status SkipComment(size_t tag) {
    const size_t end = text_.find("#}", position_);
    if (end == std::string_view::npos) return Error(tag, "comment is not closed by \"#}\"");
    const char sign = end > position_ ? text_[end - 1] : ' ';
    position_ = end + 2;
    SkipAfterTag(sign, true);
    return absl::OkStatus();
  }

  // What the sign at the end of a tag and trim_blocks take along.
  void SkipAfterTag(char sign, bool trims_newline) {
    if (sign == '-') {
      position_ = SkipSpace(text_, position_);
    } else if (sign != '+' && trims_newline && At("\n")) {
      ++position_;
    }
    is_line_start_ = text_[position_ - 1] == '\n';
  }

  // The tokens of a tag that is open, and its end.
  absl::Status LexTag(size_t tag, bool is_block) {
    const std::string_view end = is_block ? "%}" : "}}";
    std::vector<char> expected_closers;
    while (position_ < text_.size()) {
      if (expected_closers.empty()) {
        const char c = text_[position_];
        const bool has_sign =
            (c == '-' || (c == '+' && is_block)) && text_.substr(position_ + 1).starts_with(end);
        if (has_sign || At(end)) {
          Add(is_block ? Token::Kind::kBlockEnd : Token::Kind::kPrintEnd, position_);
          position_ += has_sign ? 3 : 2;
          SkipAfterTag(has_sign ? c : ' ', is_block);
          return absl::OkStatus();
        }
      }
      const size_t next = SkipSpace(text_, position_);
      if (next > position_) {
        position_ = next;
      } else {
        US_RETURN_IF_ERROR(LexToken(&expected_closers));
      }
    }
    return Error(tag, absl::StrCat("tag is not closed by ", Quoted(end)));
  }

  absl::Status LexToken(std::vector<char>* expected_closers) {
    const char c = text_[position_];
    if (absl::ascii_isdigit(c)) return LexNumber();
    if (IsNameCharacter(c)) {
      const size_t begin = position_;
      while (position_ < text_.size() && IsNameCharacter(text_[position_])) ++position_;
      Add(Token::Kind::kName, begin, std::string(text_.substr(begin, position_ - begin)));
      return absl::OkStatus();
    }
    if (c == '\'' || c == '"') return LexString(c);
    return LexOperator(expected_closers);
  }

  absl::Status LexNumber() {
    const size_t begin = position_;
    const auto skip_digits = [this] {
      while (position_ < text_.size() && absl::ascii_isdigit(text_[position_])) ++position_;
    };
    const auto is_digit = [this](size_t i) {
      return i < text_.size() && absl::ascii_isdigit(text_[i]);
    };
    skip_digits();
    bool is_real = false;
    const bool follows_dot = begin > 0 && text_[begin - 1] == '.';  // an index: a.0.1
    if (!follows_dot && At(".") && is_digit(position_ + 1)) {
      is_real = true;
      ++position_;
      skip_digits();
    }
    const std::string_view spelling = text_.substr(begin, position_ - begin);
    const bool has_leading_zero = !is_real && spelling.size() > 1 && spelling[0] == '0';
    if (has_leading_zero || (position_ < text_.size() && IsNameCharacter(text_[position_]))) {
      return Unimplemented(begin, "only decimal numbers without exponent are supported");
    }
    Token token{is_real ? Token::Kind::kFloat : Token::Kind::kInteger, begin,
                std::string(spelling)};
    const char* const end = spelling.data() + spelling.size();
    const std::errc error = is_real ? std::from_chars(spelling.data(), end, token.real).ec
                                    : std::from_chars(spelling.data(), end, token.integer).ec;
    if (error != std::errc()) return Unimplemented(begin, "number is out of range");
    tokens_.push_back(std::move(token));
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    const size_t begin = position_++;
    std::string value;
    while (position_ < text_.size() && text_[position_] != quote) {
      if (text_[position_] == '\\') {
        US_RETURN_IF_ERROR(LexEscape(&value));
      } else {
        value += text_[position_++];
      }
    }
    if (position_ >= text_.size()) return Error(begin, "string is not closed");
    ++position_;
    Add(Token::Kind::kString, begin, std::move(value));
    return absl::OkStatus();
  }

  // Python's escapes.
  absl::Status LexEscape(std::string* value) {
    const size_t begin = position_++;
    if (position_ >= text_.size()) return Error(begin, "string is not closed");
    const char c = text_[position_++];
    constexpr std::string_view kFrom = "abfnrtv\\'\"";
    constexpr std::string_view kTo = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t i = kFrom.find(c); i != std::string_view::npos) {
      *value += kTo[i];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      return LexCodePoint(begin, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, value);
    } else if (c >= '0' && c <= '7') {
      --position_;
      size_t num_digits = 1;
      while (num_digits < 3 && position_ + num_digits < text_.size() &&
             text_[position_ + num_digits] >= '0' && text_[position_ + num_digits] <= '7') {
        ++num_digits;
      }
      return LexCodePoint(begin, num_digits, 8, value);
    } else if (c == 'N' || static_cast<uint8_t>(c) >= 0x80) {
      return Unimplemented(begin, "this escape is not supported");
    } else if (c != '\n') {
      *value += '\\';
      *value += c;
    }
    return absl::OkStatus();
  }

  absl::Status LexCodePoint(size_t begin, size_t num_digits, int base, std::string* value) {
    const std::string_view digits = text_.substr(position_, num_digits);
    uint32_t code_point = 0;
    const auto parsed =
        std::from_chars(digits.data(), digits.data() + digits.size(), code_point, base);
    if (digits.size() < num_digits || parsed.ec != std::errc() ||
        parsed.ptr != digits.data() + num_digits || code_point > 0x10ffff) {
      return Error(begin, absl::StrCat("escape without ", num_digits, " digits of a code point"));
    }
    if (code_point >= 0xd800 && code_point < 0xe000) {
      return Unimplemented(begin, "surrogates in strings are not supported");
    }
    AppendUtf8(code_point, value);
    position_ += num_digits;
    return absl::OkStatus();
  }

  absl::Status LexOperator(std::vector<char>* expected_closers) {
    constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                               "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                               ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!At(op)) continue;
      if (op == "(" || op == "[" || op == "{") {
        expected_closers->push_back(op == "(" ? ')' : op == "[" ? ']' : '}');
      } else if (op == ")" || op == "]" || op == "}") {
        if (expected_closers->empty() || expected_closers->back() != op[0]) {
          return Error(position_, absl::StrCat("unexpected ", Quoted(op)));
        }
        expected_closers->pop_back();
      }
      Add(Token::Kind::kOperator, position_, std::string(op));
      position_ += op.size();
      return absl::OkStatus();
    }
    if (static_cast<uint8_t>(text_[position_]) >= 0x80) {
      return Unimplemented(position_, "names outside ASCII are not supported");
    }
    return Error(position_, absl::StrCat("unexpected ", Quoted(text_.substr(position_, 1))));
  }

  const Source& source_;
  const std::string_view text_;
  size_t position_ = 0;
  bool is_line_start_ = true;  // the last tag took the end of its line along
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status Source::Error(absl::StatusCode code, size_t offset, std::string_view message) const {
  const std::string_view before = std::string_view(text).substr(0, offset);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const int64_t column = 1 + NumCodePoints(before.substr(before.rfind('\n') + 1));
  return absl::Status(code, absl::StrCat(name, ":", line, ":", column, ": ", A(message)));
}

Source MakeSource(std::string_view text, std::string_view name) {
  Source source;
  source.name = name;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_return = text[i] == '\r';
    source.text += is_return ? '\n' : text[i];
    if (is_return && i + 1 < text.size() && text[i + 1] == '\n') ++i;
  }
  if (source.text.ends_with('\n')) source.text.pop_back();
  return source;
}

absl::StatusOr<std::vector<Token>> Tokenize(const Source& source) { return Lexer(source).Run(); }

}  // namespace ultrasketch::chat_internal
