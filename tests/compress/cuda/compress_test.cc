// Whole compressions on a CUDA device against those on CPUs.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/compress/compressor.h"
#include "engine/compress/evaluate.h"
#include "engine/format/checkpoint.h"
#include "engine/format/tokenizer/tokenizer_folder.h"
#include "tests/base/temporary_folder.h"
#include "tests/compress/cuda/fit_devices.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {
namespace {

// From the environment's ULTRASKETCH_SAMPLE_MODEL_DIR, or where it was when the test was built.
std::string SampleModel() {
  const char* const folder = std::getenv("ULTRASKETCH_SAMPLE_MODEL_DIR");
  return folder != nullptr ? folder : SAMPLE_MODEL_DIR;
}

class CudaCompressTest : public testing::Test {
 protected:
  void SetUp() override {
    if (CudaFitDeviceOrNull() == nullptr) GTEST_SKIP() << NoCudaFitReason();
  }

  static std::shared_ptr<const Checkpoint> Open(const std::string& folder) {
    auto opened = Checkpoint::Open(folder);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }

  CompressionReport Compress(const std::shared_ptr<const Checkpoint>& dense,
                             const std::string& name, const std::string& device) {
    options_.device = device;
    const auto report = CompressCheckpoint(dense, folder_.File(name), options_);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(CompressionReport());
  }

  std::string Weights(const std::string& name) {
    return *ReadFile(folder_.File(name) + "/model.safetensors");
  }

  const TemporaryFolder folder_;
  CompressOptions options_;
};

TEST_F(CudaCompressTest, ATrainedModelIsAsGoodAsFromTheCpu) {
  const std::string text_file =
      std::filesystem::path(SampleModel()).parent_path().parent_path().string() +
      "/demo/sample.txt";
  const auto dense = Open(SampleModel());
  const auto tokenizer = LoadFolderTokenizer(SampleModel());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto text = ReadFile(text_file);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto tokens = (*tokenizer).tokenizer->Encode(*text);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  options_.calibration_files = {text_file};
  options_.calibration_windows = 24;
  options_.calibration_window_tokens = 200;
  const CompressionReport on_cpu = Compress(dense, "cpu", "cpu");
  const CompressionReport on_cuda = Compress(dense, "cuda", "cuda:0");
  EXPECT_EQ(on_cuda.device, "cuda:0");
  EXPECT_EQ(on_cuda.calibration_tokens, on_cpu.calibration_tokens);
  EXPECT_NEAR(on_cuda.bits_per_weight_linear, on_cpu.bits_per_weight_linear, 1e-3);
  EXPECT_GT(on_cuda.peak_device_memory_bytes, 0);
  EXPECT_LE(on_cuda.peak_device_memory_bytes, on_cuda.estimated_device_memory_bytes);
  EvaluateOptions evaluate;
  evaluate.max_tokens = 4000;
  const auto perplexity = [&](const std::string& name) {
    const auto result = EvaluateCheckpoint(Open(folder_.File(name)), "cpu", *tokens, evaluate);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->perplexity;
  };
  // Bits that roundings have turned change what so short a text leaves of the model by some
  // percent, to either side.
  EXPECT_NEAR(perplexity("cuda") / perplexity("cpu"), 1, 0.1);
  for (size_t i = 0; i < on_cpu.sites.size(); ++i) {
    SCOPED_TRACE(on_cpu.sites[i].name);
    EXPECT_NEAR(on_cuda.sites[i].relative_output_error, on_cpu.sites[i].relative_output_error,
                0.02);
    EXPECT_EQ(std::isnan(on_cuda.sites[i].relative_residual_error),
              std::isnan(on_cpu.sites[i].relative_residual_error));
  }
  // The same bits every time.
  Compress(dense, "again", "cuda:0");
  EXPECT_TRUE(Weights("again") == Weights("cuda"));
}

TEST_F(CudaCompressTest, CompressesEveryArchitectureAndWhatItWritesItself) {
  for (const char* changes :
       {R"({})", R"({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false})",
        R"({"model_type": "qwen3", "head_dim": 24})",
        R"({"model_type": "smollm3", "no_rope_layers": [1, 0]})"}) {
    SCOPED_TRACE(changes);
    const TemporaryFolder dense_folder;
    nlohmann::json config = TinyConfig();
    config.merge_patch(nlohmann::json::parse(changes));
    MakeTinyModel(config, {DType::kF32, DType::kBF16}).Write(dense_folder.path());
    options_.calibration_windows = 4;
    options_.calibration_window_tokens = 32;
    options_.bits_per_weight = 2;
    options_.overwrite = true;
    const CompressionReport report = Compress(Open(dense_folder.path()), "out", "cuda");
    EXPECT_EQ(report.calibration_source, "self-generated");
    EXPECT_LE(report.bits_per_weight_linear, 2);
    for (const CompressedSite& site : report.sites) EXPECT_LT(site.relative_output_error, 1);
    const std::vector<int32_t> ids = RandomTokens(33, 61, 1);
    for (const std::vector<float>& logits : AllLogits(*MustLoadModel(folder_.File("out")), ids)) {
      for (const float logit : logits) ASSERT_TRUE(std::isfinite(logit));
    }
  }
}

TEST_F(CudaCompressTest, OtherWaysOfFittingAreTheCpus) {
  const auto dense = Open(SampleModel());
  options_.calibration_windows = 0;
  Compress(dense, "cpu", "cpu");
  Compress(dense, "cuda", "cuda");
  const auto difference = [&](const std::string& a, const std::string& b) {
    size_t count = 0;
    const std::string first = Weights(a);
    const std::string second = Weights(b);
    EXPECT_EQ(first.size(), second.size());
    for (size_t i = 0; i < std::min(first.size(), second.size()); ++i) {
      count += first[i] != second[i] ? 1 : 0;
    }
    return static_cast<double>(count) / static_cast<double>(first.size());
  };
  EXPECT_LT(difference("cuda", "cpu"), 0.01);
  options_.codec = "absmaxmin";
  Compress(dense, "sketch-cpu", "cpu");
  Compress(dense, "sketch-cuda", "cuda");
  EXPECT_LT(difference("sketch-cuda", "sketch-cpu"), 0.01);
}

}  // namespace
}  // namespace ultrasketch
