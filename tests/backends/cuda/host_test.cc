// What of the CUDA backend is plain arithmetic: layouts of packed weights, plans of attention.
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/backends/cuda/attention_plan.h"
#include "engine/base/random.h"
#include "engine/codecs/cuda/cuda_codec.h"
#include "engine/codecs/cuda/tile_layout.h"
#include "engine/codecs/dense/cuda/dense_product_hopper.h"
#include "engine/codecs/fold/cuda/bit_layout.h"
#include "engine/codecs/fold/cuda/fold_transform.h"
#include "engine/codecs/grouped/cuda/grouped_product.h"
#include "tests/codecs/fold_examples.h"

namespace ultrasketch::cuda {
namespace {

// Row and column of the K tile that a lane holds in half `half` of register `reg` of an
// instruction, by the instruction's definition and the order that tile_layout.h gives its columns.
struct Place {
  int row;
  int column;
};
Place WeightPlace(int lane, int instruction, int reg, int half) {
  return {lane / 4 + 8 * (reg % 2), LaneColumn(lane, instruction, reg) + half};
}

TEST(TileLayoutTest, EveryWeightOfAStepIsHeldOnce) {
  std::set<std::pair<int, int>> places;
  for (int lane = 0; lane < 32; ++lane) {
    for (int instruction = 0; instruction < 4; ++instruction) {
      for (int reg = 0; reg < 4; ++reg) {
        for (int half = 0; half < 2; ++half) {
          const Place place = WeightPlace(lane, instruction, reg, half);
          EXPECT_TRUE(places.insert({place.row, place.column}).second);
        }
      }
    }
  }
  EXPECT_EQ(places.size(), 16u * 64u);
}

// The input registers of an instruction are the halves 4 i to 4 i + 3 of the lane's two pieces:
// register r / 2 meets weights of registers r and r + 1.
TEST(TileLayoutTest, WeightsMeetTheInputsOfTheirColumns) {
  for (int instruction = 0; instruction < 4; ++instruction) {
    for (int reg = 0; reg < 4; ++reg) {
      for (int half = 0; half < 2; ++half) {
        const int input_half = instruction * 4 + reg / 2 * 2 + half;
        EXPECT_EQ(WeightPlace(0, instruction, reg, half).column,
                  input_half / kPieceColumns * 32 + input_half % kPieceColumns);
      }
    }
  }
}

// Bit 8 * byte + 4 * run + unit of a word is column 4 * unit + byte of the run.
TEST(BitLayoutTest, WordsHoldUnitsAcrossTheirBytes) {
  for (uint64_t example = 0; example < 200; ++example) {
    const uint32_t runs[2] = {static_cast<uint32_t>(RandomWord(1, 2, example)) & 0xffffu,
                              static_cast<uint32_t>(RandomWord(1, 3, example)) & 0xffffu};
    const uint32_t word = PackBitWord(runs[0], runs[1]);
    for (int run = 0; run < 2; ++run) {
      for (int unit = 0; unit < kUnitsPerRun; ++unit) {
        const uint32_t bytes = word >> (run * kUnitsPerRun + unit) & kUnitMask;
        for (int byte = 0; byte < 4; ++byte) {
          EXPECT_EQ(bytes >> (8 * byte) & 0xff, runs[run] >> (4 * unit + byte) & 1);
        }
      }
    }
  }
}

TEST(BitLayoutTest, BucketsFillWholeBitKTiles) {
  EXPECT_EQ(FoldKTiles(1), 4);
  EXPECT_EQ(FoldKTiles(256), 4);
  EXPECT_EQ(FoldKTiles(257), 8);
  EXPECT_EQ(FoldKTiles(2048) * kKTileColumns, 2048);
}

TEST(TileLayoutTest, HighAndLowBytesCoverARowOnce) {
  constexpr int64_t kKTiles = 8;
  std::set<int64_t> offsets;
  for (int64_t column = 0; column < kKTiles * kKTileColumns; ++column) {
    offsets.insert(HighByteOffset(column));
    offsets.insert(HighByteOffset(column) + kHiLoBytes);
  }
  EXPECT_EQ(offsets.size(), static_cast<size_t>(PackedScaleOffset(kKTiles)));
  EXPECT_EQ(*offsets.rbegin(), PackedScaleOffset(kKTiles) - 1);
}

TEST(TileLayoutTest, DenseWeightsLieWhereLanesReadThem) {
  constexpr int64_t kKTiles = 3;
  std::set<int64_t> offsets;
  for (int64_t tile = 0; tile < 2; ++tile) {
    for (int64_t k_tile = 0; k_tile < kKTiles; ++k_tile) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int instruction = 0; instruction < 4; ++instruction) {
          for (int reg = 0; reg < 4; ++reg) {
            for (int half = 0; half < 2; ++half) {
              const Place place = WeightPlace(lane, instruction, reg, half);
              const int64_t offset = DenseOffset(tile * kMTileRows + place.row,
                                                 k_tile * kKTileColumns + place.column, kKTiles);
              // Pieces of 16 bytes: of a row half and a half of the columns 32, one a lane.
              const int64_t block = (tile * kKTiles + k_tile) * 4 + reg % 2 * 2 + instruction / 2;
              EXPECT_EQ(offset, (block * 32 + SwizzledPiece(lane)) * 8 + instruction % 2 * 4 +
                                    reg / 2 * 2 + half);
              offsets.insert(offset);
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(offsets.size(), 2u * kKTiles * 1024u);
}

// In mma.m16n8k32 lane l holds in register r four columns of row l / 4 + 8 * (r % 2), and those
// are the next four of its sixteen after register r - 2's.
TEST(GroupedLayoutTest, Int8WeightsLieAsLanesTakeThem) {
  constexpr int64_t kKTiles = 2;
  for (int64_t tile = 0; tile < 2; ++tile) {
    for (int64_t k_tile = 0; k_tile < kKTiles; ++k_tile) {
      const int64_t first = (tile * kKTiles + k_tile) * GroupedKTileBytes(/*is_int4=*/false);
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 32; ++i) {  // bytes of both rows
          const int64_t row = tile * kMTileRows + lane / 4 + i / 16 * 8;
          const int64_t column = k_tile * kKTileColumns + lane % 4 * kColumnsPerLane + i % 16;
          EXPECT_EQ(Int8Offset(row, column, kKTiles),
                    first + i / 16 * 512 + GroupUnit(lane / 4, lane % 4) * 16 + i % 16);
        }
      }
    }
  }
}

// Eight units that are read at a time are in eight places of 16 bytes of the 128 of all banks:
// whether lanes 8 i and following read their own, or a part of eight rows is read.
TEST(GroupedLayoutTest, UnitsThatAreReadTogetherDoNotMeetInABank) {
  for (int i = 0; i < 4; ++i) {
    std::set<int> of_lanes;
    std::set<int> of_rows;
    for (int j = 0; j < 8; ++j) {
      const int lane = 8 * i + j;
      of_lanes.insert(GroupUnit(lane / 4, lane % 4) % 8);
      of_rows.insert(GroupUnit(j, i) % 8);
    }
    EXPECT_EQ(of_lanes.size(), 8u);
    EXPECT_EQ(of_rows.size(), 8u);
  }
}

TEST(GroupedLayoutTest, IntegersAndScalesCoverAMatrixOnce) {
  constexpr int64_t kRows = 2 * kMTileRows;
  constexpr int64_t kKTiles = 4;
  for (const bool is_int4 : {false, true}) {
    // Uses of each byte: 1 for a lower half, 10 for an upper one, 100 for all of it.
    std::map<int64_t, int> uses;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t column = 0; column < kKTiles * kKTileColumns; ++column) {
        if (!is_int4) {
          uses[Int8Offset(row, column, kKTiles)] += 100;
        } else {
          uses[Int4Offset(row, column, kKTiles)] += Int4InUpperHalf(column) ? 10 : 1;
        }
      }
      for (int64_t k_tile = 0; k_tile < kKTiles; ++k_tile) {
        for (int byte = 0; byte < 2; ++byte) {
          uses[GroupScaleOffset(is_int4, row, k_tile, kKTiles) + byte] += 100;
        }
      }
    }
    const int64_t num_bytes = kRows / kMTileRows * kKTiles * GroupedKTileBytes(is_int4);
    EXPECT_EQ(static_cast<int64_t>(uses.size()), num_bytes);
    EXPECT_EQ(uses.rbegin()->first, num_bytes - 1);
    for (const auto& [offset, count] : uses) {
      EXPECT_TRUE(count == 100 || (is_int4 && count == 11)) << offset << ": " << count;
    }
  }
}

TEST(GroupedLayoutTest, RowsHaveWholePairsOfGroups) {
  EXPECT_EQ(NumGroupedKTiles(1), 2);
  EXPECT_EQ(NumGroupedKTiles(128), 2);
  EXPECT_EQ(NumGroupedKTiles(129), 4);
}

TEST(DenseLayoutTest, MatricesOfManyColumnsAndFewRowsHaveTwoKSplits) {
  EXPECT_EQ(DenseKSplitTiles(2048, NumKTiles(2048)), NumKTiles(2048));
  EXPECT_EQ(DenseKSplitTiles(16384, NumKTiles(2048)), NumKTiles(2048));
  EXPECT_EQ(DenseKSplitTiles(2048, NumKTiles(8192)), NumKTiles(4096));
  for (const int64_t rows : {1, 300, 100000}) {
    for (int64_t num_k_tiles = 1; num_k_tiles < 300; ++num_k_tiles) {
      const int64_t k_split_tiles = DenseKSplitTiles(rows, num_k_tiles);
      const int num_splits = NumDenseKSplits(rows, num_k_tiles);
      EXPECT_LT((num_splits - 1) * k_split_tiles, num_k_tiles);
      EXPECT_GE(num_splits * k_split_tiles, num_k_tiles);
      EXPECT_TRUE(num_splits == 1 || k_split_tiles % kKSplitUnit == 0);
    }
  }
}

TEST(TileLayoutTest, KSplitsCoverTheKTilesInOrder) {
  for (const int64_t num_k_tiles : {1, 2, 7, 8, 9, 31, 32, 112, 1000}) {
    EXPECT_EQ(KSplitBegin(0, num_k_tiles), 0);
    EXPECT_EQ(KSplitBegin(kNumKSplits, num_k_tiles), num_k_tiles);
    for (int64_t k_split = 0; k_split < kNumKSplits; ++k_split) {
      EXPECT_LE(KSplitBegin(k_split, num_k_tiles), KSplitBegin(k_split + 1, num_k_tiles));
    }
  }
}

// The transform as device code computes it.
std::vector<float> Sketch(const TransformTables& sketch, const std::vector<float>& x) {
  const auto index_bytes = static_cast<size_t>(sketch.index_bytes);
  const uint32_t sign = 1u << (8 * index_bytes - 1);
  std::vector<float> entries(x.size(), std::numeric_limits<float>::quiet_NaN());
  for (size_t column = 0; column < x.size(); ++column) {
    uint32_t place = 0;
    std::memcpy(&place, sketch.scatter_indices.data() + column * index_bytes, index_bytes);
    entries[place & ~sign] = (place & sign) != 0 ? -x[column] : x[column];
  }
  std::vector<float> z;
  for (const TransformGroup& group : sketch.groups) {
    EXPECT_EQ(group.first_bucket, static_cast<int32_t>(z.size()));
    for (int32_t bucket = 0; bucket < group.num_buckets; ++bucket) {
      float sum = 0;
      for (int32_t i = 0; i < group.columns_per_bucket; ++i) {
        sum += entries[static_cast<size_t>(group.first_permuted + i * group.num_buckets + bucket)];
      }
      z.push_back(sum * group.weight);
    }
  }
  return z;
}

TEST(FoldTransformTest, IsTheLayoutsFold) {
  for (const auto& [cols, buckets] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {100, 33}, {256, 128}, {250, 129}, {96, 200}, {32768, 1100}, {40000, 20000}}) {
    const FoldLayout layout(5, "site", EvenFoldClasses(cols, buckets), {});
    const TransformTables sketch = MakeFoldTransform(layout);
    EXPECT_EQ(sketch.index_bytes, cols > 32768 ? 4 : 2);
    EXPECT_EQ(sketch.scatter_indices.size(), static_cast<size_t>(cols * sketch.index_bytes));
    const std::vector<float> x = RandomFloats(cols, 1);
    std::vector<float> expected(static_cast<size_t>(layout.buckets()));
    layout.Fold(x.data(), expected.data());
    const std::vector<float> found = Sketch(sketch, x);
    ASSERT_EQ(found.size(), expected.size());
    float most = 0;
    for (const float value : x) most = std::max(most, std::abs(value));
    for (size_t bucket = 0; bucket < found.size(); ++bucket) {
      EXPECT_FLOAT_EQ(found[bucket], expected[bucket]);
      EXPECT_LE(std::abs(found[bucket]), most * sketch.max_amplification * 1.0001f);
    }
  }
}

