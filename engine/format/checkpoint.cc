#include "engine/format/checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "engine/base/dtype.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/checksum.h"
#include "engine/format/families/family.h"
#include "engine/format/json.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
constexpr std::string_view kQuantizedEmbeddingName = "model.embed_tokens.quantized";
constexpr std::string_view kHeadName = "lm_head.weight";
constexpr std::string_view kQuantizedHeadName = "lm_head.quantized";
constexpr std::string_view kHeadKey = "head";  // of quantization_config: the type of the latter

// Files that belong to a model besides its weights.
constexpr const char* kSideFiles[] = {
    "config.json",           "generation_config.json",  "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"};

std::string Join(const std::string& folder, std::string_view name) {
  return (std::filesystem::path(folder) / name).string();
}

// False also when the path cannot be looked at: opening it then says why.
// A link that leads nowhere exists, and is an error when it is opened.
bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
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

}  // namespace

// The files with a model's weights.
struct WeightFiles {
  std::vector<std::unique_ptr<SafetensorsFile>> files;  // in order of name

  // Of a sharded model: which shard the index says that a tensor is in, and why shards that it
  // names cannot be used.
  std::string index_path;
  std::map<std::string, std::string> weight_map;
  std::map<std::string, absl::Status> unusable;
};

namespace {

// Shards that cannot be opened matter once a tensor in them is needed, unless no other is left.
absl::StatusOr<WeightFiles> OpenShards(const std::string& folder, const std::string& index_path) {
  WeightFiles weights;
  weights.index_path = index_path;
  US_ASSIGN_OR_RETURN(weights.weight_map, ReadWeightMap(index_path));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weights.weight_map) shards.insert(shard);
  for (const std::string& shard : shards) {
    auto file = SafetensorsFile::Open(Join(folder, shard));
    if (file.ok()) {
      weights.files.push_back(*std::move(file));
    } else {
      weights.unusable.emplace(shard, file.status());
    }
  }
  if (weights.files.empty()) {
    const auto& [shard, status] = *weights.unusable.begin();
    return Annotate(status, absl::StrCat(index_path,
                                         ": none of the shards that it names can be "
                                         "used, the first of them because of this"));
  }
  return weights;
}

absl::StatusOr<WeightFiles> OpenWeights(const std::string& folder) {
  const std::string weights_path = Join(folder, kWeightsName);
  const std::string index_path = Join(folder, kIndexName);
  if (Exists(weights_path)) {
    WeightFiles weights;
    US_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(weights_path));
    weights.files.push_back(std::move(file));
    return weights;
  }
  if (Exists(index_path)) return OpenShards(folder, index_path);
  return absl::NotFoundError(
      absl::StrCat(folder, ": expected ", kWeightsName, " or ", kIndexName, ", found neither"));
}

std::string FileName(const SafetensorsFile& file) {
  return std::filesystem::path(file.path()).filename().string();
}

// Whether a tensor of this name may be one of a decoder's: whoever loads it knows for certain. What
// an index says of others is nobody's business. The names are those of Hugging Face's layout and of
// FORMAT.md.
bool MayBeNeeded(std::string_view name, int num_layers) {
  for (const std::string_view prefix : {"model.embed_tokens.", "model.norm.", "lm_head."}) {
    if (name.starts_with(prefix)) return true;
  }
  constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) return false;
  name.remove_prefix(kLayers.size());
  int layer = 0;
  return absl::SimpleAtoi(A(name.substr(0, name.find('.'))), &layer) && layer < num_layers &&
         !name.ends_with(".rotary_emb.inv_freq");  // of old files, and computed
}

// Tensors of which an index says what is not so.
class IndexFindings {
 public:
  void Add(std::string first) {
    if (num_tensors_++ == 0) first_ = std::move(first);
  }
  void AppendTo(std::vector<std::string>& warnings, const std::string& index_path) const {
    if (num_tensors_ == 0) return;
    warnings.push_back(absl::StrCat(
        index_path, ": ", first_,
        num_tensors_ == 1 ? "" : absl::StrCat("; the same goes for ", num_tensors_ - 1, " more")));
  }

 private:
  int64_t num_tensors_ = 0;
  std::string first_;
};

