#include "engine/compress/table_compression.h"

#include <string>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/codecs/grouped/quantize_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

constexpr std::string_view kAuto = "auto";
constexpr std::string_view kKeep = "keep";

// From here on the embedding of most models is a small part of the file.
constexpr double kLeastBitsToKeep = 2;

absl::StatusOr<std::optional<GroupedType>> TypeFromWord(const char* option, std::string_view word,
                                                        double bits_per_weight) {
  if (word == kKeep) return std::nullopt;
  if (word == kAuto) {
    if (bits_per_weight >= kLeastBitsToKeep) return std::nullopt;
    return GroupedType::kInt8;
  }
  const std::optional<GroupedType> type = GroupedTypeFromName(word);
  if (type.has_value()) return type;
  return absl::InvalidArgumentError(absl::StrCat(
      option, ": expected \"auto\", \"keep\", \"int8\" or \"int4\", found ", Quoted(word)));
}

}  // namespace

absl::StatusOr<TableTypes> ChooseTableTypes(const ModelConfig& config, std::string_view embedding,
                                            std::string_view head, double bits_per_weight) {
  TableTypes types;
  US_ASSIGN_OR_RETURN(types.embedding, TypeFromWord("embedding", embedding, bits_per_weight));
  US_ASSIGN_OR_RETURN(types.head, TypeFromWord("head", head, bits_per_weight));
  if (!config.tie_word_embeddings) return types;
  if (head != kAuto && types.head != types.embedding) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head: expected \"auto\" or the same as for the embedding, which is the model's head too, "
        "found ",
        Quoted(head)));
  }
  types.head.reset();
  return types;
}

nlohmann::json TableParameters(const TableTypes& types) {
  nlohmann::json parameters = nlohmann::json::object();
  if (types.embedding.has_value()) parameters[kEmbeddingKey] = GroupedTypeName(*types.embedding);
  if (types.head.has_value()) parameters[kHeadKey] = GroupedTypeName(*types.head);
  return parameters;
}

int64_t TableBytes(const ModelConfig& config, const TableTypes& types) {
  int64_t bytes = 0;
  for (const std::optional<GroupedType>& type : {types.embedding, types.head}) {
    if (!type.has_value()) continue;
    bytes += config.vocab_size *
             (GroupedRowBytes(*type, config.hidden_size) + 2 * GroupsInRow(config.hidden_size));
  }
  return bytes;
}

absl::StatusOr<CompressedTables> CompressTables(const Checkpoint& checkpoint,
                                                const TableTypes& types, ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(const VocabularyTables dense, LoadVocabularyTables(checkpoint));
  CompressedTables tables;
  if (types.embedding.has_value()) {
    tables.embedding = QuantizeTable(*dense.embedding, *types.embedding, pool);
  }
  if (types.head.has_value() && dense.head != nullptr) {
    tables.head = QuantizeTable(*dense.head, *types.head, pool);
  }
  return tables;
}

}  // namespace ultrasketch
