#include "server/log.h"

#include <string>

#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

TEST(LogTest, PlainValuesStandAlone) {
  EXPECT_EQ(FormatEvent("model_loaded", {{"model", "small"}, {"path", "/a/b-c_d.e:1"}}),
            "event=model_loaded model=small path=/a/b-c_d.e:1");
}

TEST(LogTest, EverythingElseIsQuotedAndEscaped) {
  EXPECT_EQ(FormatEvent("e", {{"a", "two words"}, {"b", ""}, {"c", "x=y"}}),
            "event=e a=\"two words\" b=\"\" c=\"x=y\"");
}

TEST(LogTest, AnEventIsOneLine) {
  const std::string line = FormatEvent("e", {{"a",
                                              "one\ntwo\r\x01\xFF"
                                              "three"}});
  for (const char c : line) EXPECT_TRUE(c >= ' ' && c <= '~') << static_cast<int>(c);
}

TEST(LogTest, LongValuesAreCut) {
  EXPECT_LT(FormatEvent("e", {{"a", std::string(1'000'000, 'x')}}).size(), 2000u);
}

}  // namespace
}  // namespace ultrasketch
