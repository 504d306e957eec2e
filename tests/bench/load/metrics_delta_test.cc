#include "engine/bench/load/metrics_delta.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(MetricsDeltaTest, CountersAreReadAndNothingElse) {
  EXPECT_THAT(ParseCounters("# HELP a_total x\n"
                            "# TYPE a_total counter\n"
                            "a_total 3\r\n"
                            "a_total{x=\"b c} d\",y=\"\"} 1.5e2 1700000000\n"
                            "b_seconds_sum{m=\"n\"} 0.25\n"
                            "b_seconds_bucket{le=\"1\"} 7\n"
                            "b_seconds_count 2\n"
                            "gauge 9\n"
                            "c_total NaN\n"
                            "d_total\n"
                            "e_total x\n"
                            "\n"),
              ElementsAre(Pair("a_total", 3), Pair("a_total{x=\"b c} d\",y=\"\"}", 150),
                          Pair("b_seconds_count", 2), Pair("b_seconds_sum{m=\"n\"}", 0.25)));
  EXPECT_THAT(ParseCounters("<html>"), IsEmpty());
}

TEST(MetricsDeltaTest, OnlyWhatGrewIsThere) {
  EXPECT_THAT(AddedBetween({{"a_total", 3}, {"b_total", 5}, {"c_total", 9}, {"e_total", 1}},
                           {{"a_total", 3}, {"b_total", 7.5}, {"c_total", 1}, {"d_total", 2}}),
              ElementsAre(Pair("b_total", 2.5), Pair("d_total", 2)));
}

}  // namespace
}  // namespace ultrasketch
