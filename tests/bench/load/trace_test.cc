#include "engine/bench/load/trace.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(TraceTest, ReadsMooncakesFormat) {
  const auto trace = ParseTrace(
      "{\"timestamp\": 27482, \"input_length\": 1000, \"output_length\": 52, \"hash_ids\": [46, "
      "18446744073709551615]}\n\r\n"
      "{\"timestamp\": 30535.5, \"input_length\": 2.0, \"output_length\": 1, \"other\": null}",
      "t");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ(trace->front().arrival_seconds, 0);
  EXPECT_EQ(trace->front().prompt_tokens, 1000);
  EXPECT_EQ(trace->front().output_tokens, 52);
  EXPECT_THAT(trace->front().hash_ids, ElementsAre(46u, 18446744073709551615u));
  EXPECT_NEAR(trace->back().arrival_seconds, 3.0535, 1e-9);
  EXPECT_EQ(trace->back().prompt_tokens, 2);
  EXPECT_THAT(trace->back().hash_ids, IsEmpty());
}

TEST(TraceTest, WrongLinesAreNamed) {
  const std::string good = R"({"timestamp": 5, "input_length": 1, "output_length": 1})"
                           "\n";
  const struct {
    std::string line;
    std::string part;
  } cases[] = {
      {"[]", "expected an object"},
      {"{", "trace:2"},
      {"\xff", "trace:2"},
      {std::string(1000, '['), "trace:2"},
      {R"({"input_length": 1, "output_length": 1})", "timestamp"},
      {R"({"timestamp": "6", "input_length": 1, "output_length": 1})", "timestamp"},
      {R"({"timestamp": -1, "input_length": 1, "output_length": 1})", "timestamp"},
      {R"({"timestamp": 1e300, "input_length": 1, "output_length": 1})", "timestamp"},
      {R"({"timestamp": 1e999, "input_length": 1, "output_length": 1})", "trace:2"},
      {R"({"timestamp": 4, "input_length": 1, "output_length": 1})", "at least the one before"},
      {R"({"timestamp": 6, "input_length": 0, "output_length": 1})", "input_length"},
      {R"({"timestamp": 6, "input_length": 1.5, "output_length": 1})", "input_length"},
      {R"({"timestamp": 6, "input_length": 1, "output_length": 99999999})", "output_length"},
      {R"({"timestamp": 6, "input_length": 1, "output_length": true})", "output_length"},
      {R"({"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": 3})", "hash_ids"},
      {R"({"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": [-1]})", "hash_ids"},
      {R"({"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": [1, 2]})",
       "at most 1 hash_ids"},
      {R"({"timestamp": 6, "timestamp": 7, "input_length": 1, "output_length": 1})", "timestamp"},
  };
  for (const auto& wrong : cases) {
    const auto trace = ParseTrace(good + wrong.line, "trace");
    EXPECT_TRUE(absl::IsInvalidArgument(trace.status())) << wrong.line;
    EXPECT_THAT(trace.status().message(), AllOf(HasSubstr("trace:2"), HasSubstr(wrong.part)))
        << wrong.line;
  }
}

TEST(TraceTest, AnEmptyTraceIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(ParseTrace("", "t").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ParseTrace("\n \n", "t").status()));
  const TemporaryFolder folder;
  EXPECT_TRUE(absl::IsNotFound(ReadTrace(folder.File("none")).status()));
}

}  // namespace
}  // namespace ultrasketch