TEST(CudaCodecTest, EveryCodecHasItsLine) {
  for (const std::string_view name : CodecNames()) {
    ASSERT_NE(FindCudaCodec(name), nullptr) << name;
    EXPECT_EQ(FindCudaCodec(name)->name, name);
  }
  EXPECT_EQ(FindCudaCodec("none"), nullptr);
}

TEST(CudaCodecTest, TablesHaveRowsToLookUp) {
  for (const std::string_view name : {"dense", "int8", "int4"}) {
    ASSERT_NE(FindCudaCodec(name), nullptr) << name;
    EXPECT_NE(FindCudaCodec(name)->launch_embed, nullptr) << name;
  }
}

TEST(MemoryPlanTest, PartsAreAlignedAndDoNotOverlap) {
  const std::vector<float> values(65);
  MemoryPlan plan;
  EXPECT_EQ(plan.Add(1), 0);
  EXPECT_EQ(plan.AddCopy(values), 256);
  EXPECT_EQ(plan.AddCopy(std::vector<float>()), 768);
  EXPECT_EQ(plan.Add(256), 768);
  EXPECT_EQ(plan.total_bytes(), 1024);
  ASSERT_EQ(plan.copies().size(), 1u);
  EXPECT_EQ(plan.copies()[0].source, values.data());
  EXPECT_EQ(plan.copies()[0].num_bytes, 260);
  EXPECT_EQ(plan.copies()[0].offset, 256);
}

