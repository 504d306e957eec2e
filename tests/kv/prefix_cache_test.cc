#include "engine/kv/prefix_cache.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/random.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Letters as tokens.
std::vector<int32_t> Tokens(const std::string& text) { return {text.begin(), text.end()}; }

// Allocates and registers blocks for the whole blocks of two letters of `text`, as a sequence would
// that found nothing.
std::vector<BlockId> Compute(PrefixCache& cache, const std::string& text) {
  std::vector<BlockId> blocks;
  EXPECT_TRUE(cache.Allocate(static_cast<int64_t>(text.size() / 2), blocks));
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] =
        cache.Register(i == 0 ? kNoBlock : blocks[i - 1], Tokens(text.substr(2 * i, 2)), blocks[i]);
  }
  return blocks;
}

std::vector<BlockId> Find(const PrefixCache& cache, const std::string& text) {
  return cache.Find(Tokens(text), 100);
}

TEST(PrefixCacheTest, FindsNothingAtFirst) {
  const PrefixCache cache(4, 2, true);
  EXPECT_THAT(Find(cache, "abcd"), IsEmpty());
  EXPECT_EQ(cache.num_cached(), 0);
}

TEST(PrefixCacheTest, FindsTheLongestCommonBeginning) {
  PrefixCache cache(4, 2, true);
  const std::vector<BlockId> blocks = Compute(cache, "abcdef");
  EXPECT_THAT(Find(cache, "abcdef"), ElementsAre(blocks[0], blocks[1], blocks[2]));
  EXPECT_THAT(Find(cache, "abcdexyz"), ElementsAre(blocks[0], blocks[1]));
  EXPECT_THAT(Find(cache, "abc"), ElementsAre(blocks[0]));  // whole blocks alone
  EXPECT_THAT(Find(cache, "a"), IsEmpty());
  EXPECT_THAT(Find(cache, "cdef"), IsEmpty());  // not a beginning
  EXPECT_THAT(Find(cache, "abxxef"), ElementsAre(blocks[0]));
  EXPECT_THAT(cache.Find(Tokens("abcdef"), 2), SizeIs(2));
}

TEST(PrefixCacheTest, KeepsEqualBlocksApartByWhatIsBeforeThem) {
  PrefixCache cache(4, 2, true);
  const std::vector<BlockId> first = Compute(cache, "abxx");
  const std::vector<BlockId> second = Compute(cache, "cdxx");
  EXPECT_THAT(Find(cache, "abxx"), ElementsAre(first[0], first[1]));
  EXPECT_THAT(Find(cache, "cdxx"), ElementsAre(second[0], second[1]));
  EXPECT_NE(first[1], second[1]);
}

TEST(PrefixCacheTest, BlocksThatNobodyUsesKeepTheirContentsAndAreFree) {
  PrefixCache cache(4, 2, true);
  const std::vector<BlockId> blocks = Compute(cache, "abcd");
  cache.Release(blocks);
  EXPECT_EQ(cache.pool().num_used(), 0);
  EXPECT_EQ(cache.num_cached(), 2);
  const std::vector<BlockId> found = Find(cache, "abcd");
  EXPECT_EQ(found, blocks);
  cache.Share(found);
  EXPECT_EQ(cache.pool().num_used(), 2);
  EXPECT_EQ(cache.num_cached(), 0);
  cache.Share(found);
  cache.Release(found);
  EXPECT_EQ(cache.pool().num_used(), 2);
  cache.Release(found);
  EXPECT_EQ(cache.pool().num_used(), 0);
}

TEST(PrefixCacheTest, HandsOutBlocksWithoutContentsFirst) {
  PrefixCache cache(4, 2, true);
  cache.Release(Compute(cache, "abcd"));
  std::vector<BlockId> blocks;
  ASSERT_TRUE(cache.Allocate(2, blocks));
  EXPECT_THAT(Find(cache, "abcd"), SizeIs(2));
  cache.Release(blocks);  // without contents, though released last
  blocks.clear();
  ASSERT_TRUE(cache.Allocate(2, blocks));
  EXPECT_THAT(Find(cache, "abcd"), SizeIs(2));
}

