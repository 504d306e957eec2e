// The token embedding and the output head of an architecture.
#ifndef ULTRASKETCH_ENGINE_MODELS_VOCABULARY_TABLES_H_
#define ULTRASKETCH_ENGINE_MODELS_VOCABULARY_TABLES_H_

#include <memory>

#include "absl/status/statusor.h"

#include "engine/codecs/codec.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

// The keys of quantization_config that name a table's type; absent for a table that is stored as in
// the dense model.
inline constexpr char kEmbeddingKey[] = "embedding";
inline constexpr char kHeadKey[] = "head";

// `model.embed_tokens` and `lm_head`, [vocab_size, hidden_size]. Layer and kind mean nothing.
LinearSite EmbeddingSite(const ModelConfig& config);
LinearSite HeadSite(const ModelConfig& config);

struct VocabularyTables {
  std::shared_ptr<const EncodedLinear> embedding;
  std::shared_ptr<const EncodedLinear> head;  // null: tied, the embedding is the head
};

// Reads and validates the tables, dense or of integers. Errors are those of Codec::Load; DATA_LOSS
// too for keys of quantization_config that make no sense. `checkpoint` must outlive the result.
absl::StatusOr<VocabularyTables> LoadVocabularyTables(const Checkpoint& checkpoint);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_VOCABULARY_TABLES_H_
