#include "engine/format/gguf/import_gguf.h"

#include <unistd.h>

#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/output_folder.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// transformers' name of a type.
std::string TorchName(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

// The type of most parameters.
std::string MainDType(const std::vector<GgufTensorMapping>& tensors, std::optional<DType> wanted) {
  std::map<std::string, int64_t> parameters;
  for (const GgufTensorMapping& tensor : tensors) {
    if (tensor.source == nullptr) continue;
    parameters[TorchName(OutputDType(*tensor.source->type, wanted))] +=
        tensor.source->num_elements();
  }
  std::string main;
  int64_t most = -1;
  for (const auto& [name, count] : parameters) {
    if (count <= most) continue;
    main = name;
    most = count;
  }
  return main;
}

void AddTokenIds(const GgufTokenizer& tokenizer, ordered_json& config) {
  if (tokenizer.bos_id.has_value()) config["bos_token_id"] = *tokenizer.bos_id;
  if (tokenizer.eos_id.has_value()) config["eos_token_id"] = *tokenizer.eos_id;
  if (tokenizer.pad_id.has_value()) config["pad_token_id"] = *tokenizer.pad_id;
}

absl::Status WriteFolder(const GgufModel& model, const GgufCheckpoint& checkpoint,
                         const GgufImportOptions& options, const fs::path& folder) {
  const auto write = [&](const char* name, const std::string& text) {
    return WriteFileAtomically((folder / name).string(), text + "\n");
  };
  US_RETURN_IF_ERROR(write("config.json", checkpoint.config.dump(2)));
  US_RETURN_IF_ERROR(write("generation_config.json", checkpoint.generation_config.dump(2)));
  US_RETURN_IF_ERROR(write("tokenizer.json", checkpoint.tokenizer.tokenizer.dump()));
  US_RETURN_IF_ERROR(write("tokenizer_config.json", checkpoint.tokenizer.tokenizer_config.dump(2)));
  US_RETURN_IF_ERROR(WriteSafetensors(
      (folder / "model.safetensors").string(),
      ConvertGgufTensors(model, checkpoint.tensors, options.conversion), {{"format", "pt"}}));
  return SyncFolder(folder.string());
}

}  // namespace

absl::StatusOr<GgufCheckpoint> MakeGgufCheckpoint(const GgufModel& model,
                                                  const GgufImportOptions& options) {
  GgufCheckpoint checkpoint;
  US_ASSIGN_OR_RETURN(const GgufArchitecture* architecture, FindGgufArchitecture(model.file()));
  US_ASSIGN_OR_RETURN(checkpoint.config, MakeGgufConfig(model, *architecture));
  US_ASSIGN_OR_RETURN(checkpoint.model_config,
                      ParseModelConfig(nlohmann::json(checkpoint.config),
                                       absl::StrCat(model.file().path(), ": as config.json")));
  US_ASSIGN_OR_RETURN(checkpoint.tensors,
                      MapGgufTensors(model, *architecture, checkpoint.model_config));
  US_ASSIGN_OR_RETURN(
      checkpoint.tokenizer,
      MakeGgufTokenizer(model.file(), checkpoint.model_config.vocab_size, options.pre_tokenizer));
  AddTokenIds(checkpoint.tokenizer, checkpoint.config);
  AddTokenIds(checkpoint.tokenizer, checkpoint.generation_config);
  if (!checkpoint.tokenizer.end_ids.empty()) {
    checkpoint.generation_config["eos_token_id"] = checkpoint.tokenizer.end_ids;
  }
  if (checkpoint.generation_config.is_null()) checkpoint.generation_config = ordered_json::object();
  checkpoint.config["dtype"] = MainDType(checkpoint.tensors, options.conversion.dtype);
  checkpoint.tokenizer.tokenizer_config["model_max_length"] =
      checkpoint.model_config.max_position_embeddings;
  return checkpoint;
}

absl::StatusOr<GgufImportReport> ImportGguf(const std::string& path, const std::string& folder,
                                            const GgufImportOptions& options) {
  US_ASSIGN_OR_RETURN(const std::unique_ptr<GgufModel> model, GgufModel::Open(path));
  US_ASSIGN_OR_RETURN(const GgufCheckpoint checkpoint, MakeGgufCheckpoint(*model, options));
  std::vector<std::string> inputs;
  for (const auto& file : model->files()) inputs.push_back(file->path());
  US_ASSIGN_OR_RETURN(const std::string target,
                      ResolveOutputFolder(inputs, folder, /*overwrite=*/false));

  const std::string staged = absl::StrCat(target, ".tmp.", getpid());
  std::error_code error;
  fs::create_directories(fs::path(target).parent_path(), error);
  if (error) return ErrnoStatus(error.value(), target);
  if (!fs::create_directory(staged, error)) {
    if (error) return ErrnoStatus(error.value(), staged);
    return absl::AlreadyExistsError(absl::StrCat(staged, ": expected no such folder"));
  }
  absl::Status status = WriteFolder(*model, checkpoint, options, staged);
  int64_t bytes = 0;
  if (status.ok()) {
    for (const auto& entry : fs::directory_iterator(staged, error)) {
      bytes += static_cast<int64_t>(entry.file_size(error));
    }
    status = PublishFolder(staged, target);
  }
  fs::remove_all(staged, error);
  US_RETURN_IF_ERROR(status);

  US_ASSIGN_OR_RETURN(const GgufArchitecture* architecture, FindGgufArchitecture(model->file()));
  return GgufImportReport{.architecture = std::string(architecture->name),
                          .model_type = checkpoint.model_config.model_type,
                          .parameters = NumParameters(checkpoint.model_config),
                          .tensors = static_cast<int64_t>(checkpoint.tensors.size()),
                          .dtype = checkpoint.config["dtype"].get<std::string>(),
                          .bytes = bytes,
                          .warnings = checkpoint.tokenizer.warnings};
}

}  // namespace ultrasketch
