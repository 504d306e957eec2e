#include "engine/format/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "unicode/uchar.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/pattern.h"
#include "engine/format/tokenizer/unicode_additions.h"
#include "engine/format/tokenizer/unicode_normalization.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// A part of a text and what has taken its place in another; either may be empty.
struct Replacement {
  ByteRange before;
  ByteRange after;
};

// Moves the ranges of a text to the text in which the ascending `replacements` were made. What
// replaced a part of a range is in it, whatever else it replaced; ranges of which nothing is left
// go away.
void MoveRanges(const std::vector<Replacement>& replacements, std::vector<ByteRange>* ranges) {
  std::vector<ByteRange> moved;
  size_t first = 0;  // of the replacements that end after the begin of the range
  for (const ByteRange& range : *ranges) {
    while (first < replacements.size() && replacements[first].before.end <= range.begin) ++first;
    // Where a place outside of all replacements is, given how many are before it.
    const auto move = [&](size_t place, size_t num_before) {
      if (num_before == 0) return place;
      const Replacement& last = replacements[num_before - 1];
      return place - last.before.end + last.after.end;
    };
    const bool begins_inside =
        first < replacements.size() && replacements[first].before.begin < range.begin;
    const size_t begin = begins_inside ? replacements[first].after.begin : move(range.begin, first);
    size_t last = first;  // one after the replacements that begin before the end of the range
    while (last < replacements.size() && replacements[last].before.begin < range.end) ++last;
    const bool ends_inside = last > 0 && replacements[last - 1].before.end > range.end;
    const size_t end = ends_inside ? replacements[last - 1].after.end : move(range.end, last);
    if (begin >= end) continue;
    if (!moved.empty() && begin <= moved.back().end) {
      moved.back().end = end;
    } else {
      moved.push_back({begin, end});
    }
  }
  *ranges = std::move(moved);
}

class UnicodeNormalizer : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalizationForm form) : form_(form) {}
  absl::Status Apply(NormalizedText* text) const override {
    return NormalizeUnicode(form_, &text->text, &text->plain_ranges);
  }

 private:
  NormalizationForm form_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  absl::Status Apply(NormalizedText* text) const override {
    if (text->text.empty()) return absl::OkStatus();
    text->text.insert(0, prefix_);
    MoveRanges({{{0, 0}, {0, prefix_.size()}}}, &text->plain_ranges);
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::Status Apply(NormalizedText* text) const override {
    std::vector<TextRange> matches;
    US_ASSIGN_OR_RETURN(text->text, pattern_.ReplaceAll(text->text, content_, &matches));
    if (text->plain_ranges.empty()) return absl::OkStatus();
    std::vector<Replacement> replacements;
    replacements.reserve(matches.size());
    size_t removed = 0;  // before the match
    size_t added = 0;
    for (const TextRange& match : matches) {
      const size_t begin = match.begin - removed + added;
      replacements.push_back({{match.begin, match.end}, {begin, begin + content_.size()}});
      removed += match.end - match.begin;
      added += content_.size();
    }
    MoveRanges(replacements, &text->plain_ranges);
    return absl::OkStatus();
  }

 private:
  Pattern pattern_;
  std::string content_;
};

// Character by character: no final sigma, no language.
class Lowercase : public Normalizer {
 public:
  absl::Status Apply(NormalizedText* text) const override {
    std::string lowered;
    lowered.reserve(text->text.size());
    std::vector<Replacement> replacements;  // by what has another size
    for (size_t position = 0; position < text->text.size();) {
      const ByteRange before = {position, 0};
      const ByteRange after = {lowered.size(), 0};
      const uint32_t code_point = NextCodePoint(text->text, &position);
      if (code_point == kCapitalIWithDot) {
        lowered += "i\xcc\x87";  // the one character whose lower case is two: i, combining dot
      } else {
        AppendUtf8(LowerCase(code_point), &lowered);
      }
      if (position - before.begin != lowered.size() - after.begin) {
        replacements.push_back({{before.begin, position}, {after.begin, lowered.size()}});
      }
    }
    text->text = std::move(lowered);
    MoveRanges(replacements, &text->plain_ranges);
    return absl::OkStatus();
  }

 private:
  static constexpr uint32_t kCapitalIWithDot = 0x130;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  absl::Status Apply(NormalizedText* text) const override {
    const std::string_view all = text->text;
    size_t begin = 0;
    size_t end = all.size();
    while (left_ && begin < end) {
      size_t next = begin;
      if (!u_isUWhiteSpace(NextCodePoint(all, &next))) break;
      begin = next;
    }
    while (right_ && end > begin) {
      size_t length;
      if (!u_isUWhiteSpace(LastCodePoint(all.substr(0, end), &length))) break;
      end -= length;
    }
    if (begin > 0) text->lost_start = true;
    MoveRanges({{{0, begin}, {0, 0}}, {{end, all.size()}, {end - begin, end - begin}}},
               &text->plain_ranges);
    text->text = text->text.substr(begin, end - begin);
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
  absl::Status Apply(NormalizedText* text) const override {
    for (const auto& normalizer : normalizers_) US_RETURN_IF_ERROR(normalizer->Apply(text));
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
