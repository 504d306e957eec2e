#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "unicode/uchar.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/regex.h"
#include "engine/format/tokenizer/unicode_additions.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// Contents of character classes. White space is spelled out because PCRE2's \s has U+180E too; the
// complement because a class cannot hold a negated class.
constexpr std::string_view kSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";

// The contents of \w: PCRE2's has no marks, and every number.
std::string WordContents() {
  return absl::StrCat(R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})", AddedRanges("L"), AddedRanges("M"),
                      AddedRanges("Nd"));
}

struct PosixClass {
  std::string_view name;
  std::string_view contents;
};
constexpr PosixClass kPosixClasses[] = {
    {"alpha", R"(\p{Alphabetic})"}, {"digit", R"(\p{Nd})"}, {"alnum", R"(\p{Alphabetic}\p{Nd})"},
    {"upper", R"(\p{Uppercase})"},  {"space", kSpace},      {"lower", R"(\p{Lowercase})"},
    {"punct", R"(\p{P}\p{S})"},     {"xdigit", kHexDigit},
};

// The general categories that go by a long name in tokenizer files.
constexpr std::pair<std::string_view, std::string_view> kLongCategoryNames[] = {
    {"letter", "L"},
    {"mark", "M"},
    {"number", "N"},
    {"punctuation", "P"},
    {"symbol", "S"},
    {"separator", "Z"},
    {"other", "C"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"alpha", "Alphabetic"},
    {"digit", "Nd"},
    {"any", "Any"},
};

