#include "engine/format/tokenizer/post_processor.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/vocabulary.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// The ids of a template's special token: the member "ids" of its entry in "special_tokens".
absl::StatusOr<std::vector<int32_t>> SpecialTokenIds(const JsonValue& token,
                                                     const std::optional<JsonValue>& table) {
  US_ASSIGN_OR_RETURN(const JsonValue name_json, token.Member("id"));
  US_ASSIGN_OR_RETURN(const std::string name, name_json.String());
  if (!table.has_value()) return name_json.DataLoss("the template has no \"special_tokens\"");
  US_ASSIGN_OR_RETURN(const JsonValue entry, table->Member(name));
  US_ASSIGN_OR_RETURN(const JsonValue ids_json, entry.Member("ids"));
  US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, ids_json.Elements());
  std::vector<int32_t> ids;
  for (const JsonValue& element : elements) {
    US_ASSIGN_OR_RETURN(const int64_t id, element.Int(0, kMaxVocabularySize - 1));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::FromJson(const JsonValue& json) {
  PostProcessor post_processor;
  US_RETURN_IF_ERROR(post_processor.Add(json));
  return post_processor;
}

absl::Status PostProcessor::Add(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const std::string type, json.Type());
  if (type == "ByteLevel") return absl::OkStatus();
  if (type == "TemplateProcessing") return AddTemplate(json);
  if (type == "Sequence") {
    US_ASSIGN_OR_RETURN(const JsonValue list, json.Member("processors"));
    US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, list.Elements());
    for (const JsonValue& element : elements) US_RETURN_IF_ERROR(Add(element));
    return absl::OkStatus();
  }
  return json.Unimplemented(absl::StrCat("post-processor ", Quoted(type), " is not supported"));
}

absl::Status PostProcessor::AddTemplate(const JsonValue& json) {
  if (template_.has_value()) return json.Unimplemented("a second template is not supported");
  US_ASSIGN_OR_RETURN(const JsonValue single, json.Member("single"));
  US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, single.Elements());
  US_ASSIGN_OR_RETURN(const auto table, json.OptionalMember("special_tokens"));
  template_.emplace();
  for (const JsonValue& element : elements) {
    US_ASSIGN_OR_RETURN(const auto token, element.OptionalMember("SpecialToken"));
    if (token.has_value()) {
      US_ASSIGN_OR_RETURN(std::vector<int32_t> ids, SpecialTokenIds(*token, table));
      template_->push_back({/*is_text=*/false, std::move(ids)});
      continue;
    }
    US_ASSIGN_OR_RETURN(const JsonValue sequence, element.Member("Sequence"));
    US_ASSIGN_OR_RETURN(const JsonValue name_json, sequence.Member("id"));
    US_ASSIGN_OR_RETURN(const std::string name, name_json.String());
    if (name != "A") {
      return name_json.DataLoss(
          absl::StrCat("a template for one text has no sequence ", Quoted(name)));
    }
    template_->push_back({/*is_text=*/true, {}});
  }
  return absl::OkStatus();
}

std::vector<int32_t> PostProcessor::Apply(std::vector<int32_t> ids) const {
  if (!template_.has_value()) return ids;
  std::vector<int32_t> processed;
  processed.reserve(ids.size() + template_->size());
  for (const Piece& piece : *template_) {
    const std::vector<int32_t>& added = piece.is_text ? ids : piece.ids;
    processed.insert(processed.end(), added.begin(), added.end());
  }
  return processed;
}

std::vector<int32_t> PostProcessor::AddedIds() const {
  std::vector<int32_t> ids;
  if (!template_.has_value()) return ids;
  for (const Piece& piece : *template_) ids.insert(ids.end(), piece.ids.begin(), piece.ids.end());
  return ids;
}

}  // namespace ultrasketch::tokenizer_internal
