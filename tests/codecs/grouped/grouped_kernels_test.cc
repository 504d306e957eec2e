// The grouped products of every instruction set against sums of the decoded table in double
// precision.
#include "engine/codecs/grouped/grouped_kernels.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/base/instruction_set.h"
#include "engine/base/resident_memory.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/grouped/grouped_cpu_linear.h"
#include "tests/base/guarded_buffer.h"
#include "tests/base/temporary_folder.h"
#include "tests/codecs/grouped/grouped_examples.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

// A table whose tensors end at forbidden pages, its scales in either type.
class GuardedTable : public TensorSource {
 public:
  GuardedTable(int64_t rows, int64_t cols, GroupedType type, DType scale_type, uint64_t stream)
      : example_(ExampleTable(rows, cols, type, stream)),
        values_(example_->values().num_bytes()),
        scales_(example_->scales().num_elements()) {
    std::copy_n(example_->values().data, values_.size(), values_.data());
    const std::vector<float> floats = ToFloatVector(example_->scales());
    for (size_t i = 0; i < floats.size(); ++i) {
      scales_[static_cast<int64_t>(i)] =
          scale_type == DType::kF16 ? FloatToHalf(floats[i]) : FloatToBf16(floats[i]);
    }
    values_view_ = example_->values();
    values_view_.data = values_.data();
    scales_view_ = example_->scales();
    scales_view_.dtype = scale_type;
    scales_view_.data = reinterpret_cast<const uint8_t*>(scales_.data());
    auto loaded = GroupedTable::Load(example_->site(), type, *this);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    table_ = *std::move(loaded);
  }

  const TensorView* Find(std::string_view name) const override {
    return name == "model.embed_tokens.scale" ? &scales_view_ : &values_view_;
  }
  std::string Describe(std::string_view) const override { return "guarded"; }

  const GroupedTable& table() const { return *table_; }

 private:
  std::unique_ptr<GroupedTable> example_;
  GuardedBuffer<uint8_t> values_;
  GuardedBuffer<uint16_t> scales_;
  TensorView values_view_;
  TensorView scales_view_;
  std::unique_ptr<GroupedTable> table_;
};

std::vector<float> RandomInputs(int64_t count, uint64_t stream) {
  std::vector<float> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(NormalDouble(5, stream, i));
  return x;
}

using Parameters = std::tuple<const char*, GroupedType, DType>;

class GroupedKernelsTest : public ::testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    kernels_ = FindGroupedKernels(std::get<0>(GetParam()));
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor has no " << std::get<0>(GetParam());
    EXPECT_STREQ(kernels_->name, std::get<0>(GetParam()));
  }

  GroupedType type() const { return std::get<1>(GetParam()); }
  DType scale_type() const { return std::get<2>(GetParam()); }

  static std::vector<float> Prepared(const GroupedCpuLinear& linear, const std::vector<float>& x) {
    const int64_t num_tokens = static_cast<int64_t>(x.size()) / linear.cols();
    GuardedBuffer<float> prepared(num_tokens * linear.prepared_width());
    std::fill(prepared.begin(), prepared.end(), std::nanf(""));
    for (int64_t token = 0; token < num_tokens; ++token) {
      linear.PrepareInput(x.data() + token * linear.cols(),
                          prepared.data() + token * linear.prepared_width());
    }
    return {prepared.begin(), prepared.end()};
  }

  std::vector<float> Product(const GroupedTable& table, const std::vector<float>& x,
                             int num_threads, bool accumulate = false, float before = -123.0f) {
    const GroupedCpuLinear linear(table, *kernels_);
    const GuardedBuffer<float> prepared(Prepared(linear, x));
    const int64_t num_tokens = static_cast<int64_t>(x.size()) / linear.cols();
    GuardedBuffer<float> y(num_tokens * linear.rows());
    std::fill(y.begin(), y.end(), before);
    ThreadPool pool(num_threads);
    linear.Multiply(prepared.data(), num_tokens, accumulate, y.data(), pool);
    return {y.begin(), y.end()};
  }

  void ExpectMatches(int64_t rows, int64_t cols, int64_t num_tokens, uint64_t stream) {
    const GuardedTable guarded(rows, cols, type(), scale_type(), stream);
    const std::vector<float> x = RandomInputs(num_tokens * cols, stream);
    std::vector<float> weights(static_cast<size_t>(rows * cols));
    guarded.table().DecodeRows(0, rows, weights.data());
    const std::vector<float> y = Product(guarded.table(), x, 1);
    const std::vector<float> added = Product(guarded.table(), x, 2, true, 3.25f);
    for (int64_t token = 0; token < num_tokens; ++token) {
      double largest = 0;
      for (int64_t k = 0; k < cols; ++k) {
        largest = std::max(largest, std::fabs(double{x[static_cast<size_t>(token * cols + k)]}));
      }
      for (int64_t row = 0; row < rows; ++row) {
        double sum = 0;
        double magnitude = 0;
        double weight = 0;
        for (int64_t k = 0; k < cols; ++k) {
          const double term = double{weights[static_cast<size_t>(row * cols + k)]} *
                              double{x[static_cast<size_t>(token * cols + k)]};
          sum += term;
          magnitude += std::fabs(term);
          weight += std::fabs(double{weights[static_cast<size_t>(row * cols + k)]});
        }
        const auto i = static_cast<size_t>(token * rows + row);
        const double roundings = static_cast<double>(GroupsInRow(cols) + 12);
        // An input is rounded to the nearest of 32767 steps on either side of 0.
        const double half_step = largest / kMaxGroupedInteger / 2;
        ASSERT_NEAR(y[i], sum, roundings * 0x1p-23 * magnitude + half_step * weight)
            << rows << " x " << cols << ": token " << token << " of " << num_tokens << ", row "
            << row;
        ASSERT_EQ(added[i], 3.25f + y[i]);
      }
    }
  }

  const GroupedKernels* kernels_ = nullptr;
};

