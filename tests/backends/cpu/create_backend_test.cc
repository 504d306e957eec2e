#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/backends/backend.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(CreateBackendTest, MakesTheCpuBackend) {
  const auto backend = CreateBackend("cpu", {.num_threads = 3});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->name(), "cpu");
  EXPECT_THAT((*backend)->description(), HasSubstr("3 threads"));
  EXPECT_EQ((*backend)->activation_bytes(), 4);
  EXPECT_EQ((*backend)->cache_block_granularity(), 16);
  EXPECT_THAT((*CreateBackend("cpu", {.num_threads = 1}))->description(), HasSubstr("1 thread"));
}

TEST(CreateBackendTest, TakesTheFirstCudaDeviceOrElseTheCpu) {
  const auto cuda = CreateBackend("cuda", {});
  const auto backend = CreateBackend("auto", {});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->name(), cuda.ok() ? "cuda:0" : "cpu");
}

TEST(CreateBackendTest, SaysThatACudaDeviceIsNotThere) {
  const absl::Status status = CreateBackend("cuda:4096", {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("\"cuda:4096\""), HasSubstr("no CUDA device 4096: ")));
}

TEST(CreateBackendTest, RefusesOtherNames) {
  for (const char* device : {"", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:1x",
                             "cuda0", "cuda:99999999999"}) {
    const absl::Status status = CreateBackend(device, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << device;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(std::string("\"") + device + "\""), HasSubstr("cuda:N")));
  }
}

TEST(CpuBackendTest, SaysHowMuchMemoryThereIsNot) {
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  ASSERT_TRUE(backend.ok());
  const absl::Status status = (*backend)->Allocate(int64_t{1} << 60).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("1152921504606846976 bytes"), HasSubstr("available")));
}

TEST(CpuBackendTest, DiscardsBlocksInEveryLayerAndNoOthers) {
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  ASSERT_TRUE(backend.ok());
  // Blocks of three kilobytes, which share pages.
  KvCacheLayout layout = {.num_layers = 3, .num_kv_heads = 3, .head_dim = 8};
  layout.num_blocks = 40;
  layout.token_bytes = 64;
  auto cache = (*backend)->Allocate(layout.total_bytes());
  ASSERT_TRUE(cache.ok());
  auto* const bytes = static_cast<uint8_t*>((*cache)->data());
  std::memset(bytes, 7, static_cast<size_t>(layout.total_bytes()));
  const int64_t before = (*cache)->resident_bytes();
  std::vector<BlockId> discarded = {0, 1, 5, 39};
  for (BlockId block = 10; block < 30; ++block) discarded.insert(discarded.end() - 1, block);
  (*backend)->DiscardBlocks(layout, discarded, **cache);
  EXPECT_LT((*cache)->resident_bytes(), before * 2 / 3);
  const int64_t block_bytes = layout.layer_bytes() / layout.num_blocks;
  for (int64_t i = 0; i < layout.total_bytes(); ++i) {
    const auto block = static_cast<BlockId>(i % layout.layer_bytes() / block_bytes);
    if (std::find(discarded.begin(), discarded.end(), block) != discarded.end()) continue;
    ASSERT_EQ(bytes[i], 7) << "byte " << i << ", block " << block;
  }
  std::vector<BlockId> all(static_cast<size_t>(layout.num_blocks));
  std::iota(all.begin(), all.end(), 0);
  (*backend)->DiscardBlocks(layout, all, **cache);
  EXPECT_LE((*cache)->resident_bytes(), 2 * 3 * 4096);  // the borders between layers
}

TEST(CpuBackendTest, TellsWhatTheProcessHasResident) {
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  ASSERT_TRUE(backend.ok());
  const int64_t before = (*backend)->used_bytes();
  EXPECT_GT(before, 1 << 20);
  constexpr int64_t kBytes = int64_t{64} << 20;
  const auto buffer = (*backend)->Allocate(kBytes);
  ASSERT_TRUE(buffer.ok());
  EXPECT_LT((*backend)->used_bytes(), before + kBytes / 2);  // pages come with use
  std::memset((*buffer)->data(), 1, kBytes);
  EXPECT_GE((*backend)->used_bytes(), before + kBytes / 2);
}

TEST(CpuBackendTest, AllocatesNothingToo) {
  const auto backend = CreateBackend("cpu", {.num_threads = 1});
  ASSERT_TRUE(backend.ok());
  const auto buffer = (*backend)->Allocate(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ((*buffer)->num_bytes(), 0);
}

}  // namespace
}  // namespace ultrasketch
