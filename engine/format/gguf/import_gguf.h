// GGUF files as folders in Hugging Face's layout, with dense weights.
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_IMPORT_GGUF_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_IMPORT_GGUF_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/format/gguf/gguf_model.h"
#include "engine/format/gguf/gguf_tensors.h"
#include "engine/format/gguf/gguf_tokenizer.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

struct GgufImportOptions {
  GgufConversion conversion;

  // In place of tokenizer.ggml.pre, for files that lack it or have a wrong one.
  std::optional<std::string> pre_tokenizer;
};

// A model as a checkpoint, less the values of its tensors.
struct GgufCheckpoint {
  nlohmann::ordered_json config;             // config.json
  nlohmann::ordered_json generation_config;  // generation_config.json
  GgufTokenizer tokenizer;
  ModelConfig model_config;  // `config`, parsed
  std::vector<GgufTensorMapping> tensors;
};

// Errors are those of the parts: MakeGgufConfig, MakeGgufTokenizer, MapGgufTensors, and
// ParseModelConfig of the result. The result refers to `model`.
absl::StatusOr<GgufCheckpoint> MakeGgufCheckpoint(const GgufModel& model,
                                                  const GgufImportOptions& options);

struct GgufImportReport {
  std::string architecture;  // of the file
  std::string model_type;    // of config.json
  int64_t parameters = 0;
  int64_t tensors = 0;
  std::string dtype;  // of most parameters: "bfloat16"
  int64_t bytes = 0;  // of the folder's files
  std::vector<std::string> warnings;
};

// Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json and
// model.safetensors to `folder`, which appears whole or not at all; nothing may be there, or an
// empty folder. The file is mapped and the weights are streamed: memory does not grow with them.
// Errors are also those of ResolveOutputFolder (output_folder.h), ConvertGgufTensors and the file
// system.
absl::StatusOr<GgufImportReport> ImportGguf(const std::string& path, const std::string& folder,
                                            const GgufImportOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_IMPORT_GGUF_H_
