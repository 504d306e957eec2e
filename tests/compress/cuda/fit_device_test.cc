// Each operation of a fit on a CUDA device against the one on CPUs, over awkward shapes.
#include "engine/compress/fit_device.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "engine/base/dtype.h"
#include "engine/base/random.h"
#include "engine/compress/fold_encoder.h"
#include "tests/compress/cuda/fit_devices.h"

namespace ultrasketch {
namespace {

std::vector<float> Random(int64_t count, uint64_t stream, double scale = 1) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(
        static_cast<float>(scale * NormalDouble(23, stream, static_cast<uint64_t>(i))));
  }
  return values;
}

// |found - expected| / |expected|; infinite when a number is not finite.
template <typename Values>
double Distance(const Values& found, const Values& expected) {
  if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double error = 0;
  double energy = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double difference = static_cast<double>(found[i]) - static_cast<double>(expected[i]);
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    error += difference * difference;
    energy += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(error / std::max(energy, 1e-300));
}

absl::Span<const double> Elements(const RowMajorMatrix& matrix) {
  return {matrix.data(), static_cast<size_t>(matrix.size())};
}

LinearSite SiteOf(int64_t rows, int64_t cols) {
  LinearSite site;
  site.name = "model.layers.0.mlp_output";
  site.rows = rows;
  site.cols = cols;
  return site;
}

class FitDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    cuda_ = CudaFitDeviceOrNull();
    if (cuda_ == nullptr) GTEST_SKIP() << NoCudaFitReason();
  }

  static std::unique_ptr<FitArray> Load(FitDevice& device, absl::Span<const float> values) {
    auto array = device.Allocate(static_cast<int64_t>(values.size()));
    EXPECT_TRUE(array.ok()) << array.status();
    EXPECT_TRUE(device.Upload(values, (*array)->data()).ok());
    return *std::move(array);
  }

  // Memory that holds no zeros by accident.
  static std::unique_ptr<FitArray> Poisoned(FitDevice& device, int64_t size) {
    return Load(device, std::vector<float>(static_cast<size_t>(size), std::nanf("")));
  }

  static std::vector<float> Read(FitDevice& device, const FitArray& array) {
    std::vector<float> values(static_cast<size_t>(array.size()));
    const absl::Status status = device.Download(array.data(), absl::MakeSpan(values));
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

  // What `operation` writes to an array of `size`, on both.
  void ExpectSame(int64_t size, double tolerance,
                  const std::function<void(FitDevice&, float* out)>& operation) {
    std::vector<std::vector<float>> results;
    for (FitDevice* device : {&CpuFitDevice(), cuda_}) {
      const auto out = Poisoned(*device, size);
      operation(*device, out->data());
      results.push_back(Read(*device, *out));
    }
    EXPECT_LT(Distance(results[1], results[0]), tolerance);
  }

  FitDevice* cuda_ = nullptr;
};

TEST_F(FitDeviceTest, MultipliesByDenseWeights) {
  const struct {
    int64_t tokens, rows, cols;
    bool bias;
  } cases[] = {{1, 1, 1, true},      {1, 131, 250, false},   {130, 128, 16, true},
               {257, 300, 33, true}, {512, 960, 576, false}, {3, 1000, 1030, true}};
  for (const auto& example : cases) {
    SCOPED_TRACE(absl::StrCat(example.tokens, " x ", example.rows, " x ", example.cols));
    const LinearSite site = SiteOf(example.rows, example.cols);
    const std::vector<float> weights = Random(site.num_weights(), 1);
    const std::vector<float> bias = example.bias ? Random(site.rows, 2) : std::vector<float>();
    const std::vector<float> x = Random(example.tokens * site.cols, 3);
    ExpectSame(example.tokens * site.rows, 1e-6, [&](FitDevice& device, float* out) {
      const auto product = device.LoadDense(site, weights, bias);
      ASSERT_TRUE(product.ok()) << product.status();
      (*product)->Apply(Load(device, x)->data(), example.tokens, out);
    });
  }
}

