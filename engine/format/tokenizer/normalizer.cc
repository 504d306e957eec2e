#include "engine/format/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "unicode/uchar.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/pattern.h"
#include "engine/format/tokenizer/unicode_normalization.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

class UnicodeNormalizer : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalizationForm form) : form_(form) {}
  absl::Status Apply(std::string* text, bool*) const override {
    return NormalizeUnicode(form_, text);
  }

 private:
  NormalizationForm form_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  absl::Status Apply(std::string* text, bool*) const override {
    if (!text->empty()) text->insert(0, prefix_);
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::Status Apply(std::string* text, bool*) const override {
    US_ASSIGN_OR_RETURN(*text, pattern_.ReplaceAll(*text, content_));
    return absl::OkStatus();
  }

 private:
  Pattern pattern_;
  std::string content_;
};

// Character by character: no final sigma, no language.
class Lowercase : public Normalizer {
 public:
  absl::Status Apply(std::string* text, bool*) const override {
    std::string lowered;
    lowered.reserve(text->size());
    for (size_t position = 0; position < text->size();) {
      const uint32_t code_point = NextCodePoint(*text, &position);
      if (code_point == kCapitalIWithDot) {
        lowered += "i\xcc\x87";  // the one character whose lower case is two: i, combining dot
      } else {
        AppendUtf8(u_tolower(static_cast<UChar32>(code_point)), &lowered);
      }
    }
    *text = std::move(lowered);
    return absl::OkStatus();
  }

 private:
  static constexpr uint32_t kCapitalIWithDot = 0x130;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  absl::Status Apply(std::string* text, bool* lost_start) const override {
    size_t begin = 0;
    size_t end = text->size();
    while (left_ && begin < end) {
      size_t next = begin;
      if (!u_isUWhiteSpace(NextCodePoint(*text, &next))) break;
      begin = next;
    }
    while (right_ && end > begin) {
      size_t length;
      if (!u_isUWhiteSpace(LastCodePoint(std::string_view(*text).substr(0, end), &length))) break;
      end -= length;
    }
    if (begin > 0) *lost_start = true;
    *text = text->substr(begin, end - begin);
    return absl::OkStatus();
  }

 private:
  bool left_;
  bool right_;
};

class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> normalizers)
      : normalizers_(std::move(normalizers)) {}
  absl::Status Apply(std::string* text, bool* lost_start) const override {
    for (const auto& normalizer : normalizers_) {
      US_RETURN_IF_ERROR(normalizer->Apply(text, lost_start));
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> normalizers_;
};

absl::StatusOr<std::unique_ptr<Normalizer>> ReplaceFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue pattern_json, json.Member("pattern"));
  US_ASSIGN_OR_RETURN(Pattern pattern, Pattern::FromJson(pattern_json));
  US_ASSIGN_OR_RETURN(const JsonValue content_json, json.Member("content"));
  US_ASSIGN_OR_RETURN(std::string content, content_json.String());
  return std::make_unique<Replace>(std::move(pattern), std::move(content));
}

absl::StatusOr<std::unique_ptr<Normalizer>> SequenceFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue list, json.Member("normalizers"));
  US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, list.Elements());
  std::vector<std::unique_ptr<Normalizer>> normalizers;
  for (const JsonValue& element : elements) {
    US_ASSIGN_OR_RETURN(normalizers.emplace_back(), Normalizer::FromJson(element));
  }
  return std::make_unique<NormalizerSequence>(std::move(normalizers));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> Normalizer::FromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const std::string type, json.Type());
  if (type == "Sequence") return SequenceFromJson(json);
  if (type == "NFC") return std::make_unique<UnicodeNormalizer>(NormalizationForm::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeNormalizer>(NormalizationForm::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeNormalizer>(NormalizationForm::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeNormalizer>(NormalizationForm::kNfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "Replace") return ReplaceFromJson(json);
  if (type == "Prepend") {
    US_ASSIGN_OR_RETURN(const JsonValue prefix_json, json.Member("prepend"));
    US_ASSIGN_OR_RETURN(std::string prefix, prefix_json.String());
    return std::make_unique<Prepend>(std::move(prefix));
  }
  if (type == "Strip") {
    US_ASSIGN_OR_RETURN(const bool left, json.BoolMember("strip_left", true));
    US_ASSIGN_OR_RETURN(const bool right, json.BoolMember("strip_right", true));
    return std::make_unique<Strip>(left, right);
  }
  return json.Unimplemented(absl::StrCat("normalizer ", Quoted(type), " is not supported"));
}

}  // namespace ultrasketch::tokenizer_internal
