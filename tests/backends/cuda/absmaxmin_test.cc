// Sketched sites on the device against the CPU and against the codec's decoding.
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/backends/cuda/device_test.h"
#include "tests/codecs/absmaxmin/absmaxmin_examples.h"

namespace ultrasketch {
namespace {

// What rounding inputs to eleven bits leaves.
constexpr double kTolerance = 6e-4;

struct Shape {
  int64_t rows;
  std::vector<AbsMaxMinClass> classes;

  int64_t cols() const {
    int64_t total = 0;
    for (const AbsMaxMinClass& bucket_class : classes) total += bucket_class.num_columns;
    return total;
  }
};

std::string NameOf(const Shape& shape) {
  std::string name = absl::StrCat(shape.rows);
  for (const AbsMaxMinClass& part : shape.classes) {
    absl::StrAppend(&name, "_", part.num_columns, "in", part.buckets, "rows", part.hash_rows,
                    "bits", part.bits, "unit", part.unit_exponent);
  }
  return name;
}

void PrintTo(const Shape& shape, std::ostream* out) { *out << NameOf(shape); }

// Rows of W x + bias, twice: written, and added to what was written. Inputs are normalized first.
struct Outputs {
  std::vector<float> written;
  std::vector<float> added;
};

Outputs Multiply(Backend& backend, const EncodedLinear& encoded, absl::Span<const float> bias,
                 absl::Span<const float> inputs) {
  const int64_t rows = encoded.site().rows;
  const int64_t cols = encoded.site().cols;
  const int64_t num_tokens = static_cast<int64_t>(inputs.size()) / cols;
  auto linear_or = backend.LoadLinear(encoded, bias);
  EXPECT_TRUE(linear_or.ok()) << linear_or.status();
  if (!linear_or.ok()) return {};
  const std::unique_ptr<DeviceLinear> loaded = *std::move(linear_or);
  const auto table = MakeTable(backend, inputs, cols);
  const auto weight = MakeVector(backend, std::vector<float>(static_cast<size_t>(cols), 1.0f));
  auto hidden = MakeActivations(backend, num_tokens, cols);
  auto output = MakeActivations(backend, num_tokens, rows);
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
    (add ? outputs.added : outputs.written) = ReadRows(backend, *output, num_tokens, rows);
  }
  return outputs;
}

class SketchProductTest : public CudaTestWithParam<std::tuple<Shape, int64_t>> {};

TEST_P(SketchProductTest, AgreesWithTheCpu) {
  const auto& [shape, num_tokens] = GetParam();
  const auto sketch = ExampleSketch(shape.rows, shape.cols(), shape.classes);
  const std::vector<float> bias = ShortFloats(shape.rows, 3);
  const std::vector<float> inputs = ShortFloats(num_tokens * shape.cols(), 7, 3.0f);
  const Outputs expected = Multiply(*CpuBackend(), *sketch, bias, inputs);
  const Outputs found = Multiply(*CudaBackendOrNull(), *sketch, bias, inputs);
  EXPECT_LT(RelativeError(found.written, expected.written), kTolerance);
  EXPECT_LT(RelativeError(found.added, expected.added), kTolerance);
}

// One column; ragged rows and columns; as the paper has them; classes; an odd number of K tiles
// that goes through the ring of buffers more than once, in short tiles and in tall ones; rows for
// tall tiles; more words than shared memory holds.
INSTANTIATE_TEST_SUITE_P(
    Shapes, SketchProductTest,
    ::testing::Combine(
        ::testing::Values(Shape{1, {{1, 1, 1, 2, 0}}}, Shape{64, {{128, 11, 3, 2, 0}}},
                          Shape{17, {{100, 33, 2, 3, 0}}}, Shape{131, {{250, 20, 3, 2, 0}}},
                          Shape{300, {{1000, 90, 3, 4, 0}}},
                          Shape{97, {{64, 64, 1, 5, 0}, {200, 10, 4, 2, 3}, {36, 9, 8, 8, 0}}},
                          Shape{200, {{2600, 210, 3, 2, 0}}}, Shape{5000, {{900, 75, 3, 2, 0}}},
                          Shape{20000, {{60, 60, 1, 2, 0}, {200, 4, 3, 2, 0}}},
                          Shape{40, {{4100, 4100, 3, 8, 0}}}),
        ::testing::Values(1, 8, 9, 17, 33, 64, 65, 130, 300)),
    [](const auto& test) {
      return absl::StrCat(NameOf(std::get<0>(test.param)), "_tokens", std::get<1>(test.param));
    });

// What clusters of blocks share: tiles of every size, the last ones of rows and of tokens partly or
// wholly past the end; several tiles to a cluster, of more K tiles than there are buffers and of
// fewer; classes whose K tiles divide unevenly among the producer warps.
const Shape kClasses{4100, {{130, 33, 2, 3, 0}, {600, 50, 2, 2, 1}}};
const Shape kLong{70, {{8200, 600, 3, 2, 0}}};
const Shape kOneStep{9000, {{40, 12, 2, 2, 0}}};
const Shape kTall{2100, {{1500, 120, 3, 2, 0}}};

INSTANTIATE_TEST_SUITE_P(
    ManyTokens, SketchProductTest,
    ::testing::Combine(
        ::testing::Values(Shape{96, {{700, 60, 3, 2, 0}}},
                          Shape{130, {{64, 64, 1, 5, 0}, {200, 10, 4, 2, 3}, {36, 9, 8, 8, 0}}},
                          Shape{200, {{2600, 210, 3, 2, 0}}}, kLong, kTall, kClasses, kOneStep),
        ::testing::Values(30, 257, 513, 700)),
    [](const auto& test) {
      return absl::StrCat(NameOf(std::get<0>(test.param)), "_tokens", std::get<1>(test.param));
    });

class SketchBatchTest : public CudaTestWithParam<Shape> {};

TEST_P(SketchBatchTest, ATokensResultIsTheSameToTheBitInEveryBatch) {
  const Shape& shape = GetParam();
  const auto sketch = ExampleSketch(shape.rows, shape.cols(), shape.classes);
  const std::vector<float> bias = ShortFloats(shape.rows, 3);
  Backend& backend = *CudaBackendOrNull();
  const std::vector<float> inputs = ShortFloats(1300 * shape.cols(), 7, 3.0f);
  const auto all = absl::MakeConstSpan(inputs);
  const auto cols = static_cast<size_t>(shape.cols());
  const auto rows = static_cast<size_t>(shape.rows);
  const Outputs together = Multiply(backend, *sketch, bias, inputs);
  for (const size_t count : {1, 7, 13, 30, 64, 100, 130, 257, 299, 513, 700}) {
    const Outputs some = Multiply(backend, *sketch, bias, all.subspan(0, count * cols));
    size_t num_different = 0;
    for (size_t i = 0; i < count * rows; ++i) {
      if (some.written[i] != together.written[i] || some.added[i] != together.added[i]) {
        ++num_different;
      }
    }
    EXPECT_EQ(num_different, 0u) << count << " tokens, " << count * rows << " outputs";
  }
  const Outputs alone = Multiply(backend, *sketch, bias, all.subspan(250 * cols, cols));
  for (size_t i = 0; i < rows; ++i) {
    ASSERT_EQ(alone.written[i], together.written[250 * rows + i]) << "row " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SketchBatchTest,
                         ::testing::Values(Shape{131, {{250, 20, 3, 2, 0}}},
                                           Shape{300, {{1000, 90, 3, 4, 0}}},
                                           Shape{200, {{2600, 210, 3, 2, 0}}},
                                           Shape{5000, {{900, 75, 3, 2, 0}}},
                                           Shape{20000, {{60, 60, 1, 2, 0}, {200, 4, 3, 2, 0}}},
                                           kLong, kTall, kClasses, kOneStep),
                         [](const auto& test) { return NameOf(test.param); });

// One-hot inputs of 256 columns are normalized to 16, so that each output is a weight.
class SketchWeightsTest : public CudaTestWithParam<int64_t> {};

TEST_P(SketchWeightsTest, AreExactlyTheDecodedOnes) {
  constexpr int64_t kCols = 256;
  constexpr int64_t kRows = 70;
  const int64_t bits = GetParam();
  std::vector<float> one_hot(kCols * kCols, 0.0f);
  for (size_t column = 0; column < kCols; ++column) one_hot[column * kCols + column] = 1024.0f;
  for (int64_t hash_rows = 1; hash_rows <= kMaxHashRows; ++hash_rows) {
    for (const int64_t unit_exponent : {int64_t{0}, kMaxUnitExponent}) {
      const auto sketch = ExampleSketch(
          kRows, kCols,
          {{50, 13, 2, bits == 8 ? 2 : bits + 1, 1}, {206, 40, hash_rows, bits, unit_exponent}});
      std::vector<float> expected(kRows * kCols);
      sketch->DecodeRows(0, kRows, expected.data());
      for (const int64_t num_tokens : {int64_t{1}, int64_t{60}, kCols}) {
        const Outputs found = Multiply(
            *CudaBackendOrNull(), *sketch, {},
            absl::MakeConstSpan(one_hot).subspan(0, static_cast<size_t>(num_tokens * kCols)));
        ASSERT_EQ(found.written.size(), static_cast<size_t>(num_tokens * kRows));
        for (int64_t token = 0; token < num_tokens; ++token) {
          for (int64_t row = 0; row < kRows; ++row) {
            ASSERT_EQ(found.written[static_cast<size_t>(token * kRows + row)],
                      16.0f * expected[static_cast<size_t>(row * kCols + token)])
                << hash_rows << " hash rows, row " << row << ", column " << token;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, SketchWeightsTest,
                         ::testing::Range(kMinBucketBits, kMaxBucketBits + 1));

TEST_F(CudaTest, SketchWithColumnsDealtByImportanceAgreesWithTheCpu) {
  const auto sketch = ExampleWithImportance(90);
  const std::vector<float> inputs = ShortFloats(70 * 27, 7);
  const Outputs expected = Multiply(*CpuBackend(), *sketch, {}, inputs);
  const Outputs found = Multiply(*CudaBackendOrNull(), *sketch, {}, inputs);
  EXPECT_LT(RelativeError(found.written, expected.written), kTolerance);
}

}  // namespace
}  // namespace ultrasketch
