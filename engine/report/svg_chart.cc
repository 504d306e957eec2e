#include "engine/report/svg_chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "engine/base/strings.h"
#include "engine/report/chart_scale.h"

namespace ultrasketch {
namespace {

// In the units of the view box, which are pixels where the page is wide enough.
constexpr double kWidth = 960;
constexpr double kLeft = 64;
constexpr double kRight = 16;
constexpr double kPlotHeight = 240;
constexpr double kLegendLineHeight = 24;
constexpr double kTickLabelHeight = 22;
constexpr double kAxisLabelHeight = 22;
// Room that a character of a label takes at most, on average.
constexpr double kCharacterWidth = 7.6;
constexpr double kMarkerRadius = 4;

std::string Number(double value) {
  std::string text = absl::StrFormat("%.2f", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

double TextWidth(std::string_view text) {
  const auto characters = std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  });
  return static_cast<double>(characters) * kCharacterWidth;
}

// The elements of one chart.
class Svg {
 public:
  void Line(double x1, double y1, double x2, double y2, std::string_view css_class) {
    absl::StrAppend(&body_, "<line x1=\"", Number(x1), "\" y1=\"", Number(y1), "\" x2=\"",
                    Number(x2), "\" y2=\"", Number(y2), "\" class=\"", A(css_class), "\"/>\n");
  }

  // `anchor`: "start", "middle" or "end".
  void Text(double x, double y, std::string_view text, std::string_view css_class,
            std::string_view anchor, double degrees = 0) {
    absl::StrAppend(&body_, "<text x=\"", Number(x), "\" y=\"", Number(y), "\" class=\"",
                    A(css_class), "\" text-anchor=\"", A(anchor), "\"");
    if (degrees != 0) {
      absl::StrAppend(&body_, " transform=\"rotate(", Number(degrees), " ", Number(x), " ",
                      Number(y), ")\"");
    }
    absl::StrAppend(&body_, ">", EscapeHtml(text), "</text>\n");
  }

  // `paint`: attributes. `tip` is shown while the pointer rests there.
  void Rect(double x, double y, double width, double height, std::string_view paint,
            std::string_view tip = "") {
    absl::StrAppend(&body_, "<rect x=\"", Number(x), "\" y=\"", Number(y), "\" width=\"",
                    Number(width), "\" height=\"", Number(height), "\" ", A(paint));
    AppendTip(tip, "rect");
  }

  void Path(std::string_view data, std::string_view css_class, std::string_view tip = "") {
    absl::StrAppend(&body_, "<path d=\"", A(data), "\" class=\"", A(css_class), "\"");
    AppendTip(tip, "path");
  }

  // A point of series `series`, whose shape tells it from others where colour does not. `r` is
  // about half of its width.
  void Marker(double x, double y, double r, size_t series, std::string_view tip = "") {
    const auto at = [&](double dx, double dy) {
      return absl::StrCat(Number(x + dx * r), " ", Number(y + dy * r));
    };
    std::string data;
    switch (series % kNumSeriesColors) {
      case 0: {
        const std::string arc = absl::StrCat("A", Number(r), " ", Number(r), " 0 1 0 ");
        data = absl::StrCat("M", at(-1, 0), arc, at(1, 0), arc, at(-1, 0), "Z");
        break;
      }
      case 1:  // square
        data = absl::StrCat("M", at(-1, -1), "L", at(1, -1), "L", at(1, 1), "L", at(-1, 1), "Z");
        break;
      case 2:  // triangle
        data = absl::StrCat("M", at(0, -1.25), "L", at(1.25, 1), "L", at(-1.25, 1), "Z");
        break;
      case 3:  // diamond
        data =
            absl::StrCat("M", at(0, -1.4), "L", at(1.4, 0), "L", at(0, 1.4), "L", at(-1.4, 0), "Z");
        break;
      default:  // triangle on its point
        data = absl::StrCat("M", at(0, 1.25), "L", at(1.25, -1), "L", at(-1.25, -1), "Z");
        break;
    }
    Path(data, absl::StrCat("fill", series % kNumSeriesColors), tip);
  }

