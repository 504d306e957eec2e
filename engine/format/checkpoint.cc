#include "engine/format/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/json.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

// Files that belong to a model besides its weights.
constexpr const char* kSideFiles[] = {"config.json", "generation_config.json", "tokenizer.json",
                                      "tokenizer_config.json", "special_tokens_map.json"};

std::string Join(const std::string& folder, std::string_view name) {
  return (std::filesystem::path(folder) / name).string();
}

// False also when the path cannot be looked at: opening it then says why.
bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

int64_t FileBytes(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

// Tensor name to shard name: the index file's "weight_map".
absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& index_path) {
  US_ASSIGN_OR_RETURN(const json index, ReadJsonFile(index_path));
  const json* weight_map = FindMember(index, "weight_map");
  if (weight_map == nullptr || !weight_map->is_object() || weight_map->empty()) {
    return absl::DataLossError(absl::StrCat(
        index_path, ": expected an object \"weight_map\" with a shard for each ", "tensor, found ",
        weight_map != nullptr && weight_map->is_object() ? "an empty one"
                                                         : DescribeJson(weight_map)));
  }
  std::map<std::string, std::string> result;
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::DataLossError(absl::StrCat(
          index_path, ": tensor ", Quoted(tensor, 200),
          ": expected the name of a file in the same folder, found ", DescribeJson(&shard)));
    }
    result.emplace(tensor, shard.get_ref<const std::string&>());
  }
  return result;
}

absl::StatusOr<std::vector<std::unique_ptr<SafetensorsFile>>> OpenShards(
    const std::string& folder, const std::string& index_path) {
  US_ASSIGN_OR_RETURN(const auto weight_map, ReadWeightMap(index_path));
  std::map<std::string, std::unique_ptr<SafetensorsFile>> shards;
  for (const auto& [tensor, shard] : weight_map) {
    std::unique_ptr<SafetensorsFile>& file = shards[shard];
    if (file == nullptr) {
      auto opened = SafetensorsFile::Open(Join(folder, shard));
      if (!opened.ok()) {
        return Annotate(opened.status(),
                        absl::StrCat(index_path, ": the shard of tensor ", Quoted(tensor, 200)));
      }
      file = *std::move(opened);
    }
    if (file->Find(tensor) == nullptr) {
      return absl::DataLossError(absl::StrCat(file->path(), ": tensor ", Quoted(tensor, 200),
                                              " is missing, expected here by ", index_path));
    }
  }
  // The other direction: so each tensor is in one shard only.
  for (const auto& [shard, file] : shards) {
    for (const NamedTensor& tensor : file->tensors()) {
      const auto position = weight_map.find(tensor.name);
      if (position != weight_map.end() && position->second == shard) continue;
      return absl::DataLossError(
          absl::StrCat(file->path(), ": tensor ", Quoted(tensor.name, 200),
                       " is not expected here: ", index_path,
                       position == weight_map.end()
                           ? " does not list it"
                           : absl::StrCat(" says that it is in ", Quoted(position->second, 200))));
    }
  }
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  files.reserve(shards.size());
  for (auto& [shard, file] : shards) files.push_back(std::move(file));
  return files;
}

absl::Status VerifyChecksums(const std::vector<std::unique_ptr<SafetensorsFile>>& files) {
  int64_t num_bytes = 0;
  for (const auto& file : files) {
    if (file->has_checksums()) num_bytes += file->file_bytes();
  }
  // Starting threads takes as long as reading some megabytes.
  constexpr int64_t kBytesPerThread = int64_t{16} << 20;
  const int64_t useful_threads = std::max<int64_t>(1, num_bytes / kBytesPerThread);
  ThreadPool pool(static_cast<int>(std::min<int64_t>(useful_threads, AvailableCpus())));
  for (const auto& file : files) US_RETURN_IF_ERROR(file->VerifyChecksums(pool));
  return absl::OkStatus();
}