// Every token is attended to in one place, within the workspace.
void CheckPlan(const AttentionGeometry& geometry, const std::vector<PlannedSpan>& spans,
               int64_t max_slots, int64_t max_tokens) {
  AttentionPlan plan;
  PlanAttention(geometry, spans, max_slots, max_tokens, plan);
  int64_t item = 0;
  int64_t token = 0;
  for (const AttentionTokenBlock& token_block : plan.token_blocks) {
    EXPECT_EQ(token_block.first_item, item);
    EXPECT_EQ(token_block.first_token, token);
    EXPECT_GT(token_block.num_tokens, 0);
    EXPECT_LE(token_block.num_tokens, max_tokens);
    std::set<int32_t> slots;
    std::map<int32_t, std::vector<int32_t>> splits_of_token;
    std::map<int32_t, int32_t> first_slot;
    for (int64_t i = 0; i < token_block.num_items + token_block.num_prompt_items; ++i) {
      const bool is_prompt = i >= token_block.num_items;
      const AttentionItem& work = plan.items[static_cast<size_t>(item + i)];
      if (work.num_tokens == 0) continue;
      EXPECT_GE(work.first_token, token_block.first_token);
      EXPECT_LE(work.first_token + work.num_tokens,
                token_block.first_token + token_block.num_tokens);
      EXPECT_LE(work.num_tokens, geometry.tokens_per_tile() * (is_prompt ? kPromptTiles : 1));
      EXPECT_TRUE(!is_prompt || (geometry.is_staged() && work.split < 0));
      if (work.split >= 0) {
        EXPECT_TRUE(slots.insert(work.slot).second);
        EXPECT_LT(work.slot, max_slots);
        if (work.split == 0) first_slot[work.first_token] = work.slot;
        EXPECT_EQ(work.slot, first_slot[work.first_token] + work.split);
      }
      for (int32_t t = 0; t < work.num_tokens; ++t) {
        splits_of_token[work.first_token + t].push_back(work.split);
        const AttentionToken& planned = plan.tokens[static_cast<size_t>(work.first_token + t)];
        EXPECT_EQ(planned.tile_token, t);
        if (work.split >= 0) {
          EXPECT_EQ(planned.first_slot + work.split, work.slot);
        } else {
          EXPECT_EQ(planned.num_splits, 0);
        }
      }
    }
    EXPECT_EQ(static_cast<int64_t>(splits_of_token.size()), token_block.num_tokens);
    for (const auto& [id, splits] : splits_of_token) {
      const AttentionToken& planned = plan.tokens[static_cast<size_t>(id)];
      // More than so many are merged by attention itself.
      const bool are_merged =
          splits.front() < 0 ||
          (plan.merges_splits && splits.size() > static_cast<size_t>(kMaxUnmergedSplits));
      EXPECT_EQ(planned.num_splits, are_merged ? 0 : static_cast<int32_t>(splits.size()));
    }
    item += token_block.num_items + token_block.num_prompt_items;
    token += token_block.num_tokens;
  }
  EXPECT_EQ(item, static_cast<int64_t>(plan.items.size()));
  EXPECT_EQ(token, static_cast<int64_t>(plan.tokens.size()));
  EXPECT_LE(item, MaxAttentionItems(spans));
}