  std::string Finish(std::string_view description, double height) const {
    return absl::StrCat("<svg class=\"chart\" viewBox=\"0 0 ", Number(kWidth), " ", Number(height),
                        "\" role=\"img\" aria-label=\"", EscapeHtml(description), "\">\n", body_,
                        "</svg>\n");
  }

 private:
  void AppendTip(std::string_view tip, const char* element) {
    if (tip.empty()) {
      absl::StrAppend(&body_, "/>\n");
    } else {
      absl::StrAppend(&body_, "><title>", EscapeHtml(tip), "</title></", element, ">\n");
    }
  }

  std::string body_;
};

enum class LegendMark : uint8_t { kLine, kLineWithMarker, kArea };

// Names with their marks, above a plot, on as many lines as they need. Returns the height used.
double DrawLegend(Svg& svg, const std::vector<std::string>& names, LegendMark mark) {
  constexpr double kMark = 26;
  constexpr double kGap = 22;
  double x = kLeft;
  double y = kLegendLineHeight / 2;
  for (size_t i = 0; i < names.size(); ++i) {
    const double width = kMark + TextWidth(names[i]) + kGap;
    if (x > kLeft && x + width > kWidth - kRight) {
      x = kLeft;
      y += kLegendLineHeight;
    }
    if (mark != LegendMark::kArea) {
      svg.Line(x, y, x + 20, y, absl::StrCat("line", i % kNumSeriesColors));
      if (mark == LegendMark::kLineWithMarker) svg.Marker(x + 10, y, kMarkerRadius, i);
    } else {
      svg.Rect(x + 4, y - 7, 14, 14, absl::StrCat("class=\"fill", i % kNumSeriesColors, "\""));
    }
    svg.Text(x + kMark, y + 4.5, names[i], "label", "start");
    x += width;
  }
  return names.empty() ? 0 : y + kLegendLineHeight / 2 + 6;
}

// The inside of the axes of a chart.
struct Plot {
  double top;
  double left = kLeft;
  double right = kWidth - kRight;
  double height = kPlotHeight;

