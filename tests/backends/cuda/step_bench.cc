// Times whole steps of a model with synthetic weights, folded and dense, through the backend's
// interface. Prints one JSON object.
//
//   cuda_step_bench [--device cuda:0] [--preset llama-3.2-1b|llama-3.1-8b] [--layers N]
//                   [--codec fold|dense] [--step decode_1|decode_8|decode_64|prefill_2048]
//
// Fewer layers than the model has make a quick run; times are then of those layers and the head.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/backends/backend.h"
#include "engine/base/random.h"
#include "engine/codecs/dense/dense_linear.h"
#include "engine/codecs/fold/fold_linear.h"
#include "engine/format/model_config.h"
#include "engine/models/decoder_layer.h"
#include "engine/models/linear_sites.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", std::string(value.status().message()).c_str());
    std::exit(1);
  }
  return *std::move(value);
}

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}

ModelConfig PresetConfig(const std::string& name) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 128256;
  config.num_kv_heads = 8;
  config.num_attention_heads = 32;
  config.max_position_embeddings = 131072;
  config.rms_norm_eps = 1e-5f;
  config.rope.theta = 500000;
  if (name == "llama-3.1-8b") {
    config.hidden_size = 4096;
    config.intermediate_size = 14336;
    config.num_layers = 32;
    config.head_dim = 128;
  } else if (name == "llama-3.2-1b") {
    config.hidden_size = 2048;
    config.intermediate_size = 8192;
    config.num_layers = 16;
    config.head_dim = 64;
    config.tie_word_embeddings = true;
  } else {
    std::fprintf(stderr, "preset: expected llama-3.1-8b or llama-3.2-1b\n");
    std::exit(2);
  }
  return config;
}

// BF16 numbers of both signs, of magnitude near `scale`, a power of two.
std::vector<uint16_t> RandomBf16(int64_t count, float scale) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  uint64_t state = 88172645463325252u;
  const uint16_t exponent = FloatToBf16(scale);
  for (uint16_t& value : values) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = static_cast<uint16_t>(exponent | (state & 0x807fu));
  }
  return values;
}

// A model whose layers have the same random weights, each in device memory of its own.
class SyntheticModel {
 public:
  SyntheticModel(const ModelConfig& config, bool folded, int64_t max_tokens, int64_t cache_tokens,
                 Backend& backend)
      : config_(config), shape_(config), backend_(backend) {
    const std::vector<float> ones(static_cast<size_t>(config.hidden_size), 1.0f);
    const TensorView norm = {
        DType::kF32, {config.hidden_size}, reinterpret_cast<const uint8_t*>(ones.data())};
    std::vector<LinearSite> sites = LinearSites(config);
    int64_t prepared_width = 0;
    for (int layer = 0; layer < config.num_layers; ++layer) {
      DecoderLayer loaded;
      loaded.attention_norm = Must(backend.LoadVector(norm));
      loaded.mlp_norm = Must(backend.LoadVector(norm));
      LoadedLinear* const linears[] = {&loaded.attention_input, &loaded.attention_output,
                                       &loaded.mlp_input, &loaded.mlp_output};
      for (int kind = 0; kind < kNumSiteKinds; ++kind) {
        const EncodedLinear& encoded = Encoded(sites[static_cast<size_t>(kind)], folded);
        linears[kind]->device = Must(backend.LoadLinear(encoded, {}));
        weight_bytes_ += linears[kind]->device->resident_bytes();
      }
      prepared_width = std::max(prepared_width, loaded.prepared_width());
      layers_.push_back(std::move(loaded));
    }
    table_ = RandomBf16(int64_t{config.vocab_size} * config.hidden_size, 0x1p-5f);
    const TensorView table = {DType::kBF16,
                              {config.vocab_size, config.hidden_size},
                              reinterpret_cast<const uint8_t*>(table_.data())};
    embedding_ = Must(backend.LoadEmbedding(std::make_shared<DenseLinear>(
        EmbeddingSite(config), std::vector<NamedTensor>{{"model.embed_tokens.weight", table}})));
    final_norm_ = Must(backend.LoadVector(norm));
    attention_.layout.num_layers = config.num_layers;
    attention_.layout.num_kv_heads = config.num_kv_heads;
    attention_.layout.head_dim = config.head_dim;
    attention_.layout.num_blocks = cache_tokens / attention_.layout.block_size;
    attention_.layout.element_bytes = backend.cache_element_bytes();
    attention_.cache = Must(backend.Allocate(attention_.layout.total_bytes()));
    const std::vector<float> frequencies = RopeInverseFrequencies(config);
    attention_.inverse_frequencies =
        Must(backend.LoadVector({DType::kF32,
                                 {static_cast<int64_t>(frequencies.size())},
                                 reinterpret_cast<const uint8_t*>(frequencies.data())}));
    buffers_ = Must(LayerBuffers::Allocate(config, max_tokens, prepared_width, backend));
    logits_ = Must(backend.Allocate(int64_t{64} * config.vocab_size * 4));
  }

