#include "engine/kv/cache_type.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

TEST(KvCacheTypeTest, IsFoundByItsName) {
  EXPECT_EQ(KvCacheTypeNames(), (std::vector<std::string>{"fp16", "int8", "int4", "fp32"}));
  for (const KvCacheType type : kKvCacheTypes) {
    EXPECT_EQ(FindKvCacheType(KvCacheTypeName(type)), type);
  }
  for (const char* other : {"", "float", "FP16", "fp16 ", "int"}) {
    EXPECT_FALSE(FindKvCacheType(other).has_value()) << other;
  }
}

}  // namespace
}  // namespace ultrasketch