TEST_P(GroupedKernelsTest, MatchesTheDecodedTable) {
  for (uint64_t stream = 0; stream < 100; ++stream) {
    const auto between = [&](uint64_t index, int64_t low, int64_t high) {
      return low + static_cast<int64_t>(RandomWord(6, stream, index) %
                                        static_cast<uint64_t>(high - low + 1));
    };
    ExpectMatches(between(0, 1, 60), between(1, 1, 300), between(2, 1, 30), stream);
    if (HasFatalFailure()) return;
  }
}

TEST_P(GroupedKernelsTest, MatchesAtEveryRemainder) {
  for (int64_t rows = 1; rows <= 9; ++rows) {
    for (int64_t num_tokens = 1; num_tokens <= 7; ++num_tokens) {
      for (const int64_t cols : {1, 2, 31, 33, 63, 64, 65, 127, 128}) {
        ExpectMatches(rows, cols, num_tokens, 7);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// More groups than are converted at once, and so many columns that tokens are taken in blocks.
TEST_P(GroupedKernelsTest, MatchesLongRows) {
  ExpectMatches(9, 64 * 16, 3, 1);
  ExpectMatches(9, 64 * 16 + 1, 1, 2);
  ExpectMatches(5, 64 * 33 - 5, 2, 3);
  ExpectMatches(3, 15001, 14, 4);
  ExpectMatches(2, 140001, 7, 5);
}

TEST_P(GroupedKernelsTest, GivesTheSameBitsInEveryBatch) {
  for (const int64_t cols : {40, 64, 200, 1100}) {
    const GuardedTable guarded(37, cols, type(), scale_type(), 8);
    const std::vector<float> x = RandomInputs(17 * cols, 8);
    const std::vector<float> whole = Product(guarded.table(), x, 1);
    EXPECT_EQ(Product(guarded.table(), x, 3), whole);
    for (int64_t first = 0; first < 17; ++first) {
      for (const int64_t count : {1, 2, 5, 6}) {
        if (first + count > 17) continue;
        const std::vector<float> part(x.begin() + first * cols, x.begin() + (first + count) * cols);
        const std::vector<float> expected(whole.begin() + first * 37,
                                          whole.begin() + (first + count) * 37);
        ASSERT_EQ(Product(guarded.table(), part, 2), expected)
            << cols << " columns, tokens " << first << " and " << count - 1 << " more";
      }
    }
  }
}

TEST_P(GroupedKernelsTest, GivesTheSameBitsAsThePortableKernels) {
  for (const int64_t cols : {1, 40, 64, 200, 1100, 5000}) {
    const GuardedTable guarded(37, cols, type(), scale_type(), 8);
    for (const int64_t num_tokens : {1, 2, 15}) {
      const std::vector<float> x = RandomInputs(num_tokens * cols, 8);
      const std::vector<float> y = Product(guarded.table(), x, 1);
      const GroupedKernels* const kernels = kernels_;
      kernels_ = FindGroupedKernels("portable");
      EXPECT_EQ(Product(guarded.table(), x, 1), y) << cols << " columns, " << num_tokens;
      kernels_ = kernels;
    }
  }
}

// The largest integers of both signs, so many that a lane must hold the most that it can.
TEST_P(GroupedKernelsTest, SumsTheLargestIntegersExactly) {
  const int64_t cols = 64 * 3;
  const int8_t least = type() == GroupedType::kInt8 ? -128 : -8;
  const auto packed = static_cast<uint8_t>(type() == GroupedType::kInt8 ? 0x80 : 0x88);
  LinearSite site;
  site.name = "model.embed_tokens";
  site.rows = 9;
  site.cols = cols;
  const auto table = GroupedTable::FromParts(
      site, type(),
      std::vector<uint8_t>(static_cast<size_t>(9 * GroupedRowBytes(type(), cols)), packed),
      std::vector<uint16_t>(9 * 3, FloatToBf16(1.0f)));
  for (const float x : {-32767.0f, 32767.0f}) {
    for (const int64_t num_tokens : {1, 3}) {
      for (const float y :
           Product(*table, std::vector<float>(static_cast<size_t>(num_tokens * cols), x), 1)) {
        EXPECT_EQ(y, static_cast<float>(cols) * least * x);
      }
    }
  }
}

TEST_P(GroupedKernelsTest, TakesTablesAtAnyAddress) {
  const auto example = ExampleTable(11, 130, type(), 9);
  const std::vector<float> x = RandomInputs(3 * 130, 9);
  const std::vector<float> expected = Product(*example, x, 1);
  for (int64_t offset = 1; offset < 8; ++offset) {
    MemorySource source;
    for (const NamedTensor& tensor : example->StoredTensors()) {
      source.Set(tensor);
      std::vector<uint8_t>& bytes = source.bytes(tensor.name);
      bytes.insert(bytes.begin(), static_cast<size_t>(offset), 0xff);
      source.view(tensor.name).data = bytes.data() + offset;
    }
    const auto moved = GroupedTable::Load(example->site(), type(), source);
    ASSERT_TRUE(moved.ok()) << moved.status();
    EXPECT_EQ(Product(**moved, x, 1), expected) << "offset " << offset;
  }
}

// Of values that are a mapped file's.
TEST_P(GroupedKernelsTest, KeepsOneCopyOfATableInMemory) {
  const auto example = ExampleTable(256, 1024, type(), 11);
  const TemporaryFolder folder;
  const TensorView& values = example->values();
  const auto file =
      MappedFile::Open(folder.Write("values", {reinterpret_cast<const char*>(values.data),
                                               static_cast<size_t>(values.num_bytes())}));
  ASSERT_TRUE(file.ok()) << file.status();
  MemorySource source;
  for (const NamedTensor& tensor : example->StoredTensors()) source.Set(tensor);
  source.view(example->StoredTensors()[0].name).data = (*file)->data();
  const auto table = GroupedTable::Load(example->site(), type(), source);
  ASSERT_TRUE(table.ok()) << table.status();
  const std::vector<float> x = RandomInputs(2 * 1024, 11);
  EXPECT_EQ(Product(**table, x, 1), Product(*example, x, 1));
  EXPECT_EQ(ResidentBytes((*file)->data(), (*file)->size()), 0);
  std::vector<float> row(1024);
  std::vector<float> expected(1024);
  (*table)->DecodeRows(77, 1, row.data());
  example->DecodeRows(77, 1, expected.data());
  EXPECT_EQ(row, expected);
}

TEST_P(GroupedKernelsTest, LeavesTheOutputAloneWithoutTokens) {
  const auto example = ExampleTable(11, 130, type(), 10);
  EXPECT_TRUE(Product(*example, {}, 1).empty());
}

std::string ParameterName(const ::testing::TestParamInfo<Parameters>& parameter) {
  return std::string(std::get<0>(parameter.param)) + "_" +
         std::string(GroupedTypeName(std::get<1>(parameter.param))) + "_" +
         std::string(DTypeName(std::get<2>(parameter.param)));
}

INSTANTIATE_TEST_SUITE_P(All, GroupedKernelsTest,
                         ::testing::Combine(::testing::Values("avx512", "avx2", "portable"),
                                            ::testing::Values(GroupedType::kInt8,
                                                              GroupedType::kInt4),
                                            ::testing::Values(DType::kBF16, DType::kF16)),
                         ParameterName);

TEST(GroupedKernelsChoiceTest, AreThoseOfTheInstructionSet) {
  EXPECT_EQ(&GetGroupedKernels(), FindGroupedKernels(InstructionSet()));
  EXPECT_STREQ(GetGroupedKernels().name, InstructionSet());
  EXPECT_EQ(FindGroupedKernels("sse9"), nullptr);
}

}  // namespace
}  // namespace ultrasketch
