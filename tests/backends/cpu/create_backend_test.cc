#include <cstring>
#include <string>

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