TEST(AttentionPlanTest, CoversEveryTokenWithinTheWorkspace) {
  const std::vector<PlannedSpan> spans = {
      {0, 1, 0, 0},       {1, 1, 300, 1},      {2, 100, 0, 20},   {102, 1, 5000, 30},
      {103, 3, 600, 400}, {106, 40, 900, 500}, {146, 1, 255, 700}};
  for (const AttentionGeometry& geometry :
       {AttentionGeometry{32, 8, 128, 16}, AttentionGeometry{4, 4, 64, 16},
        AttentionGeometry{24, 1, 64, 16}, AttentionGeometry{14, 2, 64, 32},
        AttentionGeometry{4, 2, 10, 16}, AttentionGeometry{4, 2, 256, 16},
        AttentionGeometry{32, 8, 64, 16, true}, AttentionGeometry{24, 1, 256, 16, true}}) {
    for (const int64_t max_slots : {1, 3, 20, 1000}) {
      for (const int64_t max_tokens : {16, 50, 1000}) {
        CheckPlan(geometry, spans, max_slots, max_tokens);
      }
    }
  }
}

TEST(AttentionPlanTest, GivesPromptsItemsOfEightTiles) {
  AttentionPlan plan;
  const std::vector<PlannedSpan> spans = {{0, 1, 10, 0}, {1, 100, 0, 1}};
  PlanAttention({32, 8, 128, 16}, spans, 100, 200, plan);
  ASSERT_EQ(plan.token_blocks.size(), 1u);
  EXPECT_EQ(plan.token_blocks[0].num_items, 1);
  EXPECT_EQ(plan.token_blocks[0].num_prompt_items, 4);  // of 32 tokens
  EXPECT_EQ(plan.items[1].num_tokens, 32);
}