  int64_t weight_bytes() const { return weight_bytes_; }

  void Step(const StepInput& input) {
    Must(backend_.BeginStep(input));
    backend_.Embed(*embedding_, *buffers_.hidden);
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      RunDecoderLayer(shape_, layers_[layer], static_cast<int>(layer), attention_, buffers_,
                      backend_);
    }
    backend_.Logits(*buffers_.hidden, *final_norm_, shape_.epsilon, *embedding_, *logits_);
    Must(backend_.EndStep());
  }

  // Median seconds of a step of `batch` sequences with `num_new` new tokens each.
  double Time(int64_t batch, int64_t num_cached, int64_t num_new) {
    const int64_t block_size = attention_.layout.block_size;
    const int64_t blocks_each = (num_cached + num_new + block_size - 1) / block_size;
    std::vector<std::vector<BlockId>> blocks(static_cast<size_t>(batch));
    std::vector<int32_t> ids;
    std::vector<int32_t> positions;
    std::vector<int32_t> logit_tokens;
    std::vector<AttentionSpan> spans;
    for (int64_t i = 0; i < batch; ++i) {
      for (int64_t block = 0; block < blocks_each; ++block) {
        blocks[static_cast<size_t>(i)].push_back(static_cast<BlockId>(block * batch + i));
      }
      spans.push_back(
          {static_cast<int64_t>(ids.size()), num_new, num_cached, blocks[static_cast<size_t>(i)]});
      for (int64_t token = 0; token < num_new; ++token) {
        ids.push_back(static_cast<int32_t>(RandomWord(1, 2, ids.size()) % 128000));
        positions.push_back(static_cast<int32_t>(num_cached + token));
      }
      logit_tokens.push_back(static_cast<int32_t>(ids.size()) - 1);
    }
    const StepInput input = {ids, positions, spans, logit_tokens};
    for (int i = 0; i < 3; ++i) Step(input);
    std::vector<double> seconds;
    const auto start = std::chrono::steady_clock::now();
    while (seconds.size() < 200) {
      const auto begin = std::chrono::steady_clock::now();
      Step(input);
      const auto end = std::chrono::steady_clock::now();
      seconds.push_back(std::chrono::duration<double>(end - begin).count());
      if (seconds.size() >= 5 && std::chrono::duration<double>(end - start).count() > 0.5) break;
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

 private:
  const EncodedLinear& Encoded(const LinearSite& site, bool folded) {
    std::unique_ptr<EncodedLinear>& encoded = encoded_[static_cast<int>(site.kind)];
    if (encoded != nullptr) return *encoded;
    std::vector<uint16_t>& values = values_[static_cast<int>(site.kind)];
    if (folded) {
      FoldLayout layout(1, site.name, EvenFoldClasses(site.cols, site.cols / 2), {});
      values = RandomBf16(site.rows * ((layout.buckets() + 7) / 8) / 2 + 1, 1.0f);
      const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
      std::vector<uint8_t> bits(bytes, bytes + site.rows * ((layout.buckets() + 7) / 8));
      const std::vector<float> scales(static_cast<size_t>(site.rows), 0x1p-6f);
      encoded = FoldLinear::FromParts(site, std::move(layout), std::move(bits), scales);
    } else {
      values = RandomBf16(site.num_weights(), 0x1p-6f);
      std::vector<NamedTensor> members;
      int64_t first_row = 0;
      for (const SiteMember& member : site.members) {
        members.push_back(
            {member.name + ".weight",
             {DType::kBF16,
              {member.rows, site.cols},
              reinterpret_cast<const uint8_t*>(values.data() + first_row * site.cols)}});
        first_row += member.rows;
      }
      encoded = std::make_unique<DenseLinear>(site, std::move(members));
    }
    return *encoded;
  }

  ModelConfig config_;
  DecoderShape shape_;
  Backend& backend_;
  std::vector<uint16_t> values_[kNumSiteKinds];
  std::unique_ptr<EncodedLinear> encoded_[kNumSiteKinds];
  std::vector<DecoderLayer> layers_;
  std::vector<uint16_t> table_;
  std::unique_ptr<DeviceEmbedding> embedding_;
  std::unique_ptr<DeviceVector> final_norm_;
  AttentionState attention_;
  LayerBuffers buffers_;
  std::unique_ptr<DeviceBuffer> logits_;
  int64_t weight_bytes_ = 0;
};

struct StepShape {
  const char* name;
  int64_t batch;
  int64_t num_cached;
  int64_t num_new;
};

// All codecs and steps where no name is given.
int Run(const std::string& device, const std::string& preset, int num_layers,
        const std::string& only_codec, const std::string& only_step) {
  ModelConfig config = PresetConfig(preset);
  if (num_layers > 0) config.num_layers = std::min(num_layers, config.num_layers);
  const std::shared_ptr<Backend> backend = Must(CreateBackend(device, {}));
  std::vector<StepShape> shapes = {{"decode_1", 1, 511, 1},
                                   {"decode_8", 8, 511, 1},
                                   {"decode_64", 64, 511, 1},
                                   {"prefill_2048", 1, 0, 2048}};
  std::erase_if(shapes, [&](const StepShape& shape) {
    return !only_step.empty() && shape.name != only_step;
  });
  constexpr int64_t kMaxTokens = 2048;
  constexpr int64_t kCacheTokens = 64 * 512;
  nlohmann::json result = {
      {"device", backend->description()}, {"preset", preset}, {"layers", config.num_layers}};
  std::vector<double> seconds[2];
  for (const bool folded : {false, true}) {
    if (!only_codec.empty() && (only_codec == "fold") != folded) {
      seconds[folded ? 1 : 0].resize(shapes.size());
      continue;
    }
    const auto begin = std::chrono::steady_clock::now();
    SyntheticModel model(config, folded, kMaxTokens, kCacheTokens, *backend);
    const std::chrono::duration<double> load = std::chrono::steady_clock::now() - begin;
    const char* codec = folded ? "fold" : "dense";
    result["load_seconds"][codec] = load.count();
    result["weight_bytes"][codec] = model.weight_bytes();
    for (const StepShape& shape : shapes) {
      seconds[folded ? 1 : 0].push_back(model.Time(shape.batch, shape.num_cached, shape.num_new));
    }
  }
  for (size_t i = 0; i < shapes.size(); ++i) {
    result["steps"][shapes[i].name] = {{"dense_ms", 1e3 * seconds[0][i]},
                                       {"fold_ms", 1e3 * seconds[1][i]},
                                       {"ratio", seconds[0][i] / seconds[1][i]}};
    std::fprintf(stderr, "%s %2d layers %-13s dense %8.3f ms, fold %8.3f ms, ratio %.2f\n",
                 preset.c_str(), config.num_layers, shapes[i].name, 1e3 * seconds[0][i],
                 1e3 * seconds[1][i], seconds[0][i] / seconds[1][i]);
  }
  std::printf("%s\n", result.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace ultrasketch

int main(int argc, char** argv) {
  std::string device = "cuda:0";
  std::string preset = "llama-3.2-1b";
  int num_layers = 0;
  std::string codec;
  std::string step;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--device") device = argv[i + 1];
    if (option == "--preset") preset = argv[i + 1];
    if (option == "--codec") codec = argv[i + 1];
    if (option == "--step") step = argv[i + 1];
    if (option == "--layers") num_layers = static_cast<int>(std::strtol(argv[i + 1], nullptr, 10));
  }
  if (argc % 2 == 0) {
    std::fprintf(stderr,
                 "usage: %s [--device D] [--preset NAME] [--layers N] [--codec C] [--step S]\n",
                 argv[0]);
    return 2;
  }
  return ultrasketch::Run(device, preset, num_layers, codec, step);
}
