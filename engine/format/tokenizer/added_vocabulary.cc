#include "engine/format/tokenizer/added_vocabulary.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "unicode/uchar.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/unicode_additions.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// Unicode's definition of \w (UTS #18, annex C).
bool IsWordCharacter(uint32_t code_point) {
  const auto c = static_cast<UChar32>(code_point);
  const std::string_view added = AddedCategory(code_point);
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL) ||
         (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0 ||
         added.starts_with('L') || added.starts_with('M') || added == "Nd";
}

bool EndsWithWord(std::string_view text) {
  size_t length;
  return !text.empty() && IsWordCharacter(LastCodePoint(text, &length));
}

bool StartsWithWord(std::string_view text) {
  size_t position = 0;
  return !text.empty() && IsWordCharacter(NextCodePoint(text, &position));
}

// The offset where the white space at the end begins.
size_t TrailingSpaceBegin(std::string_view text) {
  while (!text.empty()) {
    size_t length;
    if (!u_isUWhiteSpace(static_cast<UChar32>(LastCodePoint(text, &length)))) break;
    text.remove_suffix(length);
  }
  return text.size();
}

// The offset where the white space at the beginning ends.
size_t LeadingSpaceEnd(std::string_view text) {
  size_t end = 0;
  while (end < text.size()) {
    size_t next = end;
    if (!u_isUWhiteSpace(static_cast<UChar32>(NextCodePoint(text, &next)))) break;
    end = next;
  }
  return end;
}

bool Overlaps(const TextRange& range, absl::Span<const ByteRange> ascending) {
  const auto first =
      std::upper_bound(ascending.begin(), ascending.end(), range.begin,
                       [](size_t begin, const ByteRange& other) { return begin < other.end; });
  return first != ascending.end() && first->begin < range.end;
}

}  // namespace

void PatternTrie::Add(std::string_view pattern, int32_t value) {
  is_first_byte_[static_cast<uint8_t>(pattern[0])] = true;
  uint64_t node = 0;
  for (const char byte : pattern) {
    const auto [edge, added] =
        edges_.try_emplace(node << 8 | static_cast<uint8_t>(byte), values_.size());
    if (added) values_.push_back(-1);
    node = edge->second;
  }
  if (values_[node] < 0) values_[node] = value;
}

std::optional<PatternTrie::Match> PatternTrie::Find(
    std::string_view text, size_t from, absl::FunctionRef<bool(const Match&)> accept) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!is_first_byte_[static_cast<uint8_t>(text[begin])]) continue;
    std::optional<Match> longest;
    uint64_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      const auto edge = edges_.find(node << 8 | static_cast<uint8_t>(text[i]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (values_[node] < 0) continue;
      const Match match{{begin, i + 1}, values_[node]};
      if (accept(match)) longest = match;
    }
    if (longest.has_value()) return longest;
  }
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<AddedVocabulary>> AddedVocabulary::FromJson(
    const JsonValue* json, const Vocabulary& model_vocabulary, const Normalizer* normalizer) {
  std::unique_ptr<AddedVocabulary> vocabulary(new AddedVocabulary());
  if (json == nullptr) return vocabulary;
  US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, json->Elements());
  for (const JsonValue& element : elements) {
    US_RETURN_IF_ERROR(vocabulary->Add(element, model_vocabulary));
  }
  US_RETURN_IF_ERROR(vocabulary->BuildTries(*json, normalizer));
  return vocabulary;
}

