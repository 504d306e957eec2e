// Linear sites on the device against the CPU: normalization, fold and product of random shapes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/backends/cuda/device_test.h"
#include "tests/codecs/fold_examples.h"

namespace ultrasketch {
namespace {

// What rounding inputs to eleven bits leaves.
constexpr double kTolerance = 6e-4;

struct SiteShape {
  const char* codec;
  int64_t rows;
  int64_t cols;
  int64_t buckets = 0;  // of a folded site
};

std::string NameOf(const SiteShape& shape) {
  return absl::StrCat(shape.codec, "_", shape.rows, "x", shape.cols,
                      shape.buckets > 0 ? absl::StrCat("_", shape.buckets) : "");
}

// A site's weights, and its product on a backend.
class Site {
 public:
  explicit Site(const SiteShape& shape) : shape_(shape), bias_(ShortFloats(shape.rows, 3)) {
    if (std::string(shape.codec) == "fold") {
      fold_ = ExampleFold(shape.rows, shape.cols, shape.buckets);
    } else {
      dense_ = std::make_unique<DenseExample>(shape.rows, shape.cols, 4);
    }
  }

  const EncodedLinear& linear() const {
    return fold_ != nullptr ? static_cast<const EncodedLinear&>(*fold_) : *dense_->linear;
  }

  // Rows of W x + bias, twice: written, and added to what was written.
  struct Outputs {
    std::vector<float> written;
    std::vector<float> added;
  };
  // `first_weight` is that of the first column's normalization.
  Outputs Run(Backend& backend, absl::Span<const float> inputs, float first_weight = 1.5f) const {
    const int64_t num_tokens = static_cast<int64_t>(inputs.size()) / shape_.cols;
    auto linear_or = backend.LoadLinear(linear(), bias_);
    EXPECT_TRUE(linear_or.ok()) << linear_or.status();
    if (!linear_or.ok()) return {};
    const std::unique_ptr<DeviceLinear> loaded = *std::move(linear_or);
    const auto table = MakeTable(backend, inputs, shape_.cols);
    std::vector<float> norm(static_cast<size_t>(shape_.cols), 1.5f);
    norm[0] = first_weight;
    const auto weight = MakeVector(backend, norm);
    auto hidden = MakeActivations(backend, num_tokens, shape_.cols);
    auto output = MakeActivations(backend, num_tokens, shape_.rows);
    EXPECT_TRUE(backend.ReserveStep(num_tokens).ok());
    const Normalized input = {hidden.get(), weight.get(), 1e-5f};
    const TestStep step(num_tokens);
    Outputs outputs;
    for (const bool add : {false, true}) {
      EXPECT_TRUE(backend.BeginStep(step.input()).ok());
      backend.Embed(*table, *hidden);
      backend.Apply(input, *loaded, {output.get()});
      if (add) backend.Apply(input, *loaded, {output.get(), SiteOutput::Mode::kAdd});
      const absl::Status status = backend.EndStep();
      EXPECT_TRUE(status.ok()) << status;
      (add ? outputs.added : outputs.written) = ReadRows(backend, *output, num_tokens, shape_.rows);
    }
    return outputs;
  }