TEST_F(FitDeviceTest, MultipliesByAHead) {
  const std::vector<float> values = Random(999 * 70, 4);
  std::vector<uint16_t> stored;
  for (const float value : values) stored.push_back(FloatToBf16(value));
  const TensorView head = {
      DType::kBF16, {999, 70}, reinterpret_cast<const uint8_t*>(stored.data())};
  const std::vector<float> x = Random(5 * 70, 5);
  ExpectSame(5 * 999, 1e-6, [&](FitDevice& device, float* out) {
    const auto product = device.LoadHead(head);
    ASSERT_TRUE(product.ok()) << product.status();
    (*product)->Apply(Load(device, x)->data(), 5, out);
  });
}

TEST_F(FitDeviceTest, NormalizesGatesAndAdds) {
  for (const int64_t width : {1, 31, 576, 4100}) {
    constexpr int64_t kTokens = 37;
    const std::vector<float> x = Random(kTokens * width * 2, 6, 3);
    const std::vector<float> weight = Random(width, 7);
    ExpectSame(kTokens * width, 1e-6, [&](FitDevice& device, float* out) {
      const auto loaded = Load(device, weight);
      device.Normalize(Load(device, x)->data(), *loaded, 1e-5f, kTokens, out);
    });
    ExpectSame(kTokens * width, 1e-6, [&](FitDevice& device, float* out) {
      device.Gate(Load(device, x)->data(), width, kTokens, out);
    });
    ExpectSame(kTokens * width, 1e-7, [&](FitDevice& device, float* out) {
      const auto loaded = Load(device, x);
      device.Copy(loaded->data(), kTokens * width, out);
      device.Add(loaded->data() + width, kTokens * width, out);
    });
    ExpectSame(3 * width, 1e-7, [&](FitDevice& device, float* out) {
      device.CopyRows(Load(device, x)->data(), width, {36, 0, 5}, out);
    });
  }
}

TEST_F(FitDeviceTest, ComparesStreams) {
  for (const int64_t count : {1, 255, 300001}) {
    const std::vector<float> a = Random(count, 8);
    const std::vector<float> b = Random(count, 9);
    std::vector<SquareSums> sums;
    for (FitDevice* device : {&CpuFitDevice(), cuda_}) {
      const auto result =
          device->Compare(Load(*device, a)->data(), Load(*device, b)->data(), count);
      ASSERT_TRUE(result.ok()) << result.status();
      sums.push_back(*result);
    }
    EXPECT_NEAR(sums[1].error, sums[0].error, 1e-9 * sums[0].error);
    EXPECT_NEAR(sums[1].energy, sums[0].energy, 1e-9 * sums[0].energy);
  }
}

TEST_F(FitDeviceTest, AttendsWithinWindows) {
  const struct {
    int heads, kv_heads, head_dim;
    bool norms, rope;
  } cases[] = {{4, 2, 6, false, true},   {9, 3, 64, false, true},  {2, 1, 80, true, true},
               {4, 4, 128, true, false}, {2, 1, 256, false, true}, {1, 1, 2, false, true}};
  const std::vector<int64_t> windows = {1, 130, 32, 5, 64};
  constexpr int64_t kTokens = 232;
  for (const auto& example : cases) {
    SCOPED_TRACE(absl::StrCat(example.heads, " heads of ", example.head_dim));
    const int64_t width = int64_t{example.heads + 2 * example.kv_heads} * example.head_dim;
    const std::vector<float> qkv = Random(kTokens * width, 10);
    const std::vector<float> norm = Random(example.head_dim, 11);
    std::vector<float> frequencies;
    for (int i = 0; i < example.head_dim / 2; ++i) {
      frequencies.push_back(std::pow(0.01f, static_cast<float>(i) / 16));
    }
    ExpectSame(kTokens * example.heads * example.head_dim, 2e-6,
               [&](FitDevice& device, float* out) {
                 const auto loaded_norm = Load(device, norm);
                 const auto loaded_frequencies = Load(device, frequencies);
                 FitAttention attention;
                 attention.num_heads = example.heads;
                 attention.num_kv_heads = example.kv_heads;
                 attention.head_dim = example.head_dim;
                 attention.epsilon = 1e-5f;
                 if (example.norms) {
                   attention.query_norm = loaded_norm.get();
                   attention.key_norm = loaded_norm.get();
                 }
                 if (example.rope) attention.inverse_frequencies = loaded_frequencies.get();
                 device.Attend(attention, windows, Load(device, qkv)->data(), out);
               });
  }
}

