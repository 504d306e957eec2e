#include "engine/base/instruction_set.h"

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

// Sets the variable for a while.
class ScopedInstructionSet {
 public:
  explicit ScopedInstructionSet(const char* value) {
    if (const char* before = std::getenv(kInstructionSetVariable)) before_ = before;
    setenv(kInstructionSetVariable, value, /*overwrite=*/1);
  }
  ~ScopedInstructionSet() { setenv(kInstructionSetVariable, before_.c_str(), /*overwrite=*/1); }

 private:
  std::string before_;
};

TEST(InstructionSetTest, IsTheFirstThatRunsOrTheOneAskedFor) {
  std::string expected;
  for (const char* name : {"avx512", "avx2", "portable"}) {
    if (expected.empty() && HasInstructionSet(name)) expected = name;
  }
  if (const char* wanted = std::getenv(kInstructionSetVariable); wanted != nullptr && *wanted) {
    expected = wanted;
  }
  EXPECT_EQ(InstructionSet(), expected);
  EXPECT_TRUE(HasInstructionSet("portable"));
  EXPECT_FALSE(HasInstructionSet("sse9"));
}

TEST(InstructionSetTest, TheEnvironmentMayAskForOneThatRuns) {
  for (const char* wanted : {"", "portable"}) {
    const ScopedInstructionSet scoped(wanted);
    EXPECT_EQ(CheckInstructionSet(), absl::OkStatus()) << wanted;
  }
}

TEST(InstructionSetTest, SaysWhichOnesTheEnvironmentMayAskFor) {
  const ScopedInstructionSet scoped("sse9");
  const absl::Status status = CheckInstructionSet();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ULTRASKETCH_INSTRUCTION_SET"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("portable)"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("found \"sse9\""));
}

}  // namespace
}  // namespace ultrasketch