 private:
  SiteShape shape_;
  std::vector<float> bias_;
  std::unique_ptr<FoldLinear> fold_;
  std::unique_ptr<DenseExample> dense_;
};

using Case = std::tuple<SiteShape, int64_t>;

class ProductTest : public CudaTestWithParam<Case> {};

TEST_P(ProductTest, AgreesWithTheCpu) {
  const auto& [shape, num_tokens] = GetParam();
  const Site site(shape);
  const std::vector<float> inputs = ShortFloats(num_tokens * shape.cols, 7, 3.0f);
  const Site::Outputs expected = site.Run(*CpuBackend(), inputs);
  const Site::Outputs found = site.Run(*CudaBackendOrNull(), inputs);
  EXPECT_LT(RelativeError(found.written, expected.written), kTolerance);
  EXPECT_LT(RelativeError(found.added, expected.added), kTolerance);
}

// Buckets of 1 to 28 bit steps, which clusters of 2, 4 and 8 blocks divide unevenly.
INSTANTIATE_TEST_SUITE_P(
    Shapes, ProductTest,
    ::testing::Combine(
        ::testing::Values(SiteShape{"fold", 64, 128, 64}, SiteShape{"fold", 1, 2, 1},
                          SiteShape{"fold", 17, 100, 33}, SiteShape{"fold", 131, 250, 129},
                          SiteShape{"fold", 768, 256, 128}, SiteShape{"fold", 300, 1000, 700},
                          SiteShape{"fold", 40, 96, 200}, SiteShape{"fold", 9000, 260, 140},
                          SiteShape{"fold", 1100, 2200, 1100}, SiteShape{"fold", 200, 4400, 2700},
                          SiteShape{"fold", 70, 7200, 7100}, SiteShape{"dense", 64, 128},
                          SiteShape{"dense", 1, 2}, SiteShape{"dense", 17, 100},
                          SiteShape{"dense", 131, 250}, SiteShape{"dense", 768, 256},
                          SiteShape{"dense", 9000, 260}, SiteShape{"dense", 300, 6200}),
        ::testing::Values(1, 2, 8, 9, 12, 16, 17, 31, 33, 64, 65, 130, 300)),
    [](const auto& test) {
      return absl::StrCat(NameOf(std::get<0>(test.param)), "_tokens", std::get<1>(test.param));
    });

// So many M tiles that a warp has two, of which not all steps are in shared memory; so many bits
// that other kernels take over sooner.
INSTANTIATE_TEST_SUITE_P(ManyRows, ProductTest,
                         ::testing::Combine(::testing::Values(SiteShape{"fold", 17000, 2560, 2560}),
                                            ::testing::Values(1, 2, 4, 5, 8)),
                         [](const auto& test) {
                           return absl::StrCat("tokens", std::get<1>(test.param));
                         });

// The largest tiles of uncompressed weights; the last matrix has two K splits.
INSTANTIATE_TEST_SUITE_P(ManyTokens, ProductTest,
                         ::testing::Combine(::testing::Values(SiteShape{"dense", 3072, 260},
                                                              SiteShape{"dense", 20000, 260},
                                                              SiteShape{"dense", 1101, 6200}),
                                            ::testing::Values(600, 1024)),
                         [](const auto& test) {
                           return absl::StrCat(NameOf(std::get<0>(test.param)), "_tokens",
                                               std::get<1>(test.param));
                         });

class NonFiniteTest : public CudaTestWithParam<Case> {};

// An input that is no number is not lost on the way to integers or to smaller numbers.
TEST_P(NonFiniteTest, MakesNoOutputANumber) {
  const auto& [shape, num_tokens] = GetParam();
  const Site site(shape);
  const std::vector<float> inputs = ShortFloats(num_tokens * shape.cols, 7, 3.0f);
  for (const float weight :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Site::Outputs found = site.Run(*CudaBackendOrNull(), inputs, weight);
    for (size_t i = 0; i < found.written.size(); ++i) {
      ASSERT_FALSE(std::isfinite(found.written[i])) << weight << ", output " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, NonFiniteTest,
                         ::testing::Combine(::testing::Values(SiteShape{"fold", 131, 250, 129},
                                                              SiteShape{"fold", 300, 1000, 700},
                                                              SiteShape{"dense", 131, 250}),
                                            ::testing::Values(1, 2, 8, 9, 65, 300)),
                         [](const auto& test) {
                           return absl::StrCat(NameOf(std::get<0>(test.param)), "_tokens",
                                               std::get<1>(test.param));
                         });

class BatchTest : public CudaTestWithParam<Case> {};

TEST_P(BatchTest, ATokensResultIsTheSameToTheBitInEveryBatch) {
  const auto& [shape, num_tokens] = GetParam();
  const Site site(shape);
  Backend& backend = *CudaBackendOrNull();
  const std::vector<float> inputs = ShortFloats(num_tokens * shape.cols, 7, 3.0f);
  const auto all = absl::MakeConstSpan(inputs);
  const auto cols = static_cast<size_t>(shape.cols);
  const auto rows = static_cast<size_t>(shape.rows);
  const Site::Outputs together = site.Run(backend, inputs);
  for (const size_t count : {1, 7, 9, 13, 16, 17, 30, 40, 64, 100, 130, 299, 600, 1000}) {
    if (count >= static_cast<size_t>(num_tokens)) break;
    const Site::Outputs some = site.Run(backend, all.subspan(0, count * cols));
    for (size_t i = 0; i < count * rows; ++i) {
      ASSERT_EQ(some.written[i], together.written[i])
          << count << " tokens: token " << i / rows << ", row " << i % rows;
      ASSERT_EQ(some.added[i], together.added[i]);
    }
  }
  // At another place in the batch, too.
  const Site::Outputs alone = site.Run(backend, all.subspan(250 * cols, cols));
  for (size_t i = 0; i < rows; ++i) {
    ASSERT_EQ(alone.written[i], together.written[250 * rows + i]) << "row " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BatchTest,
                         ::testing::Combine(::testing::Values(SiteShape{"fold", 131, 250, 129},
                                                              SiteShape{"fold", 300, 1000, 700},
                                                              SiteShape{"fold", 1100, 2200, 1100},
                                                              SiteShape{"fold", 200, 4400, 2700},
                                                              SiteShape{"fold", 20000, 260, 140},
                                                              SiteShape{"dense", 131, 1250},
                                                              SiteShape{"dense", 300, 6200}),
                                            ::testing::Values(300)),
                         [](const auto& test) { return NameOf(std::get<0>(test.param)); });

INSTANTIATE_TEST_SUITE_P(ManyTokens, BatchTest,
                         ::testing::Combine(::testing::Values(SiteShape{"dense", 3072, 260},
                                                              SiteShape{"dense", 20000, 260},
                                                              SiteShape{"dense", 1101, 6200},
                                                              SiteShape{"dense", 2048, 8200}),
                                            ::testing::Values(2048)),
                         [](const auto& test) { return NameOf(std::get<0>(test.param)); });

// gate_up_proj, and the site that takes silu(gate) * up.
struct GatedShape {
  int64_t intermediate_size;
  int64_t cols;
  int64_t buckets;
};

class GatedSites {
 public:
  explicit GatedSites(const GatedShape& shape)
      : shape_(shape),
        gate_up_(ExampleFold(2 * shape.intermediate_size, shape.cols, shape.buckets)),
        down_(ExampleFold(kDownRows, shape.intermediate_size, (shape.intermediate_size + 1) / 2)),
        bias_(ShortFloats(2 * shape.intermediate_size, 3)) {}

  // [num_tokens, kDownRows]. Written as gates, they may become silu(gate) * up at once.
  std::vector<float> Run(Backend& backend, absl::Span<const float> inputs,
                         SiteOutput::Mode mode) const {
    const int64_t num_tokens = static_cast<int64_t>(inputs.size()) / shape_.cols;
    const int64_t width = 2 * shape_.intermediate_size;
    auto gate_up = backend.LoadLinear(*gate_up_, bias_);
    EXPECT_TRUE(gate_up.ok()) << gate_up.status();
    auto down = backend.LoadLinear(*down_, {});
    EXPECT_TRUE(down.ok()) << down.status();
    if (!gate_up.ok() || !down.ok()) return {};
    const auto table = MakeTable(backend, inputs, shape_.cols);
    const auto weight =
        MakeVector(backend, std::vector<float>(static_cast<size_t>(shape_.cols), 1.5f));
    auto hidden = MakeActivations(backend, num_tokens, shape_.cols);
    auto gates = MakeActivations(backend, num_tokens, width);
    auto output = MakeActivations(backend, num_tokens, kDownRows);
    EXPECT_TRUE(backend.ReserveStep(num_tokens).ok());
    const TestStep step(num_tokens);
    EXPECT_TRUE(backend.BeginStep(step.input()).ok());
    backend.Embed(*table, *hidden);
    backend.Apply(Normalized{hidden.get(), weight.get(), 1e-5f}, **gate_up,
                  {gates.get(), mode, down->get()});
    backend.Apply(Gated{gates.get()}, **down, {output.get()});
    const absl::Status status = backend.EndStep();
    EXPECT_TRUE(status.ok()) << status;
    return ReadRows(backend, *output, num_tokens, kDownRows);
  }

 private:
  static constexpr int64_t kDownRows = 70;

  GatedShape shape_;
  std::unique_ptr<FoldLinear> gate_up_;
  std::unique_ptr<FoldLinear> down_;
  std::vector<float> bias_;
};

class GatedTest : public CudaTestWithParam<std::tuple<GatedShape, int64_t>> {};

TEST_P(GatedTest, IsTheSameToTheBitAsOneByOne) {
  const auto& [shape, num_tokens] = GetParam();
  const GatedSites sites(shape);
  const std::vector<float> inputs = ShortFloats(num_tokens * shape.cols, 7, 3.0f);
  Backend& backend = *CudaBackendOrNull();
  constexpr auto kGates = SiteOutput::Mode::kWriteGates;
  const std::vector<float> together = sites.Run(backend, inputs, kGates);
  EXPECT_EQ(together, sites.Run(backend, inputs, SiteOutput::Mode::kWrite));
  // Two sites, the second of which reads what gates made of the first one's roundings.
  EXPECT_LT(RelativeError(together, sites.Run(*CpuBackend(), inputs, kGates)), 4 * kTolerance);
}

// Halves of a few M tiles and of many, of blocks that are not full, and, the last two, that are no
// whole tiles; buckets that clusters divide or do not.
INSTANTIATE_TEST_SUITE_P(
    Shapes, GatedTest,
    ::testing::Combine(::testing::Values(GatedShape{16, 100, 33}, GatedShape{48, 250, 129},
                                         GatedShape{400, 1000, 700}, GatedShape{1040, 2200, 1100},
                                         GatedShape{144, 4400, 2700}, GatedShape{4112, 260, 140},
                                         GatedShape{16400, 260, 140}, GatedShape{24, 100, 33},
                                         GatedShape{350, 320, 160}),
                       ::testing::Values(1, 2, 8, 9, 16, 17, 33, 64, 65, 130, 300)),
    [](const auto& test) {
      const GatedShape& shape = std::get<0>(test.param);
      return absl::StrCat(shape.intermediate_size, "x", shape.cols, "_", shape.buckets, "_tokens",
                          std::get<1>(test.param));
    });

// A site whose columns are in classes that fold 1, 2 and 7 columns, in 1 to 3 bit planes.
TEST_F(CudaTest, ClassesAndPlanesAgreeWithTheCpu) {
  const LinearSite site = ExampleSite(90, 300);
  std::vector<uint8_t> column_classes;
  for (int column = 0; column < 300; ++column) {
    column_classes.push_back(column % 5 == 0 ? 0 : column % 5 == 4 ? 2 : 1);
  }
  // 60, 180 and 60 columns; the last class folds 6.
  const auto fold = ExampleFold(
      site, FoldLayout(9, site.name, {{60, 1, 3}, {180, 2, 1}, {60, 6, 2}}, column_classes));
  const std::vector<float> inputs = ShortFloats(20 * 300, 7);
  std::vector<std::vector<float>> outputs;
  for (Backend* backend : {CpuBackend().get(), CudaBackendOrNull().get()}) {
    auto linear = backend->LoadLinear(*fold, {});
    ASSERT_TRUE(linear.ok()) << linear.status();
    const auto table = MakeTable(*backend, inputs, 300);
    const auto weight = MakeVector(*backend, ShortFloats(300, 8));
    auto hidden = MakeActivations(*backend, 20, 300);
    auto output = MakeActivations(*backend, 20, 90);
    ASSERT_TRUE(backend->ReserveStep(20).ok());
    const TestStep step(20);
    ASSERT_TRUE(backend->BeginStep(step.input()).ok());
    backend->Embed(*table, *hidden);
    backend->Apply(Normalized{hidden.get(), weight.get(), 1e-5f}, **linear, {output.get()});
    ASSERT_TRUE(backend->EndStep().ok());
    outputs.push_back(ReadRows(*backend, *output, 20, 90));
  }
  EXPECT_LT(RelativeError(outputs[1], outputs[0]), kTolerance);
}

// Inputs far beyond fp16's range, and far below it.
TEST_F(CudaTest, InputsOfAnySizeKeepTheirPrecision) {
  const auto fold = ExampleFold(70, 200, 100);
  const DenseExample dense(70, 200, 4);
  for (const EncodedLinear* encoded : {static_cast<const EncodedLinear*>(fold.get()),
                                       static_cast<const EncodedLinear*>(dense.linear.get())}) {
    std::vector<std::vector<float>> outputs;
    for (Backend* backend : {CpuBackend().get(), CudaBackendOrNull().get()}) {
      auto linear = backend->LoadLinear(*encoded, {});
      ASSERT_TRUE(linear.ok()) << linear.status();
      // Gate and up alike: outputs are about half the square.
      std::vector<float> inputs;
      for (const float scale : {0x1p-30f, 0x1p-10f, 1.0f, 0x1p12f, 0x1p23f}) {
        for (int half = 0; half < 2; ++half) {
          for (const float value : ShortFloats(200, 12)) inputs.push_back(value * scale);
        }
      }
      const auto table = MakeTable(*backend, inputs, 400);
      auto gate_up = MakeActivations(*backend, 5, 400);
      auto output = MakeActivations(*backend, 5, 70);
      ASSERT_TRUE(backend->ReserveStep(5).ok());
      const TestStep step(5);
      ASSERT_TRUE(backend->BeginStep(step.input()).ok());
      backend->Embed(*table, *gate_up);
      backend->Apply(Gated{gate_up.get()}, **linear, {output.get()});
      ASSERT_TRUE(backend->EndStep().ok());
      outputs.push_back(ReadRows(*backend, *output, 5, 70));
    }
    for (size_t row = 0; row < 5; ++row) {
      const auto found = absl::MakeConstSpan(outputs[1]).subspan(row * 70, 70);
      const auto expected = absl::MakeConstSpan(outputs[0]).subspan(row * 70, 70);
      EXPECT_LT(RelativeError(found, expected), kTolerance)
          << encoded->codec_name() << ", input " << row;
    }
  }
}

}  // namespace
}  // namespace ultrasketch
