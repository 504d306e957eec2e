// A model in a codec's form against the dense model of its decoded weights.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/fold/fold_linear.h"
#include "engine/models/layer_table.h"
#include "engine/models/memory_plan.h"
#include "tests/base/temporary_folder.h"
#include "tests/codecs/fold_examples.h"
#include "tests/models/reference_decoder.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 42;

nlohmann::json QuantizationConfig(const char* codec) {
  return {{"quant_method", "ultrasketch"}, {"version", 1}, {"codec", codec}, {"seed", kSeed}};
}

// Replaces the linear weights by random ones in folded form, and returns the dense model of them.
TinyModel Fold(TinyModel& model) {
  TinyModel dense = model;
  model.config["quantization_config"] = QuantizationConfig("fold");
  for (const LinearSite& site : LinearSites(dense.Parsed())) {
    auto fold = ExampleFold(
        site, FoldLayout(kSeed, site.name, EvenFoldClasses(site.cols, (site.cols + 1) / 2), {}));
    // Scales as the weights' that they stand for.
    std::vector<float> scales = fold->Scales();
    for (float& scale : scales) scale *= 2 / std::sqrt(static_cast<float>(site.cols));
    const uint8_t* bits = fold->bits();
    fold = FoldLinear::FromParts(site, fold->layout(),
                                 std::vector<uint8_t>(bits, bits + site.rows * fold->row_bytes()),
                                 scales);
    int64_t first_row = 0;
    for (const SiteMember& member : site.members) {
      const std::string name = member.name + ".weight";
      TinyTensor& weight = dense.tensor(name);
      weight.dtype = DType::kF32;
      fold->DecodeRows(first_row, member.rows, weight.values.data());
      first_row += member.rows;
      model.tensors.erase(name);
    }
    model.sites.push_back(std::move(fold));
  }
  return dense;
}

// Differences of at most `tolerance` times the row's largest logit.
void ExpectNear(const std::vector<std::vector<float>>& found,
                const std::vector<std::vector<double>>& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t row = 0; row < found.size(); ++row) {
    double largest = 0;
    for (const double logit : expected[row]) largest = std::max(largest, std::abs(logit));
    for (size_t i = 0; i < found[row].size(); ++i) {
      ASSERT_NEAR(found[row][i], expected[row][i], tolerance * largest)
          << "row " << row << ", token " << i;
    }
  }
}

TEST(CompressedModelTest, GivesTheLogitsOfItsDecodedWeights) {
  for (const char* changes :
       {R"({})", R"({"model_type": "qwen2", "tie_word_embeddings": false})",
        R"({"hidden_size": 72, "intermediate_size": 150, "head_dim": 22, "mlp_bias": true,
            "num_key_value_heads": 1})"}) {
    nlohmann::json config = TinyConfig();
    config.merge_patch(nlohmann::json::parse(changes));
    TinyModel compressed = MakeTinyModel(config, {DType::kBF16});
    const TinyModel dense = Fold(compressed);
    const TemporaryFolder folder;
    const TemporaryFolder dense_folder;
    compressed.Write(folder.path());
    dense.Write(dense_folder.path(), 2);
    const auto model = MustLoadModel(folder.path(), 2);
    const auto dense_model = MustLoadModel(dense_folder.path(), 2);
    const std::vector<int32_t> ids = RandomTokens(50, 61, 2);
    const std::vector<std::vector<float>> logits = AllLogits(*model, ids);
    const std::vector<std::vector<double>> expected = ReferenceLogits(dense, ids);
    // Inputs of products are rounded to one of 4095 steps on either side of 0.
    ExpectNear(logits, expected, 3e-3);
    ExpectNear(AllLogits(*dense_model, ids), expected, 1e-4);
    EXPECT_LT(model->memory_usage().weights, dense_model->memory_usage().weights / 4);

    const auto checkpoint = Checkpoint::Open(folder.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto backend = CreateBackend("cpu", {.num_threads = 1});
    const MemoryUsage planned = EstimateMemory(**checkpoint, SmallOptions(), **backend);
    EXPECT_LE(model->memory_usage().weights, planned.weights);
    EXPECT_LT(planned.weights, 3 * model->memory_usage().weights);

    // Token by token: the same bits.
    const std::vector<BlockId> blocks = ScatteredBlocks(7, 4);
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_TRUE(model
                      ->Forward({{absl::MakeConstSpan(ids).subspan(i, 1), static_cast<int64_t>(i),
                                  blocks, 1}})
                      .ok());
      ASSERT_EQ(LogitsRow(*model, 0), logits[i]) << "token " << i;
    }
  }
}

TEST(CompressedModelTest, ItsProductsCountAsSketchAndTheDenseOnesAsGemm) {
  TinyModel compressed = MakeTinyModel(TinyConfig(), {DType::kBF16});
  const TinyModel dense = Fold(compressed);
  const std::vector<int32_t> ids = RandomTokens(50, 61, 2);
  for (const bool is_dense : {false, true}) {
    const TemporaryFolder folder;
    (is_dense ? dense : compressed).Write(folder.path());
    const auto model = MustLoadModel(folder.path());
    AllLogits(*model, ids);
    const auto stages = model->stage_durations();
    ASSERT_TRUE(stages.has_value());
    EXPECT_EQ((*stages)[StepStage::kSketch] > absl::ZeroDuration(), !is_dense);
    EXPECT_EQ((*stages)[StepStage::kGemm] > absl::ZeroDuration(), is_dense);
  }
}

absl::Status LoadStatus(const TinyModel& tiny) {
  const TemporaryFolder folder;
  tiny.Write(folder.path());
  auto checkpoint = Checkpoint::Open(folder.path());
  if (!checkpoint.ok()) return checkpoint.status();
  return LoadModel(*checkpoint, *CreateBackend("cpu", {.num_threads = 1}), SmallOptions()).status();
}

TEST(CompressedModelTest, RefusesAnUnknownCodecByListingThoseKnown) {
  TinyModel tiny = MakeTinyModel(TinyConfig(), {DType::kBF16});
  tiny.config["quantization_config"] = QuantizationConfig("zip");
  const absl::Status status = LoadStatus(tiny);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("config.json"), HasSubstr("quantization_config.codec"),
                    HasSubstr("dense"), HasSubstr("fold"), HasSubstr("found the string \"zip\"")));
  for (const nlohmann::json& codec : {nlohmann::json(), nlohmann::json(3), nlohmann::json("a\nb"),
                                      nlohmann::json({{"fold", 1}})}) {
    tiny.config["quantization_config"]["codec"] = codec;
    EXPECT_EQ(LoadStatus(tiny).code(), absl::StatusCode::kDataLoss) << codec;
  }
  tiny.config["quantization_config"].erase("codec");
  EXPECT_THAT(std::string(LoadStatus(tiny).message()), HasSubstr("found nothing"));
}

TEST(CompressedModelTest, RefusesWhatItsCodecDoesNotFind) {
  TinyModel tiny = MakeTinyModel(TinyConfig(), {DType::kBF16});
  tiny.config["quantization_config"] = QuantizationConfig("fold");
  const absl::Status status = LoadStatus(tiny);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.layers.0.attention_input."), HasSubstr("missing")));
}

}  // namespace
}  // namespace ultrasketch