TEST(PrefixCacheTest, GivesUpTheEndOfWhatWasUsedLongestAgo) {
  PrefixCache cache(6, 2, true);
  cache.Release(Compute(cache, "abcdef"));
  cache.Release(Compute(cache, "uvwxyz"));
  const std::vector<BlockId> used_again = Find(cache, "abcd");
  cache.Share(used_again);
  cache.Release(used_again);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(cache.Allocate(1, blocks));
  EXPECT_THAT(Find(cache, "abcdef"), SizeIs(2));
  EXPECT_THAT(Find(cache, "uvwxyz"), SizeIs(3));
  ASSERT_TRUE(cache.Allocate(2, blocks));
  EXPECT_THAT(Find(cache, "uvwxyz"), SizeIs(1));
  ASSERT_TRUE(cache.Allocate(1, blocks));
  EXPECT_THAT(Find(cache, "uvwxyz"), IsEmpty());
  EXPECT_THAT(Find(cache, "abcdef"), SizeIs(2));
  ASSERT_TRUE(cache.Allocate(1, blocks));
  EXPECT_THAT(Find(cache, "abcdef"), SizeIs(1));
  EXPECT_FALSE(cache.Allocate(2, blocks));
  EXPECT_THAT(Find(cache, "abcdef"), SizeIs(1));
}

TEST(PrefixCacheTest, WhatWasComputedTwiceIsHeldOnce) {
  PrefixCache cache(6, 2, true);
  const std::vector<BlockId> first = Compute(cache, "abcd");
  const std::vector<BlockId> second = Compute(cache, "abcdef");
  EXPECT_EQ(second[0], first[0]);
  EXPECT_EQ(second[1], first[1]);
  EXPECT_EQ(cache.pool().reference_count(first[0]), 2);
  EXPECT_EQ(cache.pool().num_used(), 3);
  EXPECT_EQ(cache.num_cached(), 0);
  cache.Release(first);
  EXPECT_EQ(cache.pool().num_used(), 3);
  EXPECT_THAT(Find(cache, "abcdef"), SizeIs(3));
}

TEST(PrefixCacheTest, GivesUpWhatWasNotUsedForATime) {
  PrefixCache cache(8, 2, true);
  const std::vector<BlockId> often = Compute(cache, "abcd");
  const std::vector<BlockId> once = Compute(cache, "xyzx");
  const std::vector<BlockId> held = Compute(cache, "mn");
  EXPECT_FALSE(cache.has_unused());
  cache.Release(often);
  cache.Release(once);
  EXPECT_TRUE(cache.has_unused());
  EXPECT_THAT(cache.TakeUnused(), IsEmpty());  // released since the call before
  cache.Share(often);
  cache.Release(often);
  EXPECT_EQ(cache.TakeUnused(), once);
  EXPECT_THAT(Find(cache, "xyzx"), IsEmpty());
  EXPECT_EQ(Find(cache, "abcd"), often);
  EXPECT_EQ(cache.num_cached(), 2);
  EXPECT_EQ(cache.TakeUnused(), often);
  EXPECT_FALSE(cache.has_unused());
  EXPECT_THAT(cache.TakeUnused(), IsEmpty());  // each once
  EXPECT_EQ(Find(cache, "mn"), held);
  // All are there to be used again.
  std::vector<BlockId> blocks;
  EXPECT_TRUE(cache.Allocate(7, blocks));
  cache.Release(blocks);
  EXPECT_THAT(cache.TakeUnused(), IsEmpty());
  EXPECT_THAT(cache.TakeUnused(), SizeIs(7));
}

TEST(PrefixCacheTest, GivesUpUnusedBlocksOfNoContents) {
  PrefixCache cache(4, 2, false);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(cache.Allocate(3, blocks));
  cache.Release(blocks);
  EXPECT_THAT(cache.TakeUnused(), IsEmpty());
  EXPECT_EQ(cache.TakeUnused(), blocks);
}