TEST_F(FitDeviceTest, MeasuresCrossEntropies) {
  for (const int64_t vocab : {3, 1000, 49152}) {
    constexpr int64_t kTokens = 7;
    const std::vector<float> reference = Random(kTokens * vocab, 12, 3);
    const std::vector<float> logits = Random(kTokens * vocab, 13, 3);
    const std::vector<double> scales = {0.2, 1.0, 1.5};
    std::vector<std::vector<double>> losses;
    for (FitDevice* device : {&CpuFitDevice(), cuda_}) {
      losses.emplace_back(kTokens * scales.size());
      const absl::Status status =
          device->CrossEntropies(Load(*device, reference)->data(), Load(*device, logits)->data(),
                                 kTokens, vocab, scales, absl::MakeSpan(losses.back()));
      ASSERT_TRUE(status.ok()) << status;
    }
    EXPECT_LT(Distance(losses[1], losses[0]), 1e-5) << vocab;
  }
}

// A site, its dense weights and the moments of some text on both devices.
struct Example {
  Example(int64_t rows, int64_t cols, bool has_bias) : site(SiteOf(rows, cols)) {
    weights = Random(site.num_weights(), 20, 0.1);
    if (has_bias) bias = Random(rows, 21);
  }

  struct Loaded {
    std::unique_ptr<FitProduct> dense;
    std::unique_ptr<FitMoments> moments;
  };

  Loaded MakeMoments(FitDevice& device) const {
    Loaded loaded;
    auto dense = device.LoadDense(site, weights, bias);
    EXPECT_TRUE(dense.ok()) << dense.status();
    loaded.dense = *std::move(dense);
    auto moments = device.MakeMoments(site, *loaded.dense);
    EXPECT_TRUE(moments.ok()) << moments.status();
    loaded.moments = *std::move(moments);
    return loaded;
  }

  // Correlated inputs, some of them dead, of which the dense and the compressed stream differ; or
  // residuals.
  Loaded FromText(FitDevice& device, int64_t num_tokens, bool residual) const {
    Loaded loaded = MakeMoments(device);
    const int64_t cols = site.cols;
    for (int64_t batch = 0; batch < 2; ++batch) {
      std::vector<float> x = Random(num_tokens * cols, 22 + static_cast<uint64_t>(batch));
      for (int64_t token = 0; token < num_tokens; ++token) {
        float* const row = x.data() + token * cols;
        for (int64_t i = 1; i < cols; ++i) row[i] += 0.7f * row[i - 1];
        for (int64_t i = 5; i < cols; i += 29) row[i] = 0;
      }
      std::vector<float> dense_x = x;
      const std::vector<float> noise =
          Random(num_tokens * cols, 24 + static_cast<uint64_t>(batch), 0.3);
      for (size_t i = 0; i < x.size(); ++i) dense_x[i] += noise[i];
      const auto loaded_x = Load(device, x);
      const auto loaded_dense_x = Load(device, dense_x);
      absl::Status status;
      if (residual) {
        const auto compressed =
            Load(device, Random(num_tokens * site.rows, 26 + static_cast<uint64_t>(batch)));
        const auto dense =
            Load(device, std::vector<float>(static_cast<size_t>(num_tokens * site.rows), 0.0f));
        loaded.dense->Apply(loaded_dense_x->data(), num_tokens, dense->data());
        device.Add(compressed->data(), num_tokens * site.rows, dense->data());
        status = loaded.moments->AddResiduals(loaded_x->data(), dense->data(), compressed->data(),
                                              num_tokens);
      } else {
        status = loaded.moments->AddInputs(loaded_dense_x->data(), loaded_x->data(), num_tokens);
      }
      EXPECT_TRUE(status.ok()) << status;
    }
    const absl::Status status = loaded.moments->Complete();
    EXPECT_TRUE(status.ok()) << status;
    return loaded;
  }

