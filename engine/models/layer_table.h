// A decoder layer, written once: four linear sites that are applied one after the other, what each
// reads and where it writes, and the names of a layer's tensors. The backends' steps, the streams
// of a calibration and the trainer follow this table.
//
//   hidden --RMSNorm--> attention_input (q, k, v) --attention--> attention_output --> + hidden
//   hidden --RMSNorm--> mlp_input (gate, up) --silu(gate) * up--> mlp_output --> + hidden
#ifndef ULTRASKETCH_ENGINE_MODELS_LAYER_TABLE_H_
#define ULTRASKETCH_ENGINE_MODELS_LAYER_TABLE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/codecs/linear_site.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

// The vectors of a layer beside its biases: weights of norms.
enum class LayerVector : uint8_t {
  kAttentionNorm,  // [hidden_size]
  kMlpNorm,        // [hidden_size]
  kQueryNorm,      // [head_dim], of each query head, in architectures that have them
  kKeyNorm,        // [head_dim], of each key head
};
inline constexpr int kNumLayerVectors = 4;

// What a site reads.
enum class SiteReads : uint8_t {
  kNormalized,  // the residual stream, normalized with the row's norm
  kAttended,    // attention of the q, k and v that the row before wrote
  kGated,       // silu(gate) * up of what the row before wrote
};

// Where a site's output goes.
enum class SiteWrites : uint8_t {
  kQkv,       // queries, keys and values, which the next row reads
  kGateUp,    // gates and ups, which the next row reads
  kResidual,  // added to the residual stream
};

struct LayerRow {
  SiteKind site;
  SiteReads reads;
  SiteWrites writes;
  LayerVector norm;  // of kNormalized
};

inline constexpr std::array<LayerRow, kNumSiteKinds> kLayerTable = {{
    {SiteKind::kAttentionInput, SiteReads::kNormalized, SiteWrites::kQkv,
     LayerVector::kAttentionNorm},
    {SiteKind::kAttentionOutput, SiteReads::kAttended, SiteWrites::kResidual, {}},
    {SiteKind::kMlpInput, SiteReads::kNormalized, SiteWrites::kGateUp, LayerVector::kMlpNorm},
    {SiteKind::kMlpOutput, SiteReads::kGated, SiteWrites::kResidual, {}},
}};

// Four a layer, in the order of the table.
std::vector<LinearSite> LinearSites(const ModelConfig& config);

// Those that the architecture has.
std::vector<LayerVector> LayerVectors(const ModelConfig& config);
int64_t LayerVectorSize(const ModelConfig& config, LayerVector vector);
// Its place among those of all layers, in order of LayerVectors.
size_t LayerVectorIndex(const ModelConfig& config, int layer, LayerVector vector);
// "model.layers.0.input_layernorm.weight"
std::string LayerVectorName(int layer, LayerVector vector);

// The weight of the norm after the last layer, [hidden_size].
inline constexpr char kFinalNormName[] = "model.norm.weight";

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_LAYER_TABLE_H_
