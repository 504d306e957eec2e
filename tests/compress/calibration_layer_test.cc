// The streams of a calibration are the model's own activations, over the architectures that a
// config can describe.
#include "engine/compress/calibration_layer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/dense/dense_linear.h"
#include "engine/compress/compressor.h"
#include "engine/compress/cpu_fit_device.h"
#include "engine/compress/decoder_math.h"
#include "engine/compress/layer_fit.h"
#include "engine/models/layer_table.h"
#include "tests/base/temporary_folder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

struct Variation {
  const char* name;
  const char* changes;  // of TinyConfig
};

void PrintTo(const Variation& variation, std::ostream* out) { *out << variation.name; }

// A site as the dense model has it, whatever the moments.
class DenseEncoder final : public SiteEncoder {
 public:
  explicit DenseEncoder(absl::Span<const LinearSite> sites) : sites_(sites) {}
  nlohmann::json Parameters() const override { return {}; }
  absl::StatusOr<std::unique_ptr<EncodedLinear>> Encode(size_t index,
                                                        absl::Span<const float> weights,
                                                        FitMoments& /*moments*/,
                                                        ThreadPool& /*pool*/) const override {
    LinearSite site = sites_[index];
    stored_.push_back(std::make_unique<std::vector<float>>(weights.begin(), weights.end()));
    const TensorView view = {DType::kF32,
                             {site.rows, site.cols},
                             reinterpret_cast<const uint8_t*>(stored_.back()->data())};
    site.members = {{site.name, site.rows, /*has_bias=*/false}};
    std::vector<NamedTensor> tensors = {{site.name + ".weight", view}};
    return std::make_unique<DenseLinear>(std::move(site), std::move(tensors));
  }

 private:
  const absl::Span<const LinearSite> sites_;
  mutable std::vector<std::unique_ptr<std::vector<float>>> stored_;
};

class CalibrationStreamTest : public testing::TestWithParam<Variation> {
 protected:
  CalibrationStreamTest() {
    nlohmann::json config = TinyConfig();
    config.merge_patch(nlohmann::json::parse(GetParam().changes));
    tiny_ = MakeTinyModel(config, {DType::kF32, DType::kBF16});
    tiny_.Write(folder_.path());
    auto opened = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
    sites_ = LinearSites(checkpoint_->config());
    for (const int64_t count : {70, 1, 33}) {
      text_.windows.push_back(
          RandomTokens(count, checkpoint_->config().vocab_size, static_cast<uint64_t>(count)));
    }
  }

  TinyModel tiny_;
  const TemporaryFolder folder_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<LinearSite> sites_;
  CalibrationText text_;
  ThreadPool pool_{2};
  const std::unique_ptr<FitDevice> device_ = MakeCpuFitDevice(pool_);
};

TEST_P(CalibrationStreamTest, EqualsTheModelsForward) {
  const ModelConfig& config = checkpoint_->config();
  const auto width = static_cast<size_t>(config.hidden_size);
  const std::vector<float>& table = tiny_.values("model.embed_tokens.weight");
  std::vector<float> hidden;
  std::vector<int64_t> window_tokens;
  for (const std::vector<int32_t>& window : text_.windows) {
    window_tokens.push_back(static_cast<int64_t>(window.size()));
    for (const int32_t id : window) {
      const auto row = table.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(id) * width);
      hidden.insert(hidden.end(), row, row + static_cast<std::ptrdiff_t>(width));
    }
  }
  const auto inputs = SiteInputs::Make(config, *device_);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const auto dense = DenseLayer::Read(*checkpoint_, sites_, layer, *device_);
    ASSERT_TRUE(dense.ok()) << dense.status();
    const absl::Status run = dense->Run(
        *inputs, window_tokens, [](const LinearSite&, float*) { return absl::OkStatus(); },
        hidden.data());
    ASSERT_TRUE(run.ok()) << run;
  }
  std::vector<float> normed(hidden.size());
  NormalizeRows(hidden.data(), tiny_.values(kFinalNormName), config.rms_norm_eps,
                text_.num_tokens(), normed.data(), pool_);
  const std::vector<float>& head =
      tiny_.values(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");

  const auto model = MustLoadModel(folder_.path(), 2);
  size_t token = 0;
  for (const std::vector<int32_t>& window : text_.windows) {
    for (const std::vector<float>& expected : AllLogits(*model, window)) {
      for (size_t id = 0; id < expected.size(); ++id) {
        double logit = 0;
        for (size_t i = 0; i < width; ++i) {
          logit += double{head[id * width + i]} * double{normed[token * width + i]};
        }
        ASSERT_NEAR(logit, expected[id], 5e-4) << "token " << token << ", logit " << id;
      }
      ++token;
    }
  }
}

