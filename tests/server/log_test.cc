#include "server/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kTime = absl::FromUnixMillis(1'772'366'400'123);
constexpr char kStart[] = "time=2026-03-01T12:00:00.123Z level=info ";

std::string Text(const std::vector<LogField>& fields) {
  const std::string line = FormatLogLine(LogFormat::kText, kTime, LogLevel::kInfo, "e", fields);
  EXPECT_EQ(line.substr(0, sizeof(kStart) - 1), kStart);
  return line.substr(sizeof(kStart) - 1);
}

std::string Json(const std::vector<LogField>& fields) {
  return FormatLogLine(LogFormat::kJson, kTime, LogLevel::kWarning, "e", fields);
}

TEST(LogTest, LosesLinesInsteadOfWaitingForAReaderThatHasStopped) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  ASSERT_EQ(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
  const std::string page(4096, 'x');
  int num_pages = 0;
  while (write(ends[1], page.data(), page.size()) == static_cast<ssize_t>(page.size())) ++num_pages;
  ASSERT_EQ(fcntl(ends[1], F_SETFL, 0), 0);
  const int standard_error = dup(STDERR_FILENO);
  ASSERT_GE(dup2(ends[1], STDERR_FILENO), 0);

  for (int i = 0; i < 3; ++i) LogEvent(LogLevel::kInfo, "lost");
  std::string text(page.size(), ' ');
  for (int i = 0; i < num_pages; ++i) {
    EXPECT_EQ(read(ends[0], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  LogEvent(LogLevel::kInfo, "read");
  text.resize(static_cast<size_t>(std::max<ssize_t>(0, read(ends[0], text.data(), text.size()))));

  dup2(standard_error, STDERR_FILENO);
  for (const int descriptor : {standard_error, ends[0], ends[1]}) close(descriptor);
  EXPECT_THAT(text, AllOf(HasSubstr("event=log_lost lines=3\n"), HasSubstr("event=read\n"),
                          Not(HasSubstr("event=lost"))));
}

TEST(LogTest, PlainValuesStandAlone) {
  EXPECT_EQ(Text({{"model", "small"}, {"path", "/a/b-c_d.e:1"}, {"count", LogNumber(7)}}),
            "event=e model=small path=/a/b-c_d.e:1 count=7");
}

TEST(LogTest, EverythingElseIsQuotedAndEscaped) {
  EXPECT_EQ(Text({{"a", "two words"}, {"b", ""}, {"c", "x=y"}}),
            "event=e a=\"two words\" b=\"\" c=\"x=y\"");
}

TEST(LogTest, AnEventIsOneLine) {
  const std::string value =
      "one\ntwo\r\x01\xFF"
      "three";
  for (const char c : Text({{"a", value}})) {
    EXPECT_TRUE(c >= ' ' && c <= '~') << static_cast<int>(c);
  }
  EXPECT_EQ(Json({{"a", value}}).find('\n'), std::string::npos);
}

TEST(LogTest, LongValuesAreCut) {
  EXPECT_LT(Text({{"a", std::string(1'000'000, 'x')}}).size(), 2000u);
  std::string text;
  while (text.size() < 2000) text += "\u00e9";
  const auto json = nlohmann::json::parse(Json({{"a", "x" + text}}));
  const std::string cut = json["a"];
  EXPECT_LT(cut.size(), 1100u);
  EXPECT_THAT(cut, EndsWith("\u00e9..."));
}

TEST(LogTest, JsonHasStringsAndNumbers) {
  EXPECT_EQ(Json({{"model", "7"}, {"count", LogNumber(7)}, {"seconds", LogNumber("0.125")}}),
            R"({"ts":"2026-03-01T12:00:00.123Z","level":"warning","event":"e","model":"7",)"
            R"("count":7,"seconds":0.125})");
}

TEST(LogTest, JsonIsWellFormedWhateverTheValue) {
  for (const std::string& value :
       {std::string("\"quoted\" \\ \t\n"), std::string("\xFF\xFE"), std::string("\0x", 2)}) {
    EXPECT_TRUE(nlohmann::json::accept(Json({{"a", value}})));
  }
  EXPECT_EQ(nlohmann::json::parse(Json({{"a", "d\u00e9j\u00e0 \"vu\"\n"}}))["a"],
            "d\u00e9j\u00e0 \"vu\"\n");
}

}  // namespace
}  // namespace ultrasketch
