#include "engine/bench/synthetic_checkpoint.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "engine/base/file.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/base/tensor.h"
#include "engine/bench/model_presets.h"
#include "engine/format/model_config.h"
#include "engine/format/safetensors.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kElementsAtOnce = int64_t{1} << 18;

// Normal numbers to draw from: much quicker than to compute one for every weight.
constexpr size_t kNumNormals = 4096;
using Normals = std::array<float, kNumNormals>;

const Normals& SomeNormals() {
  static const Normals normals = [] {
    Normals values;
    for (size_t i = 0; i < kNumNormals; ++i) {
      values[i] = static_cast<float>(NormalDouble(0x5eed, 0, i));
    }
    return values;
  }();
  return normals;
}

class Shard {
 public:
  // Tensors draw from streams of their own: (index of the shard, index of the tensor).
  Shard(uint64_t seed, size_t index) : seed_(seed), first_stream_(uint64_t{index} << 32) {}

  // Numbers of mean 0 and the given deviation, or all 1 without one.
  void Add(const std::string& name, std::vector<int64_t> shape, double deviation) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    TensorToWrite tensor;
    tensor.name = name;
    tensor.dtype = DType::kBF16;
    tensor.shape = std::move(shape);
    const uint64_t stream = first_stream_ + tensors_.size();
    tensor.produce = [count, deviation, stream, seed = seed_](TensorToWrite::Append append) {
      std::vector<uint16_t> values;
      for (int64_t first = 0; first < count; first += kElementsAtOnce) {
        values.resize(static_cast<size_t>(std::min(kElementsAtOnce, count - first)));
        for (size_t i = 0; i < values.size(); i += 5) {
          // Five draws of twelve bits from each word.
          uint64_t word = RandomWord(seed, stream, static_cast<uint64_t>(first) + i);
          for (size_t j = i; j < std::min(i + 5, values.size()); ++j, word >>= 12) {
            values[j] = FloatToBf16(deviation > 0 ? static_cast<float>(deviation) *
                                                        SomeNormals()[word % kNumNormals]
                                                  : 1.0f);
          }
        }
        US_RETURN_IF_ERROR(append(values.data(), static_cast<int64_t>(values.size() * 2)));
      }
      return absl::OkStatus();
    };
    tensors_.push_back(std::move(tensor));
  }

  const std::vector<TensorToWrite>& tensors() const { return tensors_; }

 private:
  uint64_t seed_;
  uint64_t first_stream_;
  std::vector<TensorToWrite> tensors_;
};

std::vector<Shard> MakeShards(const ModelConfig& config, const SyntheticOptions& options) {
  constexpr double kEmbeddingDeviation = 0.02;
  const int64_t width = config.hidden_size;
  std::vector<Shard> shards(1, Shard(options.seed, 0));
  shards[0].Add("model.embed_tokens.weight", {config.vocab_size, width}, kEmbeddingDeviation);
  shards[0].Add("model.norm.weight", {width}, 0);
  if (!config.tie_word_embeddings) {
    shards[0].Add("lm_head.weight", {config.vocab_size, width}, kEmbeddingDeviation);
  }
  for (const LinearSite& site : LinearSites(config)) {
    const std::string prefix = absl::StrCat("model.layers.", site.layer);
    if (site.kind == SiteKind::kAttentionInput) {
      if (site.layer % options.layers_per_shard == 0) {
        shards.emplace_back(options.seed, shards.size());
      }
      shards.back().Add(prefix + ".input_layernorm.weight", {width}, 0);
      shards.back().Add(prefix + ".post_attention_layernorm.weight", {width}, 0);
    }
    double deviation = 1 / std::sqrt(static_cast<double>(site.cols));
    const bool writes_to_residual =
        site.kind == SiteKind::kAttentionOutput || site.kind == SiteKind::kMlpOutput;
    if (writes_to_residual) deviation /= std::sqrt(2.0 * config.num_layers);
    for (const SiteMember& member : site.members) {
      shards.back().Add(member.name + ".weight", {member.rows, site.cols}, deviation);
    }
  }
  return shards;
}

absl::Status WriteFiles(const nlohmann::ordered_json& config_json, const fs::path& folder,
                        const SyntheticOptions& options) {
  US_ASSIGN_OR_RETURN(const ModelConfig config,
                      ParseModelConfig(nlohmann::json(config_json), "preset"));
  const std::vector<Shard> shards = MakeShards(config, options);
  nlohmann::json weight_map;
  for (size_t index = 0; index < shards.size(); ++index) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", index + 1, shards.size());
    for (const TensorToWrite& tensor : shards[index].tensors()) weight_map[tensor.name] = name;
    US_RETURN_IF_ERROR(WriteSafetensors((folder / name).string(), shards[index].tensors()));
  }
  US_RETURN_IF_ERROR(WriteFileAtomically((folder / "model.safetensors.index.json").string(),
                                         nlohmann::json{{"weight_map", weight_map}}.dump(1)));
  if (!options.tokenizer_folder.empty()) {
    US_ASSIGN_OR_RETURN(const std::string tokenizer,
                        ReadFile((fs::path(options.tokenizer_folder) / "tokenizer.json").string()));
    US_RETURN_IF_ERROR(WriteFileAtomically((folder / "tokenizer.json").string(), tokenizer));
  }
  return WriteFileAtomically((folder / "config.json").string(), config_json.dump(2) + "\n");
}

}  // namespace

absl::Status WriteSyntheticCheckpoint(std::string_view preset, const std::string& folder,
                                      const SyntheticOptions& options) {
  US_ASSIGN_OR_RETURN(const nlohmann::ordered_json config, PresetConfig(preset));
  std::error_code error;
  if (fs::exists(folder, error)) {
    return absl::AlreadyExistsError(absl::StrCat(folder, ": expected no such folder"));
  }
  fs::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), folder);
  absl::Cleanup remove_folder = [&folder] {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  };
  US_RETURN_IF_ERROR(WriteFiles(config, folder, options));
  std::move(remove_folder).Cancel();
  return absl::OkStatus();
}

}  // namespace ultrasketch
