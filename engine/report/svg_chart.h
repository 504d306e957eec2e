// Charts as SVG to be put into an HTML page. Colours are CSS variables of the page, so that one
// chart serves light and dark: ChartStyleSheet() defines them.
#ifndef ULTRASKETCH_ENGINE_REPORT_SVG_CHART_H_
#define ULTRASKETCH_ENGINE_REPORT_SVG_CHART_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ultrasketch {

// Series beyond this number repeat colours (of Okabe and Ito's palette, which people with any kind
// of colour vision can tell apart) and markers.
inline constexpr int kNumSeriesColors = 5;

struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x, y; not drawn where y is not finite
};

enum class XScale : uint8_t {
  kWhole,  // linear, ticks at whole numbers
  kLinear,
  kLogarithmic,  // points whose x is not above 0 are not drawn
};

// Lines; the axis of y is linear and from zero.
struct LineChart {
  std::string description;  // for readers who do not see it
  std::string x_label;
  std::string y_label;
  std::vector<ChartSeries> series;
  XScale x_scale = XScale::kWhole;
  bool has_markers = true;  // at every point, with its values
};
std::string RenderSvg(const LineChart& chart);

// A bar for each category, cut into one part for each series, the first at the bottom.
struct StackedBarChart {
  std::string description;
  std::string x_label;
  std::string y_label;
  std::vector<std::string> categories;
  std::vector<std::string> series;
  std::vector<std::vector<double>> values;  // [series][category], not negative
};
std::string RenderSvg(const StackedBarChart& chart);

// A grid of values as colours, the numbers in the cells where they fit.
struct HeatMap {
  std::string description;
  std::string x_label;
  std::string value_label;
  std::vector<std::string> columns;
  std::vector<std::string> rows;
  std::vector<std::vector<double>> values;  // [row][column]; left blank where not finite
};
std::string RenderSvg(const HeatMap& map);

// CSS for the charts: colours for light and dark (prefers-color-scheme) and for print, type sizes.
std::string ChartStyleSheet();

// `text` for HTML and SVG, in content and in double-quoted attributes. Bytes that are not UTF-8 get
// U+FFFD in their place, control characters a space.
std::string EscapeHtml(std::string_view text);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_REPORT_SVG_CHART_H_