// Whether two tables hold the same numbers, be they of different types.
bool HaveSameNumbers(const TensorView& a, const TensorView& b) {
  if (a.shape != b.shape) return false;
  const int64_t count = a.num_elements();
  if (a.dtype == b.dtype) {
    return std::memcmp(a.data, b.data, static_cast<size_t>(count * ElementBytes(a.dtype))) == 0;
  }
  if (!IsFloating(a.dtype) || !IsFloating(b.dtype)) return false;
  constexpr int64_t kChunk = 4096;
  std::vector<float> of_a(kChunk);
  std::vector<float> of_b(kChunk);
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    CopyToFloat(a, first, n, of_a.data());
    CopyToFloat(b, first, n, of_b.data());
    if (!std::equal(of_a.begin(), of_a.begin() + n, of_b.begin())) return false;
  }
  return true;
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
  const std::filesystem::file_status status = std::filesystem::status(folder, error);
  if (error.value() == EACCES) return CannotOpen(EACCES, folder);
  if (!std::filesystem::is_directory(status)) {
    return absl::NotFoundError(
        absl::StrCat(folder, ": expected a model's folder, found ",
                     std::filesystem::exists(status) ? "something else" : "nothing"));
  }
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->folder_ = folder;
  const std::string config_path = Join(folder, "config.json");
  US_ASSIGN_OR_RETURN(checkpoint->config_, ReadModelConfig(config_path, &checkpoint->warnings_));
  const std::string generation_path = Join(folder, "generation_config.json");
  if (Exists(generation_path)) {
    checkpoint->generation_config_ = ReadGenerationConfig(
        generation_path, checkpoint->config_.vocab_size, checkpoint->warnings_);
  }

  US_ASSIGN_OR_RETURN(WeightFiles weights, OpenWeights(folder));
  US_RETURN_IF_ERROR(VerifyChecksums(weights.files));
  for (const auto& file : weights.files) {
    US_RETURN_IF_ERROR(
        CheckQuantization(*file, checkpoint->config_.quantization_config, config_path));
    checkpoint->file_bytes_ += file->file_bytes();
  }
  if (!weights.index_path.empty()) checkpoint->file_bytes_ += FileBytes(weights.index_path);
  for (const char* name : kSideFiles) checkpoint->file_bytes_ += FileBytes(Join(folder, name));

  checkpoint->TakeTensors(weights);
  US_RETURN_IF_ERROR(checkpoint->CheckAssumedHeadDim(config_path));
  checkpoint->ResolveHead(config_path);
  for (const auto& [name, entry] : checkpoint->entries_) checkpoint->tensor_names_.push_back(name);
  checkpoint->files_ = std::move(weights.files);
  checkpoint->weights_checksum_ = checkpoint->WeightsChecksum();
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

void Checkpoint::TakeTensors(const WeightFiles& weights) {
  IndexFindings unlisted, elsewhere, doubled;
  for (const auto& file : weights.files) {
    for (const NamedTensor& tensor : file->tensors()) {
      const Entry entry = {&tensor.view, file.get(), ""};
      const auto [position, is_new] = entries_.try_emplace(tensor.name, entry);
      if (is_new) continue;
      // The shard that the index names, else the first.
      const auto listed = weights.weight_map.find(tensor.name);
      const bool is_listed_here =
          listed != weights.weight_map.end() && listed->second == FileName(*file);
      const SafetensorsFile& other = is_listed_here ? *position->second.file : *file;
      if (is_listed_here) position->second = entry;
      if (!MayBeNeeded(tensor.name, config_.num_layers)) continue;
      doubled.Add(absl::StrCat("tensor ", Quoted(tensor.name, 200), " is stored twice, in ",
                               FileName(*position->second.file), ", which is used, and in ",
                               FileName(other)));
    }
  }
  for (const auto& file : weights.files) {
    for (const auto& [name, dtype] : file->unsupported()) {
      if (!entries_.contains(name)) missing_.emplace(name, file->Missing(name));
    }
  }
  if (weights.index_path.empty()) return;

  for (const auto& [name, entry] : entries_) {
    if (!MayBeNeeded(name, config_.num_layers)) continue;
    const auto listed = weights.weight_map.find(name);
    const std::string stored_in = FileName(*entry.file);
    if (listed == weights.weight_map.end()) {
      unlisted.Add(absl::StrCat("does not list tensor ", Quoted(name, 200), "; it is taken from ",
                                stored_in, ", which has it"));
    } else if (listed->second != stored_in) {
      elsewhere.Add(absl::StrCat("says that tensor ", Quoted(name, 200), " is in ",
                                 Quoted(listed->second, 200), ", which does not have it; it is ",
                                 "taken from ", stored_in));
    }
  }
  for (const IndexFindings* findings : {&unlisted, &elsewhere, &doubled}) {
    findings->AppendTo(warnings_, weights.index_path);
  }

  for (const auto& [name, shard] : weights.weight_map) {
    if (entries_.contains(name)) continue;
    const auto unusable = weights.unusable.find(shard);
    missing_.emplace(
        name, unusable != weights.unusable.end()
                  ? Annotate(unusable->second, absl::StrCat(weights.index_path, ": the shard of ",
                                                            "tensor ", Quoted(name, 200)))
                  : absl::NotFoundError(absl::StrCat(Join(folder_, shard), ": tensor ",
                                                     Quoted(name, 200), " is missing, expected ",
                                                     "here by ", weights.index_path)));
  }
}

