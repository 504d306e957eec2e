// Writes a compressed model's folder.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_MODEL_WRITER_H_
#define ULTRASKETCH_ENGINE_COMPRESS_MODEL_WRITER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"

#include "engine/base/tensor.h"
#include "engine/codecs/codec.h"
#include "engine/format/checkpoint.h"
#include "engine/format/output_folder.h"

namespace ultrasketch {

// ResolveOutputFolder (output_folder.h), where the checkpoint is an input, too.
absl::StatusOr<std::string> ResolveOutputFolder(const Checkpoint& checkpoint,
                                                absl::Span<const std::string> inputs,
                                                const std::string& folder, bool overwrite);

// A tensor of the dense model with other values.
struct ReplacedTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

// `folder`, which must not exist, with the dense checkpoint's config, to which
// `quantization_config` is added, its tokenizer and other side files, and one model.safetensors:
// the stored tensors of `sites` (linear sites, embedding, head) in place of the weights of their
// members, `replaced` in place of the tensors of those names, all other tensors as they are.
absl::Status WriteModelFolder(const Checkpoint& checkpoint,
                              absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                              absl::Span<const ReplacedTensor> replaced,
                              const nlohmann::json& quantization_config, const std::string& folder);

// Resolving, writing and publishing together, for a model that is written in one go; `folder`
// appears whole or not at all.
// One at a time for a folder.
absl::Status WriteCompressedModel(const Checkpoint& checkpoint,
                                  absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                                  absl::Span<const ReplacedTensor> replaced,
                                  const nlohmann::json& quantization_config,
                                  const std::string& folder, bool overwrite);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_MODEL_WRITER_H_
