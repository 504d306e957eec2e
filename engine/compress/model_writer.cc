#include "engine/compress/model_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

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

// Without a trailing separator, so that siblings can be named after it.
fs::path Normalized(const std::string& folder) {
  fs::path path = fs::path(folder).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
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
  config["quantization_config"] = quantization_config;
  return WriteFileAtomically((folder / "config.json").string(), config.dump(2) + "\n");
}

absl::Status CopySideFiles(const Checkpoint& checkpoint, const fs::path& folder) {
  for (const char* name : kCopiedFiles) {
    const fs::path source = fs::path(checkpoint.folder()) / name;
    std::error_code error;
    if (!fs::exists(source, error)) continue;
    US_ASSIGN_OR_RETURN(const std::string contents, ReadFile(source.string()));
    US_RETURN_IF_ERROR(WriteFileAtomically((folder / name).string(), contents));
  }
  return absl::OkStatus();
}

absl::Status WriteWeights(const Checkpoint& checkpoint,
                          absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                          absl::Span<const ReplacedTensor> replaced, const fs::path& folder) {
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
  return WriteSafetensors((folder / "model.safetensors").string(), tensors, {{"format", "pt"}});
}

}  // namespace

absl::Status CheckOutputFolder(const Checkpoint& checkpoint, const std::string& folder,
                               bool overwrite) {
  if (folder.empty()) return absl::InvalidArgumentError("the output folder has no name");
  const fs::path path = Normalized(folder);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return absl::OkStatus();

  // The old folder goes when the new one is there: never the model that is being read.
  for (fs::path source = fs::canonical(checkpoint.folder(), error); !error;
       source = source.parent_path()) {
    if (fs::equivalent(source, path, error)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path.string(), ": the output folder is, or contains, the model to compress"));
    }
    if (source == source.parent_path()) break;
  }
  if (fs::is_directory(status) && fs::is_empty(path, error) && !error) return absl::OkStatus();
  if (!overwrite) {
    return absl::AlreadyExistsError(
        absl::StrCat(path.string(), ": expected no such folder, or an empty one"));
  }
  return absl::OkStatus();
}

absl::Status WriteCompressedModel(const Checkpoint& checkpoint,
                                  absl::Span<const std::unique_ptr<EncodedLinear>> sites,
                                  absl::Span<const ReplacedTensor> replaced,
                                  const nlohmann::json& quantization_config,
                                  const std::string& folder, bool overwrite) {
  US_RETURN_IF_ERROR(CheckOutputFolder(checkpoint, folder, overwrite));
  const fs::path path = Normalized(folder);
  const fs::path temporary = path.string() + absl::StrCat(".tmp.", getpid());
  const fs::path old = path.string() + absl::StrCat(".old.", getpid());

  std::error_code error;
  if (path.has_parent_path()) {
    fs::create_directories(path.parent_path(), error);
    US_RETURN_IF_ERROR(FromErrorCode(error, path.parent_path().string()));
  }
  if (!fs::create_directory(temporary, error)) {
    US_RETURN_IF_ERROR(FromErrorCode(error, temporary.string()));
    return absl::AlreadyExistsError(
        absl::StrCat(temporary.string(), ": expected no such folder; remove it"));
  }
  absl::Cleanup remove_temporary = [&temporary] {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
  };
  US_RETURN_IF_ERROR(WriteConfig(checkpoint, quantization_config, temporary));
  US_RETURN_IF_ERROR(CopySideFiles(checkpoint, temporary));
  US_RETURN_IF_ERROR(WriteWeights(checkpoint, sites, replaced, temporary));
  US_RETURN_IF_ERROR(SyncFolder(temporary));

  // rename replaces an empty folder, not a full one.
  const bool replaces =
      fs::exists(path, error) && !(fs::is_directory(path, error) && fs::is_empty(path, error));
  if (replaces) {
    fs::rename(path, old, error);
    US_RETURN_IF_ERROR(FromErrorCode(error, path.string()));
  }
  fs::rename(temporary, path, error);
  if (error) {
    std::error_code ignored;
    if (replaces) fs::rename(old, path, ignored);
    return FromErrorCode(error, path.string());
  }
  std::move(remove_temporary).Cancel();
  if (replaces) fs::remove_all(old, error);
  return SyncFolder(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

}  // namespace ultrasketch
