#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/tokenizer/bpe.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

struct TokenPair {
  std::string_view left;
  std::string_view right;
};

// The two tokens of a merge, ["a", "b"] or "a b"; nullopt for anything else. Files have hundreds of
// thousands of merges: no copies, no path for a message.
std::optional<TokenPair> MergeFromJson(const nlohmann::json& json) {
  if (const auto* text = json.get_ptr<const std::string*>()) {
    const size_t space = text->find(' ');
    if (space == std::string::npos || text->find(' ', space + 1) != std::string::npos) {
      return std::nullopt;
    }
    const std::string_view view = *text;
    return TokenPair{view.substr(0, space), view.substr(space + 1)};
  }
  if (!json.is_array() || json.size() != 2) return std::nullopt;
  const auto* left = json[0].get_ptr<const std::string*>();
  const auto* right = json[1].get_ptr<const std::string*>();
  if (left == nullptr || right == nullptr) return std::nullopt;
  return TokenPair{*left, *right};
}

// The string member `key`, nullopt when absent, null or (as some files have it) empty.
absl::StatusOr<std::optional<std::string>> NonEmptyMember(const JsonValue& json,
                                                          std::string_view key) {
  US_ASSIGN_OR_RETURN(const auto member, json.OptionalMember(key));
  if (!member.has_value()) return std::optional<std::string>();
  US_ASSIGN_OR_RETURN(std::string text, member->String());
  if (text.empty()) return std::optional<std::string>();
  return std::optional<std::string>(std::move(text));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Bpe>> Bpe::FromJson(const JsonValue& json) {
  // The oldest files have no type.
  US_ASSIGN_OR_RETURN(const auto type_json, json.OptionalMember("type"));
  if (type_json.has_value()) {
    US_ASSIGN_OR_RETURN(const std::string type, type_json->String());
    if (type != "BPE") {
      return json.Unimplemented(absl::StrCat("model ", Quoted(type), " is not supported"));
    }
  }
  std::unique_ptr<Bpe> bpe(new Bpe());
  US_RETURN_IF_ERROR(bpe->ReadVocabulary(json));
  bpe->IndexCharacters();
  US_RETURN_IF_ERROR(bpe->ReadOptions(json));
  US_RETURN_IF_ERROR(bpe->ReadMerges(json));
  return bpe;
}

absl::Status Bpe::ReadVocabulary(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue vocabulary, json.Member("vocab"));
  US_RETURN_IF_ERROR(vocabulary.ExpectObject());
  for (const auto& [token, id_json] : vocabulary.raw().items()) {
    // The common case without the cost of a path for a message.
    const auto* natural = id_json.get_ptr<const uint64_t*>();
    int64_t id = natural != nullptr && *natural < kMaxVocabularySize ? *natural : -1;
    if (id < 0) {
      US_ASSIGN_OR_RETURN(const JsonValue member, vocabulary.Member(token));
      US_ASSIGN_OR_RETURN(id, member.Int(0, kMaxVocabularySize - 1));
    }
    if (!vocabulary_.Add(token, static_cast<int32_t>(id))) {
      return vocabulary.DataLoss(absl::StrCat("tokens ",
                                              Quoted(*vocabulary_.Token(static_cast<int32_t>(id))),
                                              " and ", Quoted(token), " have the same id ", id));
    }
  }
  return absl::OkStatus();
}

void Bpe::IndexCharacters() {
  small_character_ids_.fill(-1);
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::optional<std::string_view> token = vocabulary_.Token(id);
    if (!token.has_value() || token->empty() || token->size() != Utf8Length(token->front())) {
      continue;
    }
    size_t position = 0;
    const uint32_t code_point = NextCodePoint(*token, &position);
    if (code_point < kNumSmallCodePoints) {
      small_character_ids_[code_point] = id;
    } else {
      character_ids_[code_point] = id;
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    char spelling[7];
    std::snprintf(spelling, sizeof(spelling), "<0x%02X>", byte);
    byte_ids_[byte] = vocabulary_.Find(spelling).value_or(-1);
  }
}

absl::Status Bpe::ReadOptions(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const auto dropout, json.OptionalMember("dropout"));
  if (dropout.has_value()) {
    if (!dropout->raw().is_number()) return dropout->DataLoss("expected a number or null");
    if (dropout->raw() != 0) return dropout->Unimplemented("dropout is not supported");
  }
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    US_ASSIGN_OR_RETURN(const auto text, NonEmptyMember(json, affix));
    if (text.has_value()) {
      return json.Unimplemented(absl::StrCat(A(affix), " ", Quoted(*text), " is not supported"));
    }
  }
  US_ASSIGN_OR_RETURN(fuse_unknown_, json.BoolMember("fuse_unk", false));
  US_ASSIGN_OR_RETURN(byte_fallback_, json.BoolMember("byte_fallback", false));
  US_ASSIGN_OR_RETURN(ignore_merges_, json.BoolMember("ignore_merges", false));
  US_ASSIGN_OR_RETURN(const auto unknown, json.OptionalMember("unk_token"));
  if (unknown.has_value()) {
    US_ASSIGN_OR_RETURN(unknown_token_, unknown->String());
    unknown_id_ = vocabulary_.Find(*unknown_token_);
  }
  return absl::OkStatus();
}

absl::Status Bpe::ReadMerges(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue merges, json.Member("merges"));
  US_RETURN_IF_ERROR(merges.ExpectArray());
  small_joints_.resize(kNumSmallCodePoints * kNumSmallCodePoints);
  merges_.reserve(merges.raw().size());
  int32_t rank = 0;
  std::string merged;
  for (size_t i = 0; i < merges.raw().size(); ++i) {
    const nlohmann::json& json_of_merge = merges.raw()[i];
    const auto* text = json_of_merge.get_ptr<const std::string*>();
    if (text != nullptr && text->starts_with("#version")) continue;
    const std::optional<TokenPair> merge = MergeFromJson(json_of_merge);
    if (!merge.has_value() || merge->left.empty() || merge->right.empty()) {
      return merges.Element(i).DataLoss(absl::StrCat(
          "expected two tokens, [\"a\", \"b\"] or \"a b\", found ", DescribeJson(&json_of_merge)));
    }
    merged.assign(merge->left).append(merge->right);
    int32_t ids[3];
    const std::string_view spellings[3] = {merge->left, merge->right, merged};
    for (int part = 0; part < 3; ++part) {
      const std::optional<int32_t> id = vocabulary_.Find(spellings[part]);
      if (!id.has_value()) {
        return merges.Element(i).DataLoss(
            absl::StrCat("token ", Quoted(spellings[part]), " is not in the vocabulary"));
      }
      ids[part] = *id;
    }
    merges_[PairKey(ids[0], ids[1])] = {rank++, ids[2]};
    AddJoint(merge->left, merge->right);
  }
  return absl::OkStatus();
}

void Bpe::AddJoint(std::string_view left, std::string_view right) {
  size_t position = 0;
  const uint32_t right_character = NextCodePoint(right, &position);
  const uint32_t left_character = LastCodePoint(left, &position);
  if (left_character < kNumSmallCodePoints && right_character < kNumSmallCodePoints) {
    small_joints_[left_character * kNumSmallCodePoints + right_character] = true;
  } else {
    joints_.insert(PairKey(left_character, right_character));
  }
}

}  // namespace ultrasketch::tokenizer_internal