  static std::unique_ptr<FitArray> Load(FitDevice& device, absl::Span<const float> values) {
    auto array = *device.Allocate(static_cast<int64_t>(values.size()));
    EXPECT_TRUE(device.Upload(values, array->data()).ok());
    return array;
  }

  LinearSite site;
  std::vector<float> weights;
  std::vector<float> bias;
};

TEST_F(FitDeviceTest, SumsMomentsOfInputsAndResiduals) {
  const struct {
    int64_t rows, cols, tokens;
  } cases[] = {{5, 3, 1}, {131, 70, 1025}, {300, 250, 3000}, {64, 576, 2100}};
  for (const auto& shape : cases) {
    for (const bool residual : {false, true}) {
      SCOPED_TRACE(absl::StrCat(shape.rows, " x ", shape.cols, residual ? ", residual" : ""));
      const Example example(shape.rows, shape.cols, residual);
      const auto cpu = example.FromText(CpuFitDevice(), shape.tokens, residual);
      const auto cuda = example.FromText(*cuda_, shape.tokens, residual);
      const auto expected = cpu.moments->OnHost();
      const auto found = cuda.moments->OnHost();
      ASSERT_TRUE(found.ok()) << found.status();
      EXPECT_LT(Distance(Elements((*found)->input), Elements((*expected)->input)), 1e-6);
      EXPECT_LT(Distance(Elements((*found)->cross), Elements((*expected)->cross)), 1e-6);
      EXPECT_LT(((*found)->output - (*expected)->output).norm(), 1e-6 * (*expected)->output.norm());
      EXPECT_EQ((*found)->input, (*found)->input.transpose());
      const auto energies = cuda.moments->InputEnergies();
      ASSERT_TRUE(energies.ok()) << energies.status();
      for (int64_t i = 0; i < shape.cols; ++i) {
        EXPECT_EQ((*energies)[static_cast<size_t>(i)], (*found)->input(i, i));
      }
    }
  }
}

struct FoldCase {
  int64_t rows, cols, buckets, tokens;
  double least_equal;  // share of the levels that are the CPU's
};

class FoldOnDeviceTest : public FitDeviceTest, public testing::WithParamInterface<FoldCase> {};

