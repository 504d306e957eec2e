// The architecture of a GGUF model as a config.json.
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_CONFIG_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_CONFIG_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/format/gguf/gguf_model.h"

namespace ultrasketch {

// How llama.cpp stores a family of models.
struct GgufArchitecture {
  std::string_view name;        // general.architecture, and the first part of its keys
  std::string_view model_type;  // of config.json
  std::string_view class_name;  // of transformers

  // The rows of each head of q and k, [2, head_dim / 2] in transformers' order, are stored
  // transposed: rotated pairs lie side by side.
  bool interleaves_rotary_rows;

  bool has_qkv_bias;         // always, as the family is defined
  bool has_optional_biases;  // those of all linear layers may be there
};

// The architecture that the file names; UNIMPLEMENTED, by name, when it is another.
absl::StatusOr<const GgufArchitecture*> FindGgufArchitecture(const GgufFile& file);

// config.json, less token ids and dtype. Where the file has no head, the embedding is the head. The
// factors of rope_freqs.weight, which llama.cpp keeps in place of the parameters of llama3's rotary
// scaling, are turned back into them, with the factor for low frequencies being 1: of equal
// factors only the ratios matter. UNIMPLEMENTED, by name, for what is not supported; DATA_LOSS for
// what makes no sense, missing keys included. That a ModelConfig can be made from the result is not
// checked here.
absl::StatusOr<nlohmann::ordered_json> MakeGgufConfig(const GgufModel& model,
                                                      const GgufArchitecture& architecture);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_CONFIG_H_
