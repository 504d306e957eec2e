#include "engine/compress/accounting.h"

#include <utility>

#include "engine/base/status.h"
#include "engine/codecs/codec.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/layer_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

absl::Status CheckNorms(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  for (int layer = 0; layer < config.num_layers; ++layer) {
    for (const LayerVector vector : LayerVectors(config)) {
      US_RETURN_IF_ERROR(GetTensor(checkpoint, LayerVectorName(layer, vector), {},
                                   {LayerVectorSize(config, vector)})
                             .status());
    }
  }
  return GetTensor(checkpoint, kFinalNormName, {}, {config.hidden_size}).status();
}

}  // namespace

absl::StatusOr<ModelSize> MeasureModel(const Checkpoint& checkpoint) {
  US_ASSIGN_OR_RETURN(const std::string codec_name, CheckpointCodec(checkpoint));
  const Codec& codec = *FindCodec(codec_name);
  const ModelConfig& config = checkpoint.config();

  ModelSize size;
  size.parameters = NumParameters(config);
  size.linear_weights = NumLinearWeights(config);
  size.file_bytes = checkpoint.file_bytes();
  for (LinearSite& site : LinearSites(config)) {
    US_ASSIGN_OR_RETURN(const std::unique_ptr<EncodedLinear> encoded,
                        codec.Load(site, checkpoint, config.quantization_config));
    SiteSize site_size;
    site_size.codec = codec_name;
    site_size.bytes = encoded->stored_bytes();
    site_size.bits_per_weight =
        8.0 * static_cast<double>(site_size.bytes) / static_cast<double>(site.num_weights());
    site_size.site = std::move(site);
    size.linear_bytes += site_size.bytes;
    US_RETURN_IF_ERROR(LoadBias(site_size.site, checkpoint).status());
    size.sites.push_back(std::move(site_size));
  }
  US_RETURN_IF_ERROR(CheckNorms(checkpoint));
  US_ASSIGN_OR_RETURN(const VocabularyTables tables, LoadVocabularyTables(checkpoint));
  for (const auto& table : {tables.embedding, tables.head}) {
    if (table == nullptr) continue;
    const std::string_view type = table->codec_name() == "dense"
                                      ? DTypeName(table->StoredTensors().front().view.dtype)
                                      : table->codec_name();
    size.tables.push_back({table->site().name, std::string(type), table->stored_bytes()});
  }
  size.bits_per_weight_linear =
      8.0 * static_cast<double>(size.linear_bytes) / static_cast<double>(size.linear_weights);
  size.bits_per_weight_file =
      8.0 * static_cast<double>(size.file_bytes) / static_cast<double>(size.parameters);
  return size;
}

}  // namespace ultrasketch