// The fit's two streams take the same way: with nothing lost at any site they stay the same.
TEST_P(CalibrationStreamTest, TheFitsStreamsAreOneWhenNothingIsLost) {
  const DenseEncoder encoder(sites_);
  const auto fit = FitLayers(*checkpoint_, sites_, encoder, text_, {}, *device_, pool_);
  ASSERT_TRUE(fit.ok()) << fit.status();
  for (const FittedLayer& layer : fit->layers) {
    for (size_t kind = 0; kind < layer.sites.size(); ++kind) {
      EXPECT_LT(layer.sites[kind].relative_output_error, 1e-6) << kind;
      if (kind % 2 == 1) {
        EXPECT_LT(layer.sites[kind].relative_residual_error, 1e-5) << kind;
      }
    }
  }
}

TEST_P(CalibrationStreamTest, ItsModelIsCompressedAndServed) {
  CompressOptions options;
  options.calibration_windows = 4;
  options.calibration_window_tokens = 32;
  options.num_threads = 2;
  options.bits_per_weight = 2;
  const auto report = CompressCheckpoint(checkpoint_, folder_.File("out"), options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->calibration_source, "self-generated");
  const auto written = Checkpoint::Open(folder_.File("out"));
  ASSERT_TRUE(written.ok()) << written.status();
  const ModelConfig& config = (*written)->config();
  EXPECT_EQ(config.head_norms, checkpoint_->config().head_norms);
  EXPECT_EQ(config.rope_layers, checkpoint_->config().rope_layers);
  for (const LayerVector vector : LayerVectors(config)) {
    EXPECT_NE((*written)->Find(LayerVectorName(0, vector)), nullptr);
  }
  // More than chance: logits point where the dense model's do. They are those of random weights
  // with few columns, of which two bits keep little.
  const auto dense = MustLoadModel(folder_.path(), 2);
  const auto model = MustLoadModel(folder_.File("out"), 2);
  const std::vector<int32_t>& ids = text_.windows[0];
  const auto expected = AllLogits(*dense, ids);
  const auto found = AllLogits(*model, ids);
  double product = 0, found_square = 0, expected_square = 0;
  for (size_t row = 0; row < ids.size(); ++row) {
    for (size_t i = 0; i < expected[row].size(); ++i) {
      product += double{found[row][i]} * double{expected[row][i]};
      found_square += double{found[row][i]} * double{found[row][i]};
      expected_square += double{expected[row][i]} * double{expected[row][i]};
    }
  }
  EXPECT_GT(product / std::sqrt(found_square * expected_square), 0.3);
}

INSTANTIATE_TEST_SUITE_P(
    Architectures, CalibrationStreamTest,
    ::testing::Values(
        Variation{"llama", R"({})"}, Variation{"untied", R"({"tie_word_embeddings": false})"},
        Variation{"all_biases", R"({"attention_bias": true, "mlp_bias": true})"},
        Variation{"qwen2", R"({"model_type": "qwen2", "tie_word_embeddings": false})"},
        Variation{"mistral", R"({"model_type": "mistral", "sliding_window": null})"},
        Variation{"linear_rope", R"({"rope_scaling": {"rope_type": "linear", "factor": 4.0}})"},
        Variation{"llama3_rope",
                  R"({"head_dim": 32, "rope_theta": 5000.0,
                      "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 128}})"},
        Variation{"narrow_heads", R"({"head_dim": 6})"},
        Variation{"one_key_for_all", R"({"num_key_value_heads": 1, "head_dim": 22})"},
        Variation{"large_epsilon", R"({"rms_norm_eps": 0.5})"},
        Variation{"qwen3", R"({"model_type": "qwen3", "head_dim": 24, "rms_norm_eps": 0.05})"},
        Variation{"smollm3", R"({"model_type": "smollm3", "no_rope_layers": [1, 0]})"}),
    [](const auto& variation) { return std::string(variation.param.name); });

}  // namespace
}  // namespace ultrasketch
