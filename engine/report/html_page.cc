#include "engine/report/html_page.h"

#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"
#include "engine/report/svg_chart.h"

namespace ultrasketch {
namespace {

constexpr const char* kPageStyle = R"(*{box-sizing:border-box}
body{margin:0 auto;padding:24px;max-width:1000px;background:var(--page);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}
.subtitle{color:var(--quiet);margin:0 0 20px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin:0 0 32px}
.tile{background:var(--panel);border-radius:8px;padding:12px 14px}
.tile dt{color:var(--quiet);font-size:13px}
.tile dd{margin:2px 0 0;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums}
.tile dd.note,.note,figcaption{color:var(--quiet);font-size:13px;font-weight:400;overflow-wrap:anywhere}
figure{margin:0 0 36px;break-inside:avoid}
figcaption{margin-top:6px;max-width:80ch}
.none{color:var(--quiet);background:var(--panel);border-radius:8px;padding:12px 14px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:4px 8px;text-align:right;border-bottom:1px solid var(--rule)}
th:first-child{text-align:left;padding-left:0}
tbody th{font-weight:400}
thead th{color:var(--quiet);font-weight:600;vertical-align:bottom}
tr{break-inside:avoid}
@media (max-width:700px){.tiles{grid-template-columns:1fr 1fr}}
@media print{body{padding:0;max-width:none;font-size:12px}.wide{overflow:visible}
.tile,rect{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
)";

}  // namespace

std::string HtmlPage(std::string_view title, std::string_view subtitle, std::string_view body) {
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      EscapeHtml(title), "</title>\n<style>\n", ChartStyleSheet(), kPageStyle,
      "</style>\n</head>\n<body>\n<h1>", EscapeHtml(title), "</h1>\n<p class=\"subtitle\">",
      EscapeHtml(subtitle), "</p>\n", A(body), "</body>\n</html>\n");
}

std::string Tile(std::string_view title, std::string_view value, std::string_view note) {
  return absl::StrCat("<div class=\"tile\"><dt>", EscapeHtml(title), "</dt><dd>", EscapeHtml(value),
                      "</dd><dd class=\"note\">", EscapeHtml(note), "</dd></div>\n");
}

std::string Figure(std::string_view title, std::string_view caption, std::string_view body) {
  return absl::StrCat("<figure>\n<h2>", EscapeHtml(title), "</h2>\n", A(body), "<figcaption>",
                      EscapeHtml(caption), "</figcaption>\n</figure>\n");
}

std::string WithSpaces(int64_t number) {
  std::string digits = absl::StrCat(number);
  for (size_t end = digits.size(); end > 3; end -= 3) digits.insert(end - 3, "\u202f");
  return digits;
}

}  // namespace ultrasketch
