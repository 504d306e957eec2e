#include "engine/bench/round_to_nearest.h"

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/tensor.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

std::vector<float> Rounded(int bits, std::vector<float> row) {
  RoundToNearest(bits, static_cast<int64_t>(row.size()), absl::MakeSpan(row));
  return row;
}

TEST(RoundToNearestTest, GivesTheNearestLevel) {
  EXPECT_THAT(Rounded(2, {3, 1.9f, 0.1f, -0.1f, -1.9f, -2.1f}),
              testing::Pointwise(testing::FloatEq(), {3.0f, 1.0f, 1.0f, -1.0f, -1.0f, -3.0f}));
  EXPECT_EQ(Rounded(1, {-0.5f, 0.25f}), (std::vector<float>{-0.5f, 0.5f}));
}

TEST(RoundToNearestTest, ShortLastGroupsHaveAScaleOfTheirOwn) {
  std::vector<float> row(70, 8.0f);
  for (size_t i = 64; i < 70; ++i) row[i] = 0.5f;
  EXPECT_EQ(Rounded(4, row), row);
}

TEST(RoundToNearestTest, HoldsAllMagnitudes) {
  for (const float value : {0.0f, 1e-30f, std::numeric_limits<float>::denorm_min(), 65504.0f, 1e9f,
                            std::numeric_limits<float>::max()}) {
    for (const int bits : {1, 2, 4, 8}) {
      for (const float rounded : Rounded(bits, {value, -value, value / 3, 0})) {
        EXPECT_TRUE(std::isfinite(rounded)) << value;
        EXPECT_LE(std::abs(rounded), value * 1.001f + 1e-7f);
      }
    }
  }
}

TEST(RoundToNearestTest, CountsPaddingAndScales) {
  const auto config = ParseModelConfig({{"model_type", "llama"},
                                        {"vocab_size", 10},
                                        {"hidden_size", 66},
                                        {"intermediate_size", 10},
                                        {"num_hidden_layers", 3},
                                        {"num_attention_heads", 1}},
                                       "config");
  ASSERT_TRUE(config.ok()) << config.status();
  // q, k, v, o and gate, up: 66 columns are 33 bytes of 4 bits and 2 scales; down: 10, 5 and 1.
  const int64_t layer = (4 * 66 + 2 * 10) * (33 + 4) + 66 * (5 + 2);
  EXPECT_EQ(RoundToNearestBytes(4, *config), 3 * layer);
}

TEST(WriteRoundedCheckpointTest, WritesADenseModelOfTheDecodedWeights) {
  const auto dense = Checkpoint::Open(SAMPLE_MODEL_DIR);
  ASSERT_TRUE(dense.ok()) << dense.status();
  const TemporaryFolder folder;
  const absl::Status status = WriteRoundedCheckpoint(**dense, 3, folder.path());
  ASSERT_TRUE(status.ok()) << status;
  const auto written = Checkpoint::Open(folder.path());
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->tensor_names(), (*dense)->tensor_names());
  const std::string weight = "model.layers.2.mlp.down_proj.weight";
  std::vector<float> expected = ToFloatVector(*(*dense)->Find(weight));
  RoundToNearest(3, (*dense)->Find(weight)->shape[1], absl::MakeSpan(expected));
  EXPECT_EQ(ToFloatVector(*(*written)->Find(weight)), expected);
  for (const char* same : {"model.embed_tokens.weight", "model.norm.weight"}) {
    EXPECT_EQ(ToFloatVector(*(*written)->Find(same)), ToFloatVector(*(*dense)->Find(same)));
  }
}

}  // namespace
}  // namespace ultrasketch