absl::Status AddedVocabulary::Add(const JsonValue& json, const Vocabulary& model_vocabulary) {
  AddedToken token;
  US_ASSIGN_OR_RETURN(const JsonValue id_json, json.Member("id"));
  US_ASSIGN_OR_RETURN(const int64_t id, id_json.Int(0, kMaxVocabularySize - 1));
  token.id = static_cast<int32_t>(id);
  US_ASSIGN_OR_RETURN(const JsonValue content_json, json.Member("content"));
  US_ASSIGN_OR_RETURN(token.content, content_json.String());
  US_ASSIGN_OR_RETURN(token.single_word, json.BoolMember("single_word", false));
  US_ASSIGN_OR_RETURN(token.lstrip, json.BoolMember("lstrip", false));
  US_ASSIGN_OR_RETURN(token.rstrip, json.BoolMember("rstrip", false));
  US_ASSIGN_OR_RETURN(token.special, json.BoolMember("special", false));
  US_ASSIGN_OR_RETURN(token.normalized, json.BoolMember("normalized", !token.special));

  if (token.content.empty()) return content_json.DataLoss("empty token");
  const std::optional<int32_t> model_id = model_vocabulary.Find(token.content);
  const std::optional<std::string_view> model_token = model_vocabulary.Token(token.id);
  if (model_id.has_value() && *model_id != token.id) {
    return id_json.DataLoss(absl::StrCat("token ", Quoted(token.content), " has id ", token.id,
                                         " here and ", *model_id, " in the model's vocabulary"));
  }
  if (model_token.has_value() && *model_token != token.content) {
    return id_json.DataLoss(absl::StrCat("id ", token.id, " of token ", Quoted(token.content),
                                         " is that of ", Quoted(*model_token),
                                         " in the model's vocabulary"));
  }
  const auto index = static_cast<int32_t>(tokens_.size());
  if (!by_id_.emplace(token.id, index).second) {
    return id_json.DataLoss(absl::StrCat("id ", token.id, " occurs twice"));
  }
  if (!by_content_.emplace(token.content, index).second) {
    return content_json.DataLoss(absl::StrCat("token ", Quoted(token.content), " occurs twice"));
  }
  if (token.special) special_.insert(token.content);
  size_ = std::max(size_, token.id + 1);
  tokens_.push_back(std::move(token));
  return absl::OkStatus();
}

absl::Status AddedVocabulary::BuildTries(const JsonValue& json, const Normalizer* normalizer) {
  // Special tokens come first where two tokens normalize to the same text.
  for (const bool special : {true, false}) {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const AddedToken& token = tokens_[i];
      if (token.special != special) continue;
      std::string pattern = token.content;
      if (token.normalized && normalizer != nullptr) {
        NormalizedText normalized{std::move(pattern)};
        const absl::Status status = normalizer->Apply(&normalized);
        if (!status.ok()) return json.Element(i).DataLoss(S(status.message()));
        pattern = std::move(normalized.text);
        if (pattern.empty()) return json.Element(i).Unimplemented("normalizes to an empty text");
      }
      (token.normalized ? normalized_ : raw_).Add(pattern, static_cast<int32_t>(i));
    }
  }
  return absl::OkStatus();
}

void AddedVocabulary::FindSegments(std::string_view text, Side side, bool parse_special,
                                   absl::Span<const ByteRange> plain_ranges,
                                   std::vector<Segment>* segments) const {
  const auto accept = [&](const PatternTrie::Match& match) {
    return !Overlaps(match.range, plain_ranges) ||
           LeadingSpaceEnd(tokens_[match.value].content) == tokens_[match.value].content.size();
  };
  const PatternTrie& trie = side == Side::kRaw ? raw_ : normalized_;
  size_t covered_end = 0;
  size_t from = 0;
  size_t space_run_end = 0;  // of the last white space taken along: not to be scanned again
  while (const std::optional<PatternTrie::Match> match = trie.Find(text, from, accept)) {
    auto [begin, end] = match->range;
    from = end;
    const AddedToken& token = tokens_[match->value];
    if (token.special && !parse_special) continue;
    if (token.single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (token.lstrip && begin > covered_end) {
      begin = covered_end + TrailingSpaceBegin(text.substr(covered_end, begin - covered_end));
    }
    if (token.rstrip) {
      if (end >= space_run_end) space_run_end = end + LeadingSpaceEnd(text.substr(end));
      end = space_run_end;
    }
    if (covered_end < begin) segments->push_back({{covered_end, begin}, nullptr});
    segments->push_back({{begin, end}, &token});
    covered_end = end;
  }
  if (covered_end < text.size()) segments->push_back({{covered_end, text.size()}, nullptr});
}

const AddedToken* AddedVocabulary::Find(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

std::optional<int32_t> AddedVocabulary::FindId(std::string_view content) const {
  const auto found = by_content_.find(A(content));
  if (found == by_content_.end()) return std::nullopt;
  return tokens_[found->second].id;
}

}  // namespace ultrasketch::tokenizer_internal
