// Tables of group-quantized integers on the device: as embedding and as output head.
#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"
#include "engine/codecs/grouped/grouped_table.h"
#include "tests/backends/cuda/device_test.h"

namespace ultrasketch {
namespace {

constexpr double kTolerance = 6e-4;

struct TableShape {
  GroupedType type;
  int64_t rows;
  int64_t cols;
};

std::string NameOf(const TableShape& shape) {
  return absl::StrCat(std::string(GroupedTypeName(shape.type)), "_", shape.rows, "x", shape.cols);
}

void PrintTo(const TableShape& shape, std::ostream* out) { *out << NameOf(shape); }

// Random integers, and scales with all their bits.
std::shared_ptr<GroupedTable> RandomTable(const TableShape& shape) {
  LinearSite site;
  site.name = "model.embed_tokens";
  site.rows = shape.rows;
  site.cols = shape.cols;
  std::vector<uint8_t> values;
  const int64_t row_bytes = GroupedRowBytes(shape.type, shape.cols);
  for (int64_t i = 0; i < shape.rows * row_bytes; ++i) {
    auto byte = static_cast<uint8_t>(RandomWord(3, 1, static_cast<uint64_t>(i)) >> 9);
    const bool is_padded =
        shape.type == GroupedType::kInt4 && shape.cols % 2 != 0 && i % row_bytes == row_bytes - 1;
    if (is_padded) byte &= 15;
    values.push_back(byte);
  }
  std::vector<uint16_t> scales;
  for (int64_t i = 0; i < shape.rows * GroupsInRow(shape.cols); ++i) {
    scales.push_back(
        static_cast<uint16_t>(0x3c00 + (RandomWord(3, 2, static_cast<uint64_t>(i)) >> 7 & 0x1ff)));
  }
  return GroupedTable::FromParts(std::move(site), shape.type, std::move(values), std::move(scales));
}

// The rows of the first tokens, and their logits.
struct Outputs {
  std::vector<float> rows;
  std::vector<float> logits;
};

Outputs Embedded(Backend& backend, const std::shared_ptr<GroupedTable>& table, int64_t num_tokens) {
  const int64_t vocab_size = table->site().rows;
  const int64_t width = table->site().cols;
  auto embedding = backend.LoadEmbedding(table);
  EXPECT_TRUE(embedding.ok()) << embedding.status();
  if (!embedding.ok()) return {};
  const auto weight = MakeVector(backend, ShortFloats(width, 8));
  auto hidden = MakeActivations(backend, num_tokens, width);
  auto logits = MakeActivations(backend, num_tokens, vocab_size);
  const TestStep step(num_tokens);
  EXPECT_TRUE(backend.BeginStep(step.input()).ok());
  backend.Embed(**embedding, *hidden);
  backend.Logits({hidden.get(), weight.get(), 1e-5f}, **embedding, *logits);
  const absl::Status status = backend.EndStep();
  EXPECT_TRUE(status.ok()) << status;
  return {ReadRows(backend, *hidden, num_tokens, width),
          ReadRows(backend, *logits, num_tokens, vocab_size)};
}

// Token i's embedding is row i.
constexpr int64_t kMaxTokens = 700;

class GroupedTableTest : public CudaTestWithParam<TableShape> {};

TEST_P(GroupedTableTest, RowsAreExactlyTheDecodedOnes) {
  const auto table = RandomTable(GetParam());
  const int64_t num_tokens = std::min(table->site().rows, kMaxTokens);
  std::vector<float> expected(static_cast<size_t>(num_tokens * table->site().cols));
  table->DecodeRows(0, num_tokens, expected.data());
  EXPECT_EQ(Embedded(*CudaBackendOrNull(), table, num_tokens).rows, expected);
}

TEST_P(GroupedTableTest, LogitsAgreeWithTheCpuAndDoNotDependOnTheBatch) {
  const auto table = RandomTable(GetParam());
  const int64_t most_tokens = std::min(table->site().rows, kMaxTokens);
  const Outputs expected = Embedded(*CpuBackend(), table, most_tokens);
  const Outputs found = Embedded(*CudaBackendOrNull(), table, most_tokens);
  EXPECT_LT(RelativeError(found.logits, expected.logits), kTolerance);
  for (const int64_t num_tokens : {1, 8, 9, 17, 32, 40, 65}) {
    if (num_tokens > most_tokens) break;
    const Outputs some = Embedded(*CudaBackendOrNull(), table, num_tokens);
    for (size_t i = 0; i < some.logits.size(); ++i) {
      ASSERT_EQ(some.logits[i], found.logits[i]) << num_tokens << " tokens, logit " << i;
    }
  }
}

TEST_P(GroupedTableTest, TakesNoMoreMemoryThanIsStored) {
  const TableShape shape = GetParam();
  const auto table = RandomTable(shape);
  auto embedding = CudaBackendOrNull()->LoadEmbedding(table);
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  // Whole tiles of 16 rows by two groups, and alignment.
  const int64_t padded_rows = (shape.rows + 15) / 16 * 16;
  const int64_t padded_cols = (GroupsInRow(shape.cols) + 1) / 2 * 2 * kGroupColumns;
  EXPECT_LE((*embedding)->resident_bytes(),
            padded_rows * (GroupedRowBytes(shape.type, padded_cols) + padded_cols / 32) + 512);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GroupedTableTest,
                         ::testing::Values(TableShape{GroupedType::kInt8, 1, 1},
                                           TableShape{GroupedType::kInt8, 100, 64},
                                           TableShape{GroupedType::kInt8, 257, 200},
                                           TableShape{GroupedType::kInt8, 700, 1000},
                                           TableShape{GroupedType::kInt8, 9001, 328},
                                           TableShape{GroupedType::kInt8, 20000, 576},
                                           TableShape{GroupedType::kInt4, 1, 1},
                                           TableShape{GroupedType::kInt4, 100, 64},
                                           TableShape{GroupedType::kInt4, 257, 201},
                                           TableShape{GroupedType::kInt4, 700, 1000},
                                           TableShape{GroupedType::kInt4, 25000, 576}),
                         [](const auto& test) { return NameOf(test.param); });

}  // namespace
}  // namespace ultrasketch
