#include "engine/bench/load/load_page.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/report/markup.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

LoadSummary SummaryOf(int64_t concurrency, bool with_error = false) {
  RunRecord record;
  record.plan.concurrency = concurrency;
  for (int i = 0; i < 10; ++i) {
    LoadRecord request;
    request.intended_seconds = request.sent_seconds = 0.1 * i;
    request.AddTokens(0.1 * i + 0.05, 1);
    request.AddTokens(0.1 * i + 0.09, 2);
    request.end_seconds = 0.1 * i + 0.1;
    record.requests.push_back(request);
  }
  if (with_error) {
    record.requests.back().code = absl::StatusCode::kResourceExhausted;
    record.requests.back().reason = "QUEUE_FULL";
    record.requests.back().message = "<b>full & more</b>";
  }
  return SummarizeRun(record, {});
}

void ExpectPage(const std::string& html) {
  EXPECT_EQ(MarkupProblem(html), "");
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf<")));
}

TEST(LoadPageTest, ARunHasItsFiguresAndPlots) {
  const std::string html = LoadHtml("small & large", "on cpu", {SummaryOf(4)});
  ExpectPage(html);
  EXPECT_THAT(html, HasSubstr("<h1>small &amp; large</h1>"));
  EXPECT_THAT(html, HasSubstr("closed loop, 4 in flight"));
  for (const char* part : {"Time to first token", "Between tokens", "End to end",
                           "Throughput along the run", "Running requests", "All runs"}) {
    EXPECT_THAT(html, HasSubstr(part));
  }
  EXPECT_THAT(html, Not(HasSubstr("Errors along the run")));
}

TEST(LoadPageTest, ErrorsAreShownAndEscaped) {
  const std::string html = LoadHtml("small", "on cpu", {SummaryOf(4, /*with_error=*/true)});
  ExpectPage(html);
  EXPECT_THAT(html, HasSubstr("1 times RESOURCE_EXHAUSTED QUEUE_FULL: &lt;b&gt;full &amp; more"));
  EXPECT_THAT(html, HasSubstr("Errors along the run"));
}

TEST(LoadPageTest, RunsAreCompared) {
  std::vector<LoadSummary> runs;
  for (int64_t concurrency = 1; concurrency <= 9; ++concurrency)
    runs.push_back(SummaryOf(concurrency));
  const std::string html = LoadHtml("small", "on cpu", runs);
  ExpectPage(html);
  EXPECT_THAT(html, HasSubstr("Time to first token against throughput"));
  for (const LoadSummary& run : runs) {
    EXPECT_THAT(html, HasSubstr("<tr><th>" + NameLoad(run.plan) + "</th>"));
  }
}

TEST(LoadPageTest, AnEmptyRunIsAPageToo) { ExpectPage(LoadHtml("small", "", {LoadSummary()})); }

}  // namespace
}  // namespace ultrasketch