// The hash's seed and whatever else config.json says of the codec decides what the tensors mean: it
// must be what they were written with.
absl::Status CheckQuantization(const SafetensorsFile& file, const json& found,
                               const std::string& config_path) {
  const auto entry = file.metadata().find(std::string(kQuantizationKey));
  if (entry == file.metadata().end()) return absl::OkStatus();
  const json expected = json::parse(entry->second, nullptr, /*allow_exceptions=*/false);
  if (!expected.is_object()) {
    return absl::DataLossError(
        absl::StrCat(file.path(), ": metadata ", A(kQuantizationKey), ": expected a JSON object"));
  }
  for (const auto& [key, value] : expected.items()) {
    const json* other = FindMember(found, key);
    if (other != nullptr && *other == value) continue;
    return absl::DataLossError(absl::StrCat(config_path, ": ", A(kQuantizationKey), ".", key,
                                            ": expected ", DescribeJson(&value), " as in ",
                                            file.path(), ", found ", DescribeJson(other)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    return absl::NotFoundError(absl::StrCat(folder, ": expected a model's folder, found ",
                                            Exists(folder) ? "something else" : "nothing"));
  }
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->folder_ = folder;
  US_ASSIGN_OR_RETURN(checkpoint->config_, ReadModelConfig(Join(folder, "config.json")));

  const std::string generation_path = Join(folder, "generation_config.json");
  if (Exists(generation_path)) {
    const absl::StatusOr<json> generation = ReadJsonFile(generation_path, kMaxConfigBytes);
    if (!generation.ok()) {
      checkpoint->warnings_.push_back(
          absl::StrCat(generation.status().message(),
                       "; the file is not used: what a request leaves out is neutral"));
    } else {
      US_ASSIGN_OR_RETURN(
          checkpoint->generation_config_,
          ParseGenerationConfig(*generation, checkpoint->config_.vocab_size, generation_path));
    }
  }

  const std::string weights_path = Join(folder, kWeightsName);
  const std::string index_path = Join(folder, kIndexName);
  if (Exists(weights_path)) {
    US_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(weights_path));
    checkpoint->files_.push_back(std::move(file));
  } else if (Exists(index_path)) {
    US_ASSIGN_OR_RETURN(checkpoint->files_, OpenShards(folder, index_path));
    checkpoint->file_bytes_ += FileBytes(index_path);
  } else {
    return absl::NotFoundError(
        absl::StrCat(folder, ": expected ", kWeightsName, " or ", kIndexName, ", found neither"));
  }

  US_RETURN_IF_ERROR(VerifyChecksums(checkpoint->files_));
  for (const auto& file : checkpoint->files_) {
    US_RETURN_IF_ERROR(CheckQuantization(*file, checkpoint->config_.quantization_config,
                                         Join(folder, "config.json")));
  }

  for (const char* name : kSideFiles) checkpoint->file_bytes_ += FileBytes(Join(folder, name));
  std::vector<std::pair<std::string_view, Entry>> tensors;
  for (const auto& file : checkpoint->files_) {
    checkpoint->file_bytes_ += file->file_bytes();
    for (const NamedTensor& tensor : file->tensors()) {
      tensors.push_back({tensor.name, {&tensor.view, file.get()}});
    }
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [name, entry] : tensors) {
    checkpoint->tensor_names_.emplace_back(name);
    checkpoint->entries_.push_back(entry);
  }
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

const Checkpoint::Entry* Checkpoint::FindEntry(std::string_view name) const {
  const auto position = std::lower_bound(tensor_names_.begin(), tensor_names_.end(), name);
  if (position == tensor_names_.end() || *position != name) return nullptr;
  return &entries_[static_cast<size_t>(position - tensor_names_.begin())];
}

const TensorView* Checkpoint::Find(std::string_view name) const {
  const Entry* entry = FindEntry(name);
  return entry == nullptr ? nullptr : entry->view;
}

std::string Checkpoint::Describe(std::string_view name) const {
  const Entry* entry = FindEntry(name);
  return entry == nullptr ? folder_ : entry->file->path();
}

const std::vector<int32_t>& Checkpoint::eos_token_ids() const {
  return generation_config_.eos_token_ids.has_value() ? *generation_config_.eos_token_ids
                                                      : config_.eos_token_ids;
}

std::string Checkpoint::tokenizer_path() const { return Join(folder_, "tokenizer.json"); }

}  // namespace ultrasketch
