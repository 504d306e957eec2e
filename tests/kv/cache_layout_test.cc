#include "engine/kv/cache_layout.h"

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

TEST(KvCacheLayoutTest, RoundsTokensUpToBlocks) {
  KvCacheLayout layout;
  layout.block_size = 16;
  EXPECT_EQ(layout.BlocksForTokens(0), 0);
  EXPECT_EQ(layout.BlocksForTokens(1), 1);
  EXPECT_EQ(layout.BlocksForTokens(16), 1);
  EXPECT_EQ(layout.BlocksForTokens(17), 2);
  EXPECT_EQ(layout.BlocksForTokens((int64_t{1} << 40) + 1), (int64_t{1} << 36) + 1);
}

TEST(KvCacheLayoutTest, CountsKeysAndValuesOfAllLayers) {
  KvCacheLayout layout;
  layout.num_layers = 3;
  layout.num_kv_heads = 2;
  layout.head_dim = 10;
  layout.block_size = 32;
  layout.num_blocks = 7;
  layout.token_bytes = 80;
  EXPECT_EQ(layout.layer_bytes(), 7 * 2 * 32 * 80);
  EXPECT_EQ(layout.block_bytes(), 3 * 2 * 32 * 80);
  EXPECT_EQ(layout.total_bytes(), 7 * layout.block_bytes());
}

TEST(KvCacheLayoutTest, CountsMoreThan32BitsOfBytes) {
  KvCacheLayout layout;
  layout.num_layers = 128;
  layout.num_kv_heads = 128;
  layout.head_dim = 256;
  layout.block_size = 64;
  layout.num_blocks = 1 << 20;
  layout.token_bytes = 2 * 256 * 4;
  EXPECT_EQ(layout.block_bytes(), int64_t{1} << 31);
  EXPECT_EQ(layout.total_bytes(), int64_t{1} << 51);
}

}  // namespace
}  // namespace ultrasketch