  double bottom() const { return top + height; }
  double width() const { return right - left; }
};

void DrawYAxis(Svg& svg, const Plot& plot, const AxisTicks& ticks, std::string_view label) {
  for (const double tick : ticks.Values()) {
    const double y = plot.bottom() - (tick - ticks.low) / (ticks.high - ticks.low) * plot.height;
    svg.Line(plot.left, y, plot.right, y, tick == ticks.low ? "axis" : "grid");
    svg.Text(plot.left - 8, y + 4, TickLabel(tick, ticks.step), "tick", "end");
  }
  svg.Text(14, plot.top + plot.height / 2, label, "label", "middle", -90);
}

void DrawXLabel(Svg& svg, const Plot& plot, std::string_view label) {
  svg.Text((plot.left + plot.right) / 2, plot.bottom() + kTickLabelHeight + 15, label, "label",
           "middle");
}

// Labels below slots of equal width: each where they have room, else every second, fifth, ...
void DrawCategories(Svg& svg, const Plot& plot, const std::vector<std::string>& names) {
  if (names.empty()) return;
  double widest = 0;
  for (const std::string& name : names) widest = std::max(widest, TextWidth(name));
  const double slot = plot.width() / static_cast<double>(names.size());
  const AxisTicks ticks = RoundTicks(0, (widest + 10) / slot, 1, /*whole_numbers=*/true);
  const auto stride = static_cast<size_t>(std::max(1.0, ticks.step));
  for (size_t i = 0; i < names.size(); i += stride) {
    svg.Text(plot.left + (static_cast<double>(i) + 0.5) * slot, plot.bottom() + 18, names[i],
             "tick", "middle");
  }
}

struct Color {
  double red;
  double green;
  double blue;
};

// From dark blue to yellow, evenly in lightness, so that it reads in grey and with any kind of
// colour vision: points of the map "cividis" (Nunez, Anderton and Renslow, 2018).
constexpr std::array<Color, 6> kColorMap = {{{0, 34, 78},
                                             {53, 69, 108},
                                             {102, 105, 112},
                                             {148, 142, 119},
                                             {200, 184, 102},
                                             {254, 232, 56}}};

Color ColorAt(double share) {
  const double position = std::clamp(share, 0.0, 1.0) * (kColorMap.size() - 1);
  const size_t index = std::min(static_cast<size_t>(position), kColorMap.size() - 2);
  const double rest = position - static_cast<double>(index);
  const Color& a = kColorMap[index];
  const Color& b = kColorMap[index + 1];
  return {a.red + (b.red - a.red) * rest, a.green + (b.green - a.green) * rest,
          a.blue + (b.blue - a.blue) * rest};
}

std::string Paint(const Color& color) {
  return absl::StrFormat("fill=\"#%02x%02x%02x\"", static_cast<int>(std::lround(color.red)),
                         static_cast<int>(std::lround(color.green)),
                         static_cast<int>(std::lround(color.blue)));
}

bool IsDark(const Color& color) {
  return 0.299 * color.red + 0.587 * color.green + 0.114 * color.blue < 128;
}

}  // namespace

std::string RenderSvg(const LineChart& chart) {
  const bool is_logarithmic = chart.x_scale == XScale::kLogarithmic;
  const auto is_drawn = [&](double x, double y) {
    return std::isfinite(y) && (!is_logarithmic || x > 0);
  };
  double x_low = std::numeric_limits<double>::infinity();
  double x_high = -x_low;
  double y_high = 0;
  std::vector<std::string> names;
  for (const ChartSeries& series : chart.series) {
    names.push_back(series.name);
    for (const auto& [x, y] : series.points) {
      if (!is_drawn(x, y)) continue;
      x_low = std::min(x_low, x);
      x_high = std::max(x_high, x);
      y_high = std::max(y_high, y);
    }
  }
  Svg svg;
  if (names.size() < 2) names.clear();  // the axis says what it is
  const Plot plot = {
      .top = DrawLegend(svg, names,
                        chart.has_markers ? LegendMark::kLineWithMarker : LegendMark::kLine) +
             8};
  const AxisTicks y_ticks = RoundTicks(0, y_high, 6);
  DrawYAxis(svg, plot, y_ticks, chart.y_label);

  // The range of x is filled, a little room at both ends left for markers.
  const AxisTicks x_ticks = RoundTicks(x_low, x_high, 16, chart.x_scale == XScale::kWhole);
  if (!(x_low < x_high)) {
    x_low = x_ticks.low;
    x_high = x_ticks.high;
  }
  const auto scaled = [&](double x) { return is_logarithmic ? std::log10(x) : x; };
  const auto x_at = [&](double x) {
    return plot.left + 14 +
           (scaled(x) - scaled(x_low)) / (scaled(x_high) - scaled(x_low)) * (plot.width() - 28);
  };
  const auto y_at = [&](double y) {
    return plot.bottom() - (y - y_ticks.low) / (y_ticks.high - y_ticks.low) * plot.height;
  };
  for (const double tick : is_logarithmic ? LogTicks(x_low, x_high, 12) : x_ticks.Values()) {
    if (tick < x_low - 1e-9 || tick > x_high + 1e-9) continue;
    svg.Line(x_at(tick), plot.bottom(), x_at(tick), plot.bottom() + 5, "axis");
    svg.Text(x_at(tick), plot.bottom() + 18,
             is_logarithmic ? absl::StrFormat("%g", tick) : TickLabel(tick, x_ticks.step), "tick",
             "middle");
  }
  DrawXLabel(svg, plot, chart.x_label);

  for (size_t i = 0; i < chart.series.size(); ++i) {
    std::string path;
    bool pen_down = false;
    for (const auto& [x, y] : chart.series[i].points) {
      if (!is_drawn(x, y)) {
        pen_down = false;
        continue;
      }
      absl::StrAppend(&path, pen_down ? "L" : "M", Number(x_at(x)), " ", Number(y_at(y)));
      pen_down = true;
    }
    if (!path.empty()) svg.Path(path, absl::StrCat("line", i % kNumSeriesColors));
  }
  if (!chart.has_markers) {
    return svg.Finish(chart.description, plot.bottom() + kTickLabelHeight + kAxisLabelHeight);
  }
  size_t most_points = 1;
  for (const ChartSeries& series : chart.series) {
    most_points = std::max(most_points, series.points.size());
  }
  // So that neighbours do not touch.
  const double radius =
      std::clamp(plot.width() / static_cast<double>(most_points) / 4, 1.5, kMarkerRadius);
  for (size_t i = 0; i < chart.series.size(); ++i) {
    for (const auto& [x, y] : chart.series[i].points) {
      if (!is_drawn(x, y)) continue;
      svg.Marker(x_at(x), y_at(y), radius, i,
                 absl::StrCat(chart.series[i].name, ", ", chart.x_label, " ", Number(x), ": ",
                              ShortNumber(y)));
    }
  }
  return svg.Finish(chart.description, plot.bottom() + kTickLabelHeight + kAxisLabelHeight);
}

std::string RenderSvg(const StackedBarChart& chart) {
  double highest = 0;
  for (size_t category = 0; category < chart.categories.size(); ++category) {
    double sum = 0;
    for (const auto& series : chart.values) sum += series[category];
    highest = std::max(highest, sum);
  }
  Svg svg;
  const Plot plot = {.top = DrawLegend(svg, chart.series, LegendMark::kArea) + 8};
  const AxisTicks ticks = RoundTicks(0, highest, 6);
  DrawYAxis(svg, plot, ticks, chart.y_label);
  DrawCategories(svg, plot, chart.categories);
  DrawXLabel(svg, plot, chart.x_label);

  const double slot =
      plot.width() / static_cast<double>(std::max<size_t>(1, chart.categories.size()));
  const double bar = std::min(0.72 * slot, 72.0);
  for (size_t category = 0; category < chart.categories.size(); ++category) {
    const double x = plot.left + (static_cast<double>(category) + 0.5) * slot - bar / 2;
    double y = plot.bottom();
    for (size_t series = 0; series < chart.values.size(); ++series) {
      const double value = chart.values[series][category];
      const double height = value / (ticks.high - ticks.low) * plot.height;
      y -= height;
      svg.Rect(x, y, bar, height,
               absl::StrCat("class=\"part fill", series % kNumSeriesColors, "\""),
               absl::StrCat(chart.series[series], ", ", chart.x_label, " ",
                            chart.categories[category], ": ", ShortNumber(value)));
    }
  }
  svg.Line(plot.left, plot.bottom(), plot.right, plot.bottom(), "axis");  // over the bars' edges
  return svg.Finish(chart.description, plot.bottom() + kTickLabelHeight + kAxisLabelHeight);
}

std::string RenderSvg(const HeatMap& map) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const auto& row : map.values) {
    for (const double value : row) {
      if (!std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  const auto share = [&](double value) { return high > low ? (value - low) / (high - low) : 0.5; };

  constexpr double kCellHeight = 34;
  constexpr double kScaleWidth = 78;
  constexpr double kCellLabelWidth = 36;
  double row_label = 0;
  for (const std::string& row : map.rows) row_label = std::max(row_label, TextWidth(row));
  Svg svg;
  const Plot plot = {.top = 10,
                     .left = row_label + 14,
                     .right = kWidth - kScaleWidth - 24,
                     .height = kCellHeight * static_cast<double>(map.rows.size())};
  const double slot = plot.width() / static_cast<double>(std::max<size_t>(1, map.columns.size()));
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = plot.top + kCellHeight * static_cast<double>(row);
    svg.Text(plot.left - 8, y + kCellHeight / 2 + 4.5, map.rows[row], "label", "end");
    for (size_t column = 0; column < map.columns.size(); ++column) {
      const double value = map.values[row][column];
      if (!std::isfinite(value)) continue;
      const double x = plot.left + slot * static_cast<double>(column);
      const Color color = ColorAt(share(value));
      const double gap = slot > 8 ? 2 : 0;
      svg.Rect(x, y, slot - gap, kCellHeight - 2, Paint(color),
               absl::StrCat(map.rows[row], ", ", map.x_label, " ", map.columns[column], ": ",
                            ShortNumber(value)));
      if (slot >= kCellLabelWidth) {
        svg.Text(x + (slot - gap) / 2, y + kCellHeight / 2 + 3.5, ShortNumber(value),
                 IsDark(color) ? "on-dark" : "on-light", "middle");
      }
    }
  }
  DrawCategories(svg, plot, map.columns);
  DrawXLabel(svg, plot, map.x_label);

  // The scale, its label above the numbers of its ends.
  const double x = kWidth - kScaleWidth;
  constexpr int kSteps = 24;
  const double height = plot.height - 2;
  for (int step = 0; step < kSteps; ++step) {
    const double top = plot.top + height * step / kSteps;
    svg.Rect(x, top, 14, height / kSteps + 0.5, Paint(ColorAt(1 - (step + 0.5) / kSteps)));
  }
  if (std::isfinite(low)) {
    svg.Text(x + 20, plot.top + 10, ShortNumber(high), "tick", "start");
    if (high > low) svg.Text(x + 20, plot.top + height - 1, ShortNumber(low), "tick", "start");
  }
  svg.Text(kWidth - 6, plot.top + height / 2, map.value_label, "label", "middle", -90);
  return svg.Finish(map.description, plot.bottom() + kTickLabelHeight + kAxisLabelHeight);
}

std::string ChartStyleSheet() {
  constexpr const char* kLight =
      "--page:#ffffff;--ink:#1a1d21;--quiet:#5a626b;--rule:#d9dde2;--panel:#f5f6f8;"
      "--series0:#0072b2;--series1:#d55e00;--series2:#009e73;--series3:#b8559a;--series4:#9a7400;";
  constexpr const char* kDark =
      "--page:#14171a;--ink:#e8eaed;--quiet:#a3abb4;--rule:#363c43;--panel:#1d2125;"
      "--series0:#56b4e9;--series1:#f0804a;--series2:#2fc79c;--series3:#e39bc8;--series4:#e6c619;";
  std::string css =
      absl::StrCat(":root{color-scheme:light dark;", kLight,
                   "}\n@media screen and (prefers-color-scheme:dark){", ":root{", kDark, "}}\n",
                   ".chart{display:block;width:100%;height:auto;font-family:inherit}\n"
                   ".chart .axis{stroke:var(--quiet);stroke-width:1}\n"
                   ".chart .grid{stroke:var(--rule);stroke-width:1}\n"
                   ".chart .label{fill:var(--ink);font-size:13px}\n"
                   ".chart .tick{fill:var(--quiet);font-size:12px}\n"
                   ".chart .part{stroke:var(--page);stroke-width:1}\n"
                   ".chart .on-dark{fill:#ffffff;font-size:12px}\n"
                   ".chart .on-light{fill:#14171a;font-size:12px}\n");
  for (int i = 0; i < kNumSeriesColors; ++i) {
    absl::StrAppend(&css, ".chart .line", i, "{fill:none;stroke:var(--series", i,
                    ");stroke-width:2}\n.chart .fill", i, "{fill:var(--series", i, ")}\n");
  }
  return css;
}

std::string EscapeHtml(std::string_view text) {
  const bool is_utf8 = IsValidUtf8(text);
  std::string escaped;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == '&') {
      escaped += "&amp;";
    } else if (c == '<') {
      escaped += "&lt;";
    } else if (c == '>') {
      escaped += "&gt;";
    } else if (c == '"') {
      escaped += "&quot;";
    } else if (byte < 0x20 || byte == 0x7f) {
      escaped += ' ';
    } else if (byte >= 0x80 && !is_utf8) {
      escaped += "\xef\xbf\xbd";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

}  // namespace ultrasketch