// Moments that differ in roundings now and then turn a level; the same moments hardly ever.
TEST_P(FoldOnDeviceTest, FitsAsTheCpuDoes) {
  const FoldCase shape = GetParam();
  const Example example(shape.rows, shape.cols, false);
  const auto cpu = example.FromText(CpuFitDevice(), shape.tokens, true);
  const SiteMoments sums = **cpu.moments->OnHost();
  const auto dense = cuda_->LoadDense(example.site, example.weights, {});
  ASSERT_TRUE(dense.ok()) << dense.status();
  const auto moments = cuda_->LoadMoments(example.site, **dense, sums);
  ASSERT_TRUE(moments.ok()) << moments.status();

  const FoldLayout layout(7, example.site.name, EvenFoldClasses(shape.cols, shape.buckets), {});
  const double prior = 3e-2 * sums.input.trace() / static_cast<double>(shape.cols);
  const auto expected = cpu.moments->FitFolded(layout, prior);
  const auto found = (*moments)->FitFolded(layout, prior);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->levels.size(), expected->levels.size());
  int64_t equal = 0;
  for (size_t i = 0; i < found->levels.size(); ++i) {
    equal += found->levels[i] == expected->levels[i] ? 1 : 0;
    ASSERT_EQ(found->levels[i] & 1, 1);
  }
  EXPECT_GE(static_cast<double>(equal),
            shape.least_equal * static_cast<double>(found->levels.size()));
  EXPECT_LT(Distance(found->scales, expected->scales), shape.least_equal == 1 ? 1e-6 : 1e-2);

  const auto again = (*moments)->FitFolded(layout, prior);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->levels, found->levels);
  EXPECT_EQ(again->scales, found->scales);

  // What is made of it.
  ThreadPool pool(2);
  FitMoments& both = **moments;
  const FoldShape fold_shape = {shape.buckets, 1, false};
  const auto encoded = FitFoldSite(example.site, fold_shape, 7, example.weights, both, pool);
  const auto cpu_encoded =
      FitFoldSite(example.site, fold_shape, 7, example.weights, *cpu.moments, pool);
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  const auto product = cuda_->LoadEncoded(**encoded, {});
  const auto cpu_product = CpuFitDevice().LoadEncoded(**encoded, {});
  ASSERT_TRUE(product.ok()) << product.status();
  const auto error = both.OutputError(**product);
  ASSERT_TRUE(error.ok()) << error.status();
  EXPECT_NEAR(*error, *cpu.moments->OutputError(**cpu_product), 1e-6);
  const auto cpu_own = CpuFitDevice().LoadEncoded(**cpu_encoded, {});
  EXPECT_NEAR(*error, *cpu.moments->OutputError(**cpu_own), 2e-3);
  const auto factors = both.ChannelFactors(**product);
  ASSERT_TRUE(factors.ok()) << factors.status();
  EXPECT_LT(Distance(*factors, *cpu.moments->ChannelFactors(**cpu_product)), 1e-4);

  const std::vector<float> x = Random(65 * shape.cols, 30);
  ExpectSame(65 * shape.rows, 1e-2, [&](FitDevice& device, float* out) {
    (&device == cuda_ ? *product : *cpu_product)->Apply(Load(device, x)->data(), 65, out);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, FoldOnDeviceTest,
    testing::Values(FoldCase{19, 24, 8, 200, 1}, FoldCase{131, 250, 128, 1000, 0.99},
                    FoldCase{300, 576, 288, 3000, 0.99}, FoldCase{70, 96, 200, 500, 0.98},
                    // More than a batch of positions that are looked at together; fewer tokens than
                    // columns.
                    FoldCase{33, 1000, 504, 60, 0.9}),
    [](const auto& shape) {
      return absl::StrCat(shape.param.rows, "x", shape.param.cols, "_in", shape.param.buckets);
    });

TEST_F(FitDeviceTest, NothingToFitGivesNothing) {
  const Example example(9, 40, false);
  SiteMoments nothing;
  nothing.input.setZero(40, 40);
  nothing.cross.setZero(9, 40);
  nothing.output.setZero(9);
  const auto dense = cuda_->LoadDense(example.site, example.weights, {});
  const auto moments = cuda_->LoadMoments(example.site, **dense, nothing);
  ASSERT_TRUE(moments.ok()) << moments.status();
  const FoldLayout layout(7, example.site.name, EvenFoldClasses(40, 16), {});
  const auto fit = (*moments)->FitFolded(layout, 0);
  ASSERT_TRUE(fit.ok()) << fit.status();
  EXPECT_EQ(fit->scales, std::vector<float>(9, 0.0f));
  const auto factors = (*moments)->ChannelFactors(**dense);
  ASSERT_TRUE(factors.ok()) << factors.status();
  EXPECT_EQ(*factors, std::vector<double>(40, 1.0));
  const auto error = (*moments)->OutputError(**dense);
  ASSERT_TRUE(error.ok());
  EXPECT_TRUE(std::isnan(*error));
}

TEST_F(FitDeviceTest, SaysHowMuchMemoryIsMissing) {
  const auto array = cuda_->Allocate(int64_t{1} << 42);
  ASSERT_EQ(array.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(array.status().message().find("bytes available"), std::string::npos) << array.status();
  EXPECT_TRUE(cuda_->Allocate(1000).ok());
}

}  // namespace
}  // namespace ultrasketch
