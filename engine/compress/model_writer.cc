#include "engine/compress/model_writer.h"

#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTiedKey = "tie_word_embeddings";

// What belongs to a model besides config and weights.
constexpr const char* kCopiedFiles[] = {"generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "tokenizer.model",
                                        "vocab.json",
                                        "merges.txt",
                                        "added_tokens.json",
                                        "chat_template.jinja",
                                        "special_tokens_map.json",
                                        "LICENSE",
                                        "LICENSE.txt",
                                        "USE_POLICY.md",
                                        "NOTICE"};

absl::Status FromErrorCode(const std::error_code& error, std::string_view what) {
  return error ? ErrnoStatus(error.value(), what) : absl::OkStatus();
}

absl::Status WriteConfig(const Checkpoint& checkpoint, const nlohmann::json& quantization_config,
                         const fs::path& folder) {
  US_ASSIGN_OR_RETURN(nlohmann::json config,
                      ReadJsonFile((fs::path(checkpoint.folder()) / "config.json").string()));
  config[std::string(kQuantizationKey)] = quantization_config;
  // What is so, where the dense model's config says something else.
  const nlohmann::json* tied = FindMember(config, kTiedKey);
  if ((tied != nullptr && *tied == true) != checkpoint.config().tie_word_embeddings) {
    config[std::string(kTiedKey)] = checkpoint.config().tie_word_embeddings;
  }
  return WriteFileAtomically((folder / "config.json").string(), config.dump(2) + "\n");
}

absl::Status CopySideFiles(const Checkpoint& checkpoint, const fs::path& folder) {
  for (const char* name : kCopiedFiles) {
    const fs::path source = fs::path(checkpoint.folder()) / name;
    std::error_code error;
    if (!fs::is_regular_file(source, error)) continue;
    US_ASSIGN_OR_RETURN(const std::string contents, ReadFile(source.string()));
    US_RETURN_IF_ERROR(WriteFileAtomically((folder / name).string(), contents));
  }
  return absl::OkStatus();
}

absl::Status WriteWeights(const Checkpoint& checkpoint,
                          absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                          absl::Span<const ReplacedTensor> replaced,
                          const nlohmann::json& quantization_config, const fs::path& folder) {
  std::set<std::string> left_out;
  std::vector<TensorToWrite> tensors;
  for (const auto& site : sites) {
    for (const SiteMember& member : site->site().members) left_out.insert(member.name + ".weight");
    for (const NamedTensor& tensor : site->StoredTensors()) {
      tensors.emplace_back(tensor.name, tensor.view);
    }
  }
  for (const ReplacedTensor& tensor : replaced) {
    left_out.insert(tensor.name);
    tensors.emplace_back(tensor.name, TensorView{tensor.dtype, tensor.shape, tensor.bytes.data()});
  }
  for (const std::string& name : checkpoint.tensor_names()) {
    if (!left_out.contains(name)) tensors.emplace_back(name, *checkpoint.Find(name));
  }
  return WriteSafetensors(
      (folder / "model.safetensors").string(), tensors,
      {{"format", "pt"}, {std::string(kQuantizationKey), quantization_config.dump()}});
}

}  // namespace

absl::StatusOr<std::string> ResolveOutputFolder(const Checkpoint& checkpoint,
                                                absl::Span<const std::string> inputs,
                                                const std::string& folder, bool overwrite) {
  std::vector<std::string> sources(inputs.begin(), inputs.end());
  sources.push_back(checkpoint.folder());
  return ResolveOutputFolder(sources, folder, overwrite);
}

absl::Status WriteModelFolder(const Checkpoint& checkpoint,
                              absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                              absl::Span<const ReplacedTensor> replaced,
                              const nlohmann::json& quantization_config,
                              const std::string& folder) {
  std::error_code error;
  if (!fs::create_directory(folder, error)) {
    US_RETURN_IF_ERROR(FromErrorCode(error, folder));
    return absl::AlreadyExistsError(absl::StrCat(folder, ": expected no such folder"));
  }
  US_RETURN_IF_ERROR(WriteConfig(checkpoint, quantization_config, folder));
  US_RETURN_IF_ERROR(CopySideFiles(checkpoint, folder));
  US_RETURN_IF_ERROR(WriteWeights(checkpoint, sites, replaced, quantization_config, folder));
  return SyncFolder(folder);
}

absl::Status WriteCompressedModel(const Checkpoint& checkpoint,
                                  absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                                  absl::Span<const ReplacedTensor> replaced,
                                  const nlohmann::json& quantization_config,
                                  const std::string& folder, bool overwrite) {
  US_ASSIGN_OR_RETURN(const std::string path,
                      ResolveOutputFolder(checkpoint, {}, folder, overwrite));
  const std::string staged = path + ".new";
  std::error_code error;
  // Left by a process that died.
  if (IsCompressedModel(staged)) fs::remove_all(staged, error);
  fs::create_directories(fs::path(path).parent_path(), error);
  US_RETURN_IF_ERROR(FromErrorCode(error, path));
  absl::Status status = WriteModelFolder(checkpoint, sites, replaced, quantization_config, staged);
  // Not ours to remove.
  if (absl::IsAlreadyExists(status)) return status;
  if (status.ok()) status = PublishFolder(staged, path);
  fs::remove_all(staged, error);
  return status;
}

}  // namespace ultrasketch
