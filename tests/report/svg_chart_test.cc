#include "engine/report/svg_chart.h"

#include <cmath>
#include <regex>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/report/markup.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// No coordinate is NaN, infinite or far outside of the view box.
void ExpectDrawable(const std::string& svg) {
  EXPECT_EQ(MarkupProblem(svg), "") << svg;
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  const std::regex coordinate(" (?:x|y|x1|x2|y1|y2|width|height)=\"(-?[0-9.]+)\"");
  for (std::sregex_iterator at(svg.begin(), svg.end(), coordinate), end; at != end; ++at) {
    const double value = std::stod((*at)[1]);
    EXPECT_GE(value, 0) << at->str();
    EXPECT_LE(value, 960) << at->str();
  }
}

TEST(LineChartTest, DrawsALineAndAMarkerForEveryPoint) {
  LineChart chart = {"errors", "layer", "error", {}};
  chart.series = {{"one", {{0, 0.1}, {1, 0.4}, {2, 0.9}}}, {"two", {{0, 0.2}, {2, 0.3}}}};
  const std::string svg = RenderSvg(chart);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "<title>one, "), 3u);
  EXPECT_EQ(Count(svg, "<title>two, "), 2u);
  EXPECT_THAT(svg, HasSubstr("<title>one, layer 1: 0.400</title>"));
  EXPECT_THAT(svg, HasSubstr("aria-label=\"errors\""));
  EXPECT_THAT(svg, HasSubstr(">layer</text>"));
  EXPECT_THAT(svg, HasSubstr(">error</text>"));
  EXPECT_THAT(svg, HasSubstr(">two</text>"));
}

TEST(LineChartTest, ALogarithmicAxisSpacesPowersEvenly) {
  LineChart chart = {"latency", "ms", "%", {}};
  chart.x_scale = XScale::kLogarithmic;
  chart.series = {{"one", {{0, 50}, {1, 1}, {10, 2}, {100, 3}}}};
  const std::string svg = RenderSvg(chart);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "<title>one, "), 3u);  // not the one at 0
  EXPECT_THAT(svg, HasSubstr(">10</text>"));
  const std::regex path("<path d=\"M([0-9.]+) [0-9.]+L([0-9.]+) [0-9.]+L([0-9.]+) ");
  std::smatch match;
  ASSERT_TRUE(std::regex_search(svg, match, path)) << svg;
  EXPECT_NEAR(std::stod(match[2]) - std::stod(match[1]), std::stod(match[3]) - std::stod(match[2]),
              0.02);
  chart.series = {{"one", {{7, 1}}}};
  ExpectDrawable(RenderSvg(chart));
  chart.series = {{"one", {{0, 1}}}};
  ExpectDrawable(RenderSvg(chart));
}

TEST(LineChartTest, MarkersCanBeLeftOut) {
  LineChart chart = {"running", "seconds", "requests", {}};
  chart.x_scale = XScale::kLinear;
  chart.has_markers = false;
  chart.series = {{"one", {{0.05, 1}, {0.15, 2}}}, {"two", {{0.05, 2}, {0.15, 1}}}};
  const std::string svg = RenderSvg(chart);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "<title>"), 0u);
  EXPECT_THAT(svg, HasSubstr(">two</text>"));
  EXPECT_THAT(svg, HasSubstr(">0.10</text>"));
}

TEST(LineChartTest, InterruptsTheLineWhereThereIsNoValue) {
  LineChart chart = {"errors", "layer", "error", {}};
  chart.series = {{"one", {{0, 1}, {1, 2}, {2, std::nan("")}, {3, 2}, {4, INFINITY}, {5, 1}}}};
  const std::string svg = RenderSvg(chart);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "<title>one, "), 4u);
  const size_t line = svg.find("class=\"line0\"");
  const size_t path = svg.rfind("d=\"", line);
  EXPECT_EQ(Count(svg.substr(path, line - path), "M"), 3u);
}