TEST(PrefixCacheTest, FindsNothingWhenSwitchedOff) {
  PrefixCache cache(4, 2, false);
  const std::vector<BlockId> blocks = Compute(cache, "abcd");
  EXPECT_THAT(Find(cache, "abcd"), IsEmpty());
  cache.Release(blocks);
  EXPECT_EQ(cache.num_cached(), 0);
  EXPECT_EQ(cache.pool().num_free(), 4);
}

// Random sequences over an alphabet of two, against a map from each block to the text up to its
// end.
TEST(PrefixCacheTest, BlocksHoldWhatTheyAreFoundForOverRandomCalls) {
  constexpr int64_t kNumBlocks = 23;
  PrefixCache cache(kNumBlocks, 2, true);
  std::map<BlockId, std::string> contents;
  struct Sequence {
    std::string text;
    std::vector<BlockId> blocks;
  };
  std::vector<Sequence> sequences;
  auto draw = [counter = uint64_t{0}](uint64_t bound) mutable {
    return static_cast<size_t>(RandomWord(5, 0, counter++) % bound);
  };
  size_t num_hits = 0;
  for (int round = 0; round < 5000; ++round) {
    if (sequences.empty() || draw(2) == 0) {
      Sequence sequence;
      for (size_t i = 2 * draw(8); i > 0; --i) sequence.text += draw(4) == 0 ? 'b' : 'a';
      sequence.blocks = Find(cache, sequence.text);
      const size_t num_found = sequence.blocks.size();
      for (size_t i = 0; i < num_found; ++i) {
        ASSERT_EQ(contents[sequence.blocks[i]], sequence.text.substr(0, 2 * (i + 1)));
      }
      num_hits += num_found;
      cache.Share(sequence.blocks);
      if (!cache.Allocate(static_cast<int64_t>(sequence.text.size() / 2 - num_found),
                          sequence.blocks)) {
        cache.Release(sequence.blocks);
        continue;
      }
      for (size_t i = num_found; i < sequence.blocks.size(); ++i) {
        sequence.blocks[i] =
            cache.Register(i == 0 ? kNoBlock : sequence.blocks[i - 1],
                           Tokens(sequence.text.substr(2 * i, 2)), sequence.blocks[i]);
        contents[sequence.blocks[i]] = sequence.text.substr(0, 2 * (i + 1));
      }
      sequences.push_back(std::move(sequence));
    } else {
      std::swap(sequences[draw(sequences.size())], sequences.back());
      cache.Release(sequences.back().blocks);
      sequences.pop_back();
    }
    std::map<BlockId, int32_t> counts;
    for (const Sequence& sequence : sequences) {
      for (const BlockId block : sequence.blocks) ++counts[block];
      // What is in use is found.
      ASSERT_EQ(Find(cache, sequence.text), sequence.blocks);
    }
    ASSERT_EQ(cache.pool().num_used(), static_cast<int64_t>(counts.size()));
    for (BlockId block = 0; block < kNumBlocks; ++block) {
      ASSERT_EQ(cache.pool().reference_count(block), counts[block]);
    }
    ASSERT_LE(cache.num_cached(), cache.pool().num_free());
  }
  EXPECT_GT(num_hits, 1000u);
}

TEST(PrefixCacheDeathTest, RefusesMisuse) {
  PrefixCache cache(4, 2, true);
  std::vector<BlockId> blocks;
  ASSERT_TRUE(cache.Allocate(2, blocks));
  EXPECT_DEATH(cache.Register(kNoBlock, Tokens("a"), blocks[0]), "check failed");
  EXPECT_DEATH(cache.Register(blocks[0], Tokens("ab"), blocks[1]), "check failed");
  EXPECT_DEATH(cache.Register(kNoBlock, Tokens("ab"), 3), "check failed");
  EXPECT_DEATH(cache.Share({3}), "check failed");
}

}  // namespace
}  // namespace ultrasketch