absl::Status Checkpoint::CheckAssumedHeadDim(const std::string& config_path) const {
  const TensorView* const queries = Find("model.layers.0.self_attn.q_proj.weight");
  if (queries == nullptr || queries->shape.empty() || queries->shape[0] == config_.query_width() ||
      FindFamily(config_.model_type)->head_dim == 0) {
    return absl::OkStatus();
  }
  US_ASSIGN_OR_RETURN(const json config, ReadJsonFile(config_path));
  if (FindMember(config, "head_dim") != nullptr) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      config_path, ": head_dim: expected the size of a head, found nothing: ", config_.head_dim,
      " was assumed, as transformers does for ", config_.model_type, ", so that queries have ",
      config_.query_width(), " values; model.layers.0.self_attn.q_proj.weight has ",
      queries->shape[0], " rows"));
}

void Checkpoint::ResolveHead(const std::string& config_path) {
  if (!config_.tie_word_embeddings) return;
  const auto head = entries_.find(kHeadName);
  const auto embedding = entries_.find(kEmbeddingName);
  if (head == entries_.end()) {
    const auto quantized = entries_.find(kQuantizedHeadName);
    if (quantized != entries_.end() &&
        FindMember(config_.quantization_config, kHeadKey) != nullptr) {
      UseStoredHead(quantized->second, config_path);
    } else if (missing_.contains(kHeadName) &&
               absl::IsUnimplemented(missing_.find(kHeadName)->second)) {
      config_.tie_word_embeddings = false;  // whoever needs the head learns why there is none
    } else if (missing_.contains(kHeadName)) {
      warnings_.push_back(absl::StrCat(missing_.find(kHeadName)->second.message(),
                                       "; the embedding is the head, for ", config_path,
                                       " says that they are tied"));
    }
  } else if (embedding != entries_.end()) {
    if (HaveSameNumbers(*head->second.view, *embedding->second.view)) {
      entries_.erase(head);
    } else {
      UseStoredHead(head->second, config_path);
    }
  } else if (entries_.contains(kQuantizedEmbeddingName)) {
    UseStoredHead(head->second, config_path);
  } else if (!missing_.contains(kEmbeddingName)) {
    // The one table, under its other name.
    Entry entry = head->second;
    entry.stored_name = kHeadName;
    entries_.erase(head);
    entries_.emplace(kEmbeddingName, entry);
  }
}

void Checkpoint::UseStoredHead(const Entry& head, const std::string& config_path) {
  config_.tie_word_embeddings = false;
  warnings_.push_back(absl::StrCat(
      config_path, ": tie_word_embeddings is true, but ", head.file->path(),
      " has an lm_head that differs from the embedding; the stored lm_head is the head"));
}

std::string Checkpoint::WeightsChecksum() const {
  uint64_t checksum = 0;
  for (const auto& [name, entry] : entries_) {
    const std::string_view stored_name = entry.stored_name.empty() ? name : entry.stored_name;
    const std::optional<uint64_t> tensor = entry.file->FindChecksum(stored_name);
    if (!tensor.has_value()) return "";
    const std::string line = absl::StrCat(name, " ", ChecksumString(*tensor), "\n");
    checksum = Crc64(line.data(), static_cast<int64_t>(line.size()), checksum);
  }
  return ChecksumString(checksum);
}

const TensorView* Checkpoint::Find(std::string_view name) const {
  const auto entry = entries_.find(name);
  return entry == entries_.end() ? nullptr : entry->second.view;
}

std::string Checkpoint::Describe(std::string_view name) const {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) return folder_;
  const std::string& path = entry->second.file->path();
  if (entry->second.stored_name.empty()) return path;
  return absl::StrCat(path, " (as ", A(entry->second.stored_name), ")");
}

absl::Status Checkpoint::Missing(std::string_view name) const {
  const auto missing = missing_.find(name);
  return missing == missing_.end() ? TensorSource::Missing(name) : missing->second;
}

const std::vector<int32_t>& Checkpoint::eos_token_ids() const {
  return generation_config_.eos_token_ids.has_value() ? *generation_config_.eos_token_ids
                                                      : config_.eos_token_ids;
}

absl::Status Checkpoint::CheckIntact() const {
  for (const auto& file : files_) US_RETURN_IF_ERROR(file->CheckIntact());
  return absl::OkStatus();
}

std::string Checkpoint::tokenizer_path() const { return Join(folder_, "tokenizer.json"); }

}  // namespace ultrasketch