TEST(LineChartTest, DrawsWhatThereIsOfDegenerateData) {
  ExpectDrawable(RenderSvg(LineChart{"none", "x", "y", {}}));
  ExpectDrawable(RenderSvg(LineChart{"none", "x", "y", {{"empty", {}}}}));
  ExpectDrawable(RenderSvg(LineChart{"none", "x", "y", {{"one point", {{3, 7}}}}}));
  ExpectDrawable(RenderSvg(LineChart{"none", "x", "y", {{"zeros", {{0, 0}, {1, 0}}}}}));
  ExpectDrawable(RenderSvg(LineChart{"none", "x", "y", {{"one", {{0, std::nan("")}}}}}));
}

TEST(StackedBarChartTest, StacksTheSeries) {
  StackedBarChart chart = {"shares", "layer", "%", {"0", "1"}, {"a", "b"}, {{10, 20}, {30, 0}}};
  const std::string svg = RenderSvg(chart);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "class=\"part fill0\""), 2u);
  EXPECT_EQ(Count(svg, "class=\"part fill1\""), 2u);
  EXPECT_THAT(svg, HasSubstr("<title>b, layer 0: 30.0</title>"));
  // The axis reaches 40, in 240 units: 10 is 60 high and 30 is 180.
  EXPECT_EQ(Count(svg, "height=\"60\" class=\"part fill0\""), 1u);
  EXPECT_EQ(Count(svg, "height=\"180\" class=\"part fill1\""), 1u);
}

TEST(StackedBarChartTest, DrawsEmptyAndManyCategories) {
  ExpectDrawable(RenderSvg(StackedBarChart{"none", "x", "y", {}, {"a"}, {{}}}));
  StackedBarChart chart = {"many", "layer", "%", {}, {"a"}, {{}}};
  for (int i = 0; i < 126; ++i) {
    chart.categories.push_back(absl::StrCat(i));
    chart.values[0].push_back(i % 7);
  }
  const std::string svg = RenderSvg(chart);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "class=\"part fill0\""), 126u);
  EXPECT_LT(Count(svg, "text-anchor=\"middle\""), 40u);  // labels keep apart
}

TEST(HeatMapTest, DrawsACellForEveryNumber) {
  const HeatMap map = {"bits",     "layer",       "bits per weight",
                       {"0", "1"}, {"in", "out"}, {{0.25, 1}, {std::nan(""), 0.5}}};
  const std::string svg = RenderSvg(map);
  ExpectDrawable(svg);
  EXPECT_EQ(Count(svg, "<title>"), 3u);
  EXPECT_THAT(svg, HasSubstr("<title>in, layer 1: 1.00</title>"));
  EXPECT_THAT(svg, HasSubstr("class=\"on-dark\" text-anchor=\"middle\">0.250<"));
  EXPECT_THAT(svg, HasSubstr("class=\"on-light\" text-anchor=\"middle\">1.00<"));
}

TEST(HeatMapTest, DrawsDegenerateMaps) {
  ExpectDrawable(RenderSvg(HeatMap{"none", "x", "v", {}, {}, {}}));
  ExpectDrawable(RenderSvg(HeatMap{"nothing", "x", "v", {"0"}, {"a"}, {{std::nan("")}}}));
  ExpectDrawable(RenderSvg(HeatMap{"equal", "x", "v", {"0", "1"}, {"a"}, {{2, 2}}}));
}

TEST(EscapeHtmlTest, LeavesNothingThatIsMarkup) {
  EXPECT_EQ(EscapeHtml("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
  EXPECT_EQ(EscapeHtml("caf\xc3\xa9\n"), "caf\xc3\xa9 ");
  EXPECT_EQ(EscapeHtml("\xff<"), "\xef\xbf\xbd&lt;");
}

TEST(ChartStyleSheetTest, HasDarkColors) {
  EXPECT_THAT(ChartStyleSheet(), HasSubstr("prefers-color-scheme:dark"));
}

}  // namespace
}  // namespace ultrasketch