TEST(AttentionPlanTest, SpreadsTheKeysOfADecodingToken) {
  AttentionPlan plan;
  const std::vector<PlannedSpan> spans = {{0, 1, 1000, 0}};
  PlanAttention({32, 8, 128, 16}, spans, 100, 100, plan);
  EXPECT_EQ(plan.items.size(), 4u);
  EXPECT_EQ(plan.tokens[0].num_splits, 4);
}

TEST(AttentionPlanTest, LeavesManySplitsToAttention) {
  AttentionPlan plan;
  const std::vector<PlannedSpan> spans = {{0, 1, 9 * 256 - 1, 0}};
  PlanAttention({32, 8, 128, 16}, spans, 100, 100, plan);
  EXPECT_EQ(plan.tokens[0].num_splits, 0);
  ASSERT_GE(plan.items.size(), 9u);
  EXPECT_EQ(plan.items[8].split, 8);

  // Not in a K tile of many sequences.
  std::vector<PlannedSpan> many;
  for (int64_t i = 0; i <= kMaxMergedItems / 9; ++i) many.push_back({i, 1, 9 * 256 - 1, 9 * i});
  PlanAttention({32, 8, 128, 16}, many, 10000, 10000, plan);
  EXPECT_EQ(plan.tokens[0].num_splits, 9);
}

TEST(AttentionPlanTest, TilesOverACacheOfBytesHaveHalfAsManyRows) {
  AttentionPlan plan;
  const std::vector<PlannedSpan> spans = {{0, 100, 0, 1}};
  PlanAttention({32, 8, 64, 16, /*is_int8=*/true}, spans, 100, 200, plan);
  ASSERT_EQ(plan.token_blocks.size(), 1u);
  EXPECT_EQ(plan.items[0].num_tokens, 16);
}

}  // namespace
}  // namespace ultrasketch::cuda