// The name that PCRE2 gives to Oniguruma's property `name`. Other names are passed through for
// PCRE2 to accept or to refuse.
std::string PropertyName(std::string_view name) {
  std::string folded;
  for (const char c : name) {
    if (c != ' ' && c != '_' && c != '-') folded += absl::ascii_tolower(c);
  }
  if (folded.size() <= 2 && !folded.empty()) {
    folded[0] = absl::ascii_toupper(folded[0]);
    return folded;
  }
  for (const auto& [long_name, short_name] : kLongCategoryNames) {
    if (folded == long_name) return std::string(short_name);
  }
  // A bare script name means the script extensions to PCRE2, the script to Oniguruma.
  if (u_getPropertyValueEnum(UCHAR_SCRIPT, std::string(name).c_str()) != UCHAR_INVALID_CODE) {
    return absl::StrCat("sc:", A(name));
  }
  return std::string(name);
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Translate() {
    while (!AtEnd()) US_RETURN_IF_ERROR(TranslateNext());
    return std::move(out_);
  }

 private:
  bool AtEnd() const { return position_ >= pattern_.size(); }
  std::string_view Rest() const { return pattern_.substr(position_); }
  bool RestStartsWith(std::string_view prefix) const { return Rest().starts_with(prefix); }

  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(absl::StrCat("unsupported ", A(what), " at byte ", position_));
  }

  // Copies the character at the position.
  void CopyCharacter() {
    const size_t length = std::min(Utf8Length(pattern_[position_]), Rest().size());
    out_ += Rest().substr(0, length);
    position_ += length;
  }

  absl::Status TranslateNext() {
    const char c = pattern_[position_];
    switch (c) {
      case '(':
        return TranslateGroupStart();
      case ')':
        if (!group_starts_.empty()) {
          atom_start_ = group_starts_.back();
          group_starts_.pop_back();
        }
        CopyCharacter();
        return absl::OkStatus();
      case '{':
        return TranslateInterval();
      case '*':
      case '+':
      case '?':
        CopyCharacter();
        return absl::OkStatus();
      default:
        break;
    }
    atom_start_ = out_.size();
    if (c == '[') return TranslateClass();
    if (c == '\\') return TranslateEscape(/*in_class=*/false);
    CopyCharacter();
    return absl::OkStatus();
  }

  absl::Status TranslateGroupStart() {
    if (RestStartsWith("(*")) return Unsupported("callout");
    const bool starts_group =
        out_.empty() || (!group_starts_.empty() && out_.size() == group_content_start_);
    group_starts_.push_back(out_.size());
    for (const std::string_view plain : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (!RestStartsWith(plain)) continue;
      out_ += plain;
      position_ += plain.size();
      group_content_start_ = out_.size();
      return absl::OkStatus();
    }
    if (!RestStartsWith("(?")) {
      CopyCharacter();
      group_content_start_ = out_.size();
      return absl::OkStatus();
    }
    // Options: (?i), (?i-m:...).
    const size_t end = pattern_.find_first_not_of("im-", position_ + 2);
    if (end == std::string_view::npos || (pattern_[end] != ':' && pattern_[end] != ')')) {
      return Unsupported("group");
    }
    // Oniguruma lets a bare option reach to the end of the group across its alternatives, PCRE2 as
    // well, but only where it comes first do they bind alike.
    if (pattern_[end] == ')') {
      if (!starts_group) return Unsupported("option in the middle of a group");
      group_starts_.pop_back();
    }
    out_ += "(?";
    for (const char option : pattern_.substr(position_ + 2, end - position_ - 2)) {
      out_ += option == 'm' ? 's' : option;  // Ruby's m lets the dot match newlines
    }
    out_ += pattern_[end];
    position_ = end + 1;
    group_content_start_ = out_.size();
    return absl::OkStatus();
  }

  // "{n}", "{n,}", "{n,m}" or "{,m}"; anything else in braces is literal.
  absl::Status TranslateInterval() {
    const size_t close = pattern_.find('}', position_);
    const std::string_view body = close == std::string_view::npos
                                      ? std::string_view()
                                      : pattern_.substr(position_ + 1, close - position_ - 1);
    const bool is_interval = !body.empty() && body != "," &&
                             body.find_first_not_of("0123456789,") == std::string_view::npos &&
                             std::count(body.begin(), body.end(), ',') <= 1;
    if (!is_interval) {
      atom_start_ = out_.size();
      out_ += "\\{";
      ++position_;
      return absl::OkStatus();
    }
    absl::StrAppend(&out_, "{", body[0] == ',' ? "0" : "", A(body), "}");
    position_ = close + 1;
    // In Ruby's syntax an interval is never possessive, and "{n}?" is an optional "{n}".
    const bool repeated = RestStartsWith("+") || RestStartsWith("*");
    const bool optional = RestStartsWith("?") && body.find(',') == std::string_view::npos;
    if (repeated || optional) {
      out_.insert(atom_start_, "(?:");
      out_ += ')';
    }
    return absl::OkStatus();
  }

  absl::Status TranslateClass() {
    out_ += '[';
    ++position_;
    if (RestStartsWith("^")) CopyCharacter();
    if (RestStartsWith("]")) return Unsupported("empty character class");
    while (!AtEnd()) {
      if (RestStartsWith("]")) {
        CopyCharacter();
        return absl::OkStatus();
      }
      if (RestStartsWith("[:")) {
        US_RETURN_IF_ERROR(TranslatePosixClass());
      } else if (RestStartsWith("[")) {
        return Unsupported("nested character class");
      } else if (RestStartsWith("&&")) {
        return Unsupported("intersection of character classes");
      } else if (RestStartsWith("\\")) {
        US_RETURN_IF_ERROR(TranslateEscape(/*in_class=*/true));
      } else {
        CopyCharacter();
      }
    }
    return Unsupported("unterminated character class");
  }

  absl::Status TranslatePosixClass() {
    for (const PosixClass& posix : kPosixClasses) {
      const std::string spelling = absl::StrCat("[:", A(posix.name), ":]");
      if (!RestStartsWith(spelling)) continue;
      out_ += posix.contents;
      position_ += spelling.size();
      return absl::OkStatus();
    }
    return Unsupported("bracket expression");
  }

  absl::Status TranslateEscape(bool in_class) {
    if (Rest().size() < 2) return Unsupported("backslash");
    const char kind = Rest()[1];
    // Emits the contents of a class, as a class of its own where need be.
    const auto emit_class = [&](std::string_view contents, bool negated) {
      position_ += 2;
      if (in_class) {
        out_ += contents;
      } else {
        absl::StrAppend(&out_, negated ? "[^" : "[", A(contents), "]");
      }
      return absl::OkStatus();
    };
    switch (kind) {
      case 's':
        return emit_class(kSpace, false);
      case 'S':
        return emit_class(kNotSpace, false);
      case 'w':
        return emit_class(WordContents(), false);
      case 'h':
        return emit_class(kHexDigit, false);
      case 'd':
        return emit_class(absl::StrCat(R"(\p{Nd})", AddedRanges("Nd")), false);
      case 'D':
        // As in TranslateProperty: a class cannot take the added digits out.
        if (in_class) return emit_class(R"(\P{Nd})", false);
        return emit_class(absl::StrCat(R"(\p{Nd})", AddedRanges("Nd")), true);
      case 'W':
        if (in_class) return Unsupported("\\W in a character class");
        return emit_class(WordContents(), true);
      case 'H':
        if (in_class) return Unsupported("\\H in a character class");
        return emit_class(kHexDigit, true);
      case 'v':
        return emit_class(R"(\x{b})", false);
      case 'p':
      case 'P':
        return TranslateProperty(in_class);
      case 'b':
      case 'B':
        if (in_class) break;
        return TranslateWordBoundary(kind == 'b');
      case 'u':
        return TranslateFourDigits();
      case 'x':
        return TranslateHexadecimal();
      default:
        break;
    }
    // The same to both engines: control characters, anchors, back references, and punctuation that
    // stands for itself.
    const std::string_view plain = in_class ? "nrtfaeb" : "nrtfaeAzZGR123456789";
    if (plain.find(kind) == std::string_view::npos && !absl::ascii_ispunct(kind)) {
      return Unsupported(absl::StrCat("escape ", A(Rest().substr(0, 2))));
    }
    out_ += Rest().substr(0, 2);
    position_ += 2;
    return absl::OkStatus();
  }

  absl::Status TranslateProperty(bool in_class) {
    bool negated = Rest()[1] == 'P';
    const size_t close = pattern_.find('}', position_);
    if (Rest().size() < 3 || Rest()[2] != '{' || close == std::string_view::npos) {
      return Unsupported("property");
    }
    std::string_view name = pattern_.substr(position_ + 3, close - position_ - 3);
    if (name.starts_with("^")) {
      negated = !negated;
      name.remove_prefix(1);
    }
    for (const char c : name) {
      if (!absl::ascii_isalnum(c) && c != '_' && c != ' ' && c != '-') {
        return Unsupported("property");
      }
    }
    const std::string property = PropertyName(name);
    const std::string added = AddedRanges(property);
    if (added.empty() || (negated && in_class)) {
      // A class cannot take the added characters out of a negated property: they stay in.
      absl::StrAppend(&out_, negated ? "\\P{" : "\\p{", property, "}");
    } else {
      const std::string contents = absl::StrCat("\\p{", property, "}", added);
      absl::StrAppend(&out_,
                      in_class ? contents : absl::StrCat(negated ? "[^" : "[", contents, "]"));
    }
    position_ = close + 1;
    return absl::OkStatus();
  }

  absl::Status TranslateWordBoundary(bool boundary) {
    const std::string word = absl::StrCat("[", WordContents(), "]");
    absl::StrAppend(&out_, "(?:(?<=", word, ")(?", boundary ? "!" : "=", word, ")|(?<!", word,
                    ")(?", boundary ? "=" : "!", word, "))");
    position_ += 2;
    return absl::OkStatus();
  }

  absl::Status TranslateFourDigits() {
    const std::string_view digits = Rest().substr(2, 4);
    if (digits.size() < 4 || !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
      return Unsupported("escape \\u");
    }
    absl::StrAppend(&out_, "\\x{", A(digits), "}");
    position_ += 6;
    return absl::OkStatus();
  }

  // "\x{h...}" and "\xhh"; the latter is a byte to Oniguruma, and only an ASCII one is a character.
  absl::Status TranslateHexadecimal() {
    std::string_view digits;
    size_t length;
    if (RestStartsWith("\\x{")) {
      const size_t close = Rest().find('}');
      if (close == std::string_view::npos) return Unsupported("escape \\x");
      digits = Rest().substr(3, close - 3);
      length = close + 1;
    } else {
      digits = Rest().substr(2, 2);
      length = 4;
      if (digits.size() < 2 || digits[0] > '7') return Unsupported("escape \\x");
    }
    if (digits.empty() || digits.size() > 6 ||
        !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
      return Unsupported("escape \\x");
    }
    absl::StrAppend(&out_, "\\x{", A(digits), "}");
    position_ += length;
    return absl::OkStatus();
  }

  std::string_view pattern_;
  size_t position_ = 0;
  std::string out_;
  size_t atom_start_ = 0;             // in out_: what a quantifier that follows applies to
  std::vector<size_t> group_starts_;  // in out_: the open groups
  size_t group_content_start_ = 0;    // in out_: past the last group opening
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(std::string_view oniguruma) {
  return Translator(oniguruma).Translate();
}

}  // namespace ultrasketch::tokenizer_internal
