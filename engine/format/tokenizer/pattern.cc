#include "engine/format/tokenizer/pattern.h"

#include <utility>

#include "engine/base/status.h"

namespace ultrasketch::tokenizer_internal {

absl::StatusOr<Pattern> Pattern::FromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const auto literal, json.OptionalMember("String"));
  US_ASSIGN_OR_RETURN(const auto regex, json.OptionalMember("Regex"));
  if (literal.has_value() == regex.has_value()) {
    return json.DataLoss("expected either \"String\" or \"Regex\"");
  }
  if (literal.has_value()) {
    US_ASSIGN_OR_RETURN(std::string text, literal->String());
    // The empty string matches between all characters, which is the regular expression's business.
    if (!text.empty()) return Literal(std::move(text));
    return FromRegex("");
  }
  US_ASSIGN_OR_RETURN(const std::string expression, regex->String());
  absl::StatusOr<Pattern> pattern = FromRegex(expression);
  if (!pattern.ok()) return regex->Unimplemented(S(pattern.status().message()));
  return pattern;
}

Pattern Pattern::Literal(std::string literal) {
  Pattern pattern;
  pattern.literal_ = std::move(literal);
  return pattern;
}

absl::StatusOr<Pattern> Pattern::FromRegex(std::string_view oniguruma) {
  Pattern pattern;
  US_ASSIGN_OR_RETURN(pattern.regex_, Regex::Compile(oniguruma));
  return pattern;
}

absl::Status Pattern::FindAll(std::string_view text, std::vector<TextRange>* matches,
                              const std::atomic<bool>* cancelled) const {
  matches->clear();
  if (text.empty()) return absl::OkStatus();
  if (regex_ != nullptr) return regex_->FindAll(text, matches, cancelled);
  for (size_t begin = text.find(literal_); begin != std::string_view::npos;
       begin = text.find(literal_, begin + literal_.size())) {
    matches->push_back({begin, begin + literal_.size()});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Pattern::ReplaceAll(std::string_view text, std::string_view content,
                                                std::vector<TextRange>* matches) const {
  US_RETURN_IF_ERROR(FindAll(text, matches));
  if (!content.empty() && matches->size() > (kMaxTextBytes - text.size()) / content.size()) {
    return absl::ResourceExhaustedError("the text grows past 1 GiB in a replacement");
  }
  std::string replaced;
  replaced.reserve(text.size() + matches->size() * content.size());
  size_t copied_end = 0;
  for (const TextRange& match : *matches) {
    replaced += text.substr(copied_end, match.begin - copied_end);
    replaced += content;
    copied_end = match.end;
  }
  replaced += text.substr(copied_end);
  return replaced;
}

}  // namespace ultrasketch::tokenizer_internal
