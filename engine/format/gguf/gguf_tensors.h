// The tensors of a GGUF model by their names in a Hugging Face checkpoint.
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_TENSORS_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_TENSORS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/dtype.h"
#include "engine/format/gguf/gguf_config.h"
#include "engine/format/gguf/gguf_model.h"
#include "engine/format/model_config.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {

inline constexpr std::string_view kEmbeddingName = "token_embd.weight";
inline constexpr std::string_view kHeadName = "output.weight";
inline constexpr std::string_view kRopeFactorsName = "rope_freqs.weight";

// Whether some layer has a bias on a linear layer of attention (q, k, v, output), or of the MLP.
bool HasAttentionBias(const GgufModel& model);
bool HasMlpBias(const GgufModel& model);

// A tensor of the checkpoint.
struct GgufTensorMapping {
  std::string name;                    // in the checkpoint
  std::vector<int64_t> shape;          // rows by columns, or columns alone
  const GgufTensor* source = nullptr;  // null: a bias that the file lacks, of zeros
  int interleaved_heads = 0;  // the heads whose rows are in rotated pairs; 0: rows are in order
};

// All tensors that `config` needs. DATA_LOSS, naming file and tensor, for one that is missing or
// has another shape; UNIMPLEMENTED, by name, for one that models of the architecture do not have,
// or whose type is not supported.
absl::StatusOr<std::vector<GgufTensorMapping>> MapGgufTensors(const GgufModel& model,
                                                              const GgufArchitecture& architecture,
                                                              const ModelConfig& config);

// The type that a tensor is stored as: `wanted` if given, else F32, F16 and BF16 as they are, and
// quantized types as F16. (Its 11 significant bits lose an eighth of what bf16's 8 lose.)
DType OutputDType(const GgmlType& type, std::optional<DType> wanted);

// What converting tensors takes beside them. All must outlive the writing.
struct GgufConversion {
  std::optional<DType> dtype;                    // as for OutputDType
  const std::atomic<bool>* cancelled = nullptr;  // may be null
  std::function<void(int64_t bytes_done, int64_t bytes_total)>
      progress;  // of the output; may be empty
};

// For WriteSafetensors: the values are decoded when a tensor's turn comes, a piece at a time.
// `model` must outlive the result. Writing returns DATA_LOSS, naming file, tensor and place, for a
// value that is NaN or infinite, OUT_OF_RANGE for one that the output type cannot hold, CANCELLED
// when that is requested.
std::vector<TensorToWrite> ConvertGgufTensors(const GgufModel& model,
                                              const std::vector<GgufTensorMapping>& mappings,
                                              const GgufConversion& conversion);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_TENSORS_H_
