#include "engine/compress/model_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include <sys/stat.h>

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

absl::Status SyncFolder(const fs::path& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, folder.string());
  const absl::Cleanup close_descriptor = [descriptor] { close(descriptor); };
  if (fsync(descriptor) != 0) return ErrnoStatus(errno, folder.string());
  return absl::OkStatus();
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

// Whether `path`, canonical, is `folder` or lies in it.
bool IsWithin(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first ==
         folder.end();
}

bool IsMountPoint(const fs::path& folder) {
  struct stat status, parent;
  if (stat(folder.c_str(), &status) != 0) return false;
  if (stat((folder / "..").c_str(), &parent) != 0) return false;
  return status.st_dev != parent.st_dev || status.st_ino == parent.st_ino;
}

bool IsCompressedModel(const fs::path& folder) {
  const auto config = ReadJsonFile((folder / "config.json").string());
  if (!config.ok()) return false;
  const nlohmann::json* quantization = FindMember(*config, kQuantizationKey);
  const nlohmann::json* method =
      quantization == nullptr ? nullptr : FindMember(*quantization, "quant_method");
  return method != nullptr && *method == kQuantMethod;
}

}  // namespace

absl::StatusOr<std::string> ResolveOutputFolder(const Checkpoint& checkpoint,
                                                absl::Span<const std::string> inputs,
                                                const std::string& folder, bool overwrite) {
  if (folder.empty()) return absl::InvalidArgumentError("the output folder has no name");
  std::error_code error;
  fs::path path = fs::weakly_canonical(fs::absolute(folder), error);
  if (error) return ErrnoStatus(error.value(), folder);
  if (!path.has_filename()) path = path.parent_path();
  const fs::file_status status = fs::symlink_status(path, error);
  if (!fs::exists(status)) return path.string();

  std::vector<std::string> sources(inputs.begin(), inputs.end());
  sources.push_back(checkpoint.folder());
  for (const std::string& source : sources) {
    if (const fs::path canonical = fs::canonical(source, error);
        !error && IsWithin(canonical, path)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ": the output folder is, or contains, ", source));
    }
  }
  if (fs::is_symlink(status)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path.string(), ": expected a folder, found a link to nothing"));
  }
  if (fs::is_directory(status) && (IsMountPoint(path) || path == fs::current_path(error))) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": a model takes the place of a folder, and cannot that of ",
                     IsMountPoint(path) ? "a mounted file system" : "the current folder",
                     "; name a folder in it"));
  }
  if (fs::is_directory(status) && fs::is_empty(path, error) && !error) return path.string();
  if (!overwrite) {
    return absl::AlreadyExistsError(
        absl::StrCat(path.string(), ": expected no such folder, or an empty one"));
  }
  if (!IsCompressedModel(path)) {
    return absl::FailedPreconditionError(absl::StrCat(
        path.string(), ": overwriting is for compressed models, and this is not one; remove it"));
  }
  return path.string();
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

absl::Status PublishFolder(const std::string& staged, const std::string& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) {
    fs::rename(staged, folder, error);
  } else if (renameat2(AT_FDCWD, staged.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) != 0) {
    const std::string old = staged + ".old";
    fs::rename(folder, old, error);
    if (!error) {
      fs::rename(staged, folder, error);
      std::error_code ignored;
      fs::rename(old, error ? folder : staged, ignored);
    }
  }
  US_RETURN_IF_ERROR(FromErrorCode(error, folder));
  return SyncFolder(fs::path(folder).parent_path());
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
