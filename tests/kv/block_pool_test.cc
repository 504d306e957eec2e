#include "engine/kv/block_pool.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr auto kNext = BlockPool::Reuse::kNext;
constexpr auto kLast = BlockPool::Reuse::kLast;

std::vector<BlockId> MustAllocate(BlockPool& pool, int64_t count) {
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.Allocate(count, blocks));
  EXPECT_EQ(blocks.size(), static_cast<size_t>(count));
  return blocks;
}

TEST(BlockPoolTest, BeginsWithEveryBlockFree) {
  const BlockPool pool(5);
  EXPECT_EQ(pool.num_blocks(), 5);
  EXPECT_EQ(pool.num_free(), 5);
  EXPECT_EQ(pool.num_used(), 0);
  for (BlockId block = 0; block < 5; ++block) EXPECT_EQ(pool.reference_count(block), 0);
}

TEST(BlockPoolTest, HandsOutEveryBlockOnce) {
  BlockPool pool(100);
  std::vector<BlockId> blocks = MustAllocate(pool, 60);
  ASSERT_TRUE(pool.Allocate(40, blocks));
  std::sort(blocks.begin(), blocks.end());
  std::vector<BlockId> all(100);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(blocks, all);
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_used(), 100);
}

TEST(BlockPoolTest, AppendsToWhatTheListHolds) {
  BlockPool pool(4);
  std::vector<BlockId> blocks = {77, 78};
  ASSERT_TRUE(pool.Allocate(1, blocks));
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_EQ(blocks[0], 77);
  EXPECT_EQ(blocks[1], 78);
  EXPECT_EQ(pool.reference_count(blocks[2]), 1);
}

TEST(BlockPoolTest, AllocatesAllOrNothing) {
  BlockPool pool(4);
  std::vector<BlockId> blocks = MustAllocate(pool, 3);
  const std::vector<BlockId> before = blocks;
  EXPECT_FALSE(pool.Allocate(2, blocks));
  EXPECT_FALSE(pool.Allocate(int64_t{1} << 40, blocks));
  EXPECT_EQ(blocks, before);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(pool.Allocate(1, blocks));
  EXPECT_FALSE(pool.Allocate(1, blocks));
  EXPECT_EQ(blocks.size(), 4u);
}

TEST(BlockPoolTest, AllocatesNothingFromAFullPool) {
  BlockPool pool(0);
  std::vector<BlockId> blocks;
  EXPECT_TRUE(pool.Allocate(0, blocks));
  EXPECT_FALSE(pool.Allocate(1, blocks));
  EXPECT_THAT(blocks, IsEmpty());
}

TEST(BlockPoolTest, KeepsASharedBlockUntilItsLastReleaser) {
  BlockPool pool(2);
  const std::vector<BlockId> blocks = MustAllocate(pool, 2);
  pool.Share(blocks[0]);
  pool.Share(blocks[0]);
  EXPECT_EQ(pool.reference_count(blocks[0]), 3);
  for (const BlockId block : blocks) pool.Release(block, kLast);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Release(blocks[0], kLast);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Release(blocks[0], kLast);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.reference_count(blocks[0]), 0);
}

TEST(BlockPoolTest, HandsOutNextWhatWasReleasedForThat) {
  BlockPool pool(10);
  MustAllocate(pool, 8);
  for (const BlockId block : {3, 7, 5}) pool.Release(block, kNext);
  EXPECT_THAT(MustAllocate(pool, 5), ElementsAre(5, 7, 3, 8, 9));
}

TEST(BlockPoolTest, HandsOutTheBlocksFreeLongestFirst) {
  BlockPool pool(4);
  EXPECT_THAT(MustAllocate(pool, 4), ElementsAre(0, 1, 2, 3));
  for (const BlockId block : {3, 1, 2}) pool.Release(block, kLast);
  EXPECT_THAT(MustAllocate(pool, 2), ElementsAre(3, 1));
}

TEST(BlockPoolTest, TakesAFreeBlockBackIntoUse) {
  BlockPool pool(4);
  MustAllocate(pool, 4);
  for (const BlockId block : {0, 1, 2, 3}) pool.Release(block, kLast);
  pool.Share(2);
  EXPECT_EQ(pool.reference_count(2), 1);
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_THAT(MustAllocate(pool, 3), ElementsAre(0, 1, 3));
}

// Random calls, against a map of reference counts.
TEST(BlockPoolTest, KeepsItsCountsOverRandomCalls) {
  constexpr int64_t kNumBlocks = 37;
  BlockPool pool(kNumBlocks);
  BlockPool twin(kNumBlocks);
  std::map<BlockId, int> counts;
  std::vector<BlockId> references;  // one entry for each reference held
  auto draw = [counter = uint64_t{0}](uint64_t bound) mutable {
    return static_cast<size_t>(RandomWord(3, 0, counter++) % bound);
  };
  for (int round = 0; round < 20000; ++round) {
    switch (draw(3)) {
      case 0: {
        const auto wanted = static_cast<int64_t>(draw(8));
        std::vector<BlockId> blocks;
        std::vector<BlockId> twin_blocks;
        const bool fits = wanted <= kNumBlocks - static_cast<int64_t>(counts.size());
        ASSERT_EQ(pool.Allocate(wanted, blocks), fits);
        ASSERT_EQ(twin.Allocate(wanted, twin_blocks), fits);
        ASSERT_EQ(blocks, twin_blocks) << "equal calls give equal ids";
        ASSERT_EQ(blocks.size(), static_cast<size_t>(fits ? wanted : 0));
        for (const BlockId block : blocks) {
          ASSERT_GE(block, 0);
          ASSERT_LT(block, kNumBlocks);
          ASSERT_EQ(counts.count(block), 0u) << "handed out while in use";
          counts[block] = 1;
          references.push_back(block);
        }
        break;
      }
      case 1: {
        if (references.empty()) break;
        const BlockId block = references[draw(references.size())];
        pool.Share(block);
        twin.Share(block);
        ++counts[block];
        references.push_back(block);
        break;
      }
      default: {
        std::vector<BlockId> released;
        for (size_t count = draw(6); count > 0 && !references.empty(); --count) {
          std::swap(references[draw(references.size())], references.back());
          const BlockId block = references.back();
          references.pop_back();
          released.push_back(block);
          if (--counts[block] == 0) counts.erase(block);
        }
        const BlockPool::Reuse reuse = draw(2) == 0 ? kNext : kLast;
        for (const BlockId block : released) {
          pool.Release(block, reuse);
          twin.Release(block, reuse);
        }
      }
    }
    ASSERT_EQ(pool.num_used(), static_cast<int64_t>(counts.size()));
    ASSERT_EQ(pool.num_free() + pool.num_used(), kNumBlocks);
    const auto probe = static_cast<BlockId>(draw(kNumBlocks));
    const auto entry = counts.find(probe);
    ASSERT_EQ(pool.reference_count(probe), entry == counts.end() ? 0 : entry->second);
  }
}

TEST(BlockPoolDeathTest, RefusesMisuse) {
  BlockPool pool(2);
  std::vector<BlockId> blocks;
  EXPECT_DEATH(pool.Share(2), "check failed");
  EXPECT_DEATH(pool.Release(1, kLast), "check failed");
  EXPECT_DEATH(pool.Release(2, kLast), "check failed");
  EXPECT_DEATH(pool.reference_count(-1), "check failed");
  EXPECT_DEATH(pool.Allocate(-1, blocks), "check failed");
}

}  // namespace
}  // namespace ultrasketch
