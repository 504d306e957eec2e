#include "engine/models/vocabulary_tables.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/grouped/grouped_table.h"
#include "engine/format/json.h"

namespace ultrasketch {
namespace {

LinearSite TableSite(const char* name, const ModelConfig& config) {
  LinearSite site;
  site.name = name;
  site.rows = config.vocab_size;
  site.cols = config.hidden_size;
  site.members = {{site.name, site.rows, /*has_bias=*/false}};
  return site;
}

absl::Status KeyError(const Checkpoint& checkpoint, const char* key, const char* expected,
                      const nlohmann::json& found) {
  return absl::DataLossError(absl::StrCat(checkpoint.folder(), "/config.json: quantization_config.",
                                          key, ": expected ", expected, ", found ",
                                          DescribeJson(&found)));
}

absl::StatusOr<std::shared_ptr<const EncodedLinear>> LoadTable(const Checkpoint& checkpoint,
                                                               const LinearSite& site,
                                                               const char* key) {
  const nlohmann::json* type_name = FindMember(checkpoint.config().quantization_config, key);
  if (type_name == nullptr) {
    const Codec* const dense = FindCodec("dense");
    US_CHECK(dense != nullptr);
    return dense->Load(site, checkpoint, nlohmann::json());
  }
  std::optional<GroupedType> type;
  if (type_name->is_string()) type = GroupedTypeFromName(type_name->get_ref<const std::string&>());
  if (!type.has_value()) {
    return KeyError(checkpoint, key, "\"int8\" or \"int4\"", *type_name);
  }
  return GroupedTable::Load(site, *type, checkpoint);
}

}  // namespace

LinearSite EmbeddingSite(const ModelConfig& config) {
  return TableSite("model.embed_tokens", config);
}

LinearSite HeadSite(const ModelConfig& config) { return TableSite("lm_head", config); }

absl::StatusOr<VocabularyTables> LoadVocabularyTables(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  VocabularyTables tables;
  US_ASSIGN_OR_RETURN(tables.embedding,
                      LoadTable(checkpoint, EmbeddingSite(config), kEmbeddingKey));
  if (!config.tie_word_embeddings) {
    auto head = LoadTable(checkpoint, HeadSite(config), kHeadKey);
    if (absl::IsNotFound(head.status())) {
      return absl::NotFoundError(absl::StrCat(
          head.status().message(), "; config.json does not say that the embedding is the head ",
          "(tie_word_embeddings)"));
    }
    US_RETURN_IF_ERROR(head.status());
    tables.head = *std::move(head);
  } else if (const nlohmann::json* type = FindMember(config.quantization_config, kHeadKey)) {
    return KeyError(checkpoint, kHeadKey, "none, because the embedding is the head", *type);
  }
  return tables;
}

}  // namespace ultrasketch
