#include "engine/base/cpu_quota.h"

#include <filesystem>
#include <string>

#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

class CpuQuotaTest : public ::testing::Test {
 protected:
  std::optional<int> QuotaOf(const std::string& membership) {
    return CpuQuota(folder_.Write("membership", membership), folder_.path());
  }
  void WriteGroup(const std::string& group, const std::string& file, const std::string& text) {
    std::filesystem::create_directories(folder_.File(group));
    folder_.Write(group + "/" + file, text);
  }
  const TemporaryFolder folder_;
};

TEST_F(CpuQuotaTest, ReadsVersion2RoundedUp) {
  WriteGroup(".", "cpu.max", "200000 100000\n");
  EXPECT_EQ(QuotaOf("0::/\n"), 2);
  WriteGroup(".", "cpu.max", "150000 100000\n");
  EXPECT_EQ(QuotaOf("0::/\n"), 2);
  WriteGroup(".", "cpu.max", "1000 100000\n");
  EXPECT_EQ(QuotaOf("0::/\n"), 1);
}

TEST_F(CpuQuotaTest, TakesTheLeastOfTheGroupsAbove) {
  WriteGroup("a/b/c", "cpu.max", "max 100000\n");
  WriteGroup("a/b", "cpu.max", "300000 100000\n");
  WriteGroup("a", "cpu.max", "800000 100000\n");
  EXPECT_EQ(QuotaOf("0::/a/b/c\n"), 3);
  EXPECT_EQ(QuotaOf("0::/a\n"), 8);
  EXPECT_EQ(QuotaOf("0::/elsewhere/a\n"), std::nullopt);
}

TEST_F(CpuQuotaTest, ReadsVersion1) {
  WriteGroup("cpu/pod", "cpu.cfs_quota_us", "400000\n");
  WriteGroup("cpu/pod", "cpu.cfs_period_us", "100000\n");
  WriteGroup("cpu", "cpu.cfs_quota_us", "-1\n");
  WriteGroup("cpu", "cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(QuotaOf("5:memory:/pod\n4:cpu,cpuacct:/pod\n"), 4);
  EXPECT_EQ(QuotaOf("4:cpuacct,cpu:/\n"), std::nullopt);
  EXPECT_EQ(QuotaOf("4:cpuset:/pod\n"), std::nullopt);
}

TEST_F(CpuQuotaTest, NoReadableLimitIsNoLimit) {
  EXPECT_EQ(QuotaOf(""), std::nullopt);
  EXPECT_EQ(QuotaOf("nonsense\n::\n0::\n"), std::nullopt);
  EXPECT_EQ(CpuQuota(folder_.File("none"), folder_.path()), std::nullopt);
  for (const char* text :
       {"max 100000\n", "", "0 100000", "100000 0", "-1 -1", "x y", "99999999999999999999999 1"}) {
    WriteGroup(".", "cpu.max", text);
    const auto quota = QuotaOf("0::/../../x\n");
    EXPECT_TRUE(!quota.has_value() || *quota > 0) << text;
  }
}

}  // namespace
}  // namespace ultrasketch
