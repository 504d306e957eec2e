// A page of tiles, figures and tables that needs nothing else: HTML with its styles in it, for
// light and dark screens and for print.
#ifndef ULTRASKETCH_ENGINE_REPORT_HTML_PAGE_H_
#define ULTRASKETCH_ENGINE_REPORT_HTML_PAGE_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace ultrasketch {

// Titles, values, notes and captions are text and become escaped; bodies are HTML.

std::string HtmlPage(std::string_view title, std::string_view subtitle, std::string_view body);

// One figure in large type; stands in a <dl class="tiles">.
std::string Tile(std::string_view title, std::string_view value, std::string_view note);

// A heading, a chart and a line below it.
std::string Figure(std::string_view title, std::string_view caption, std::string_view body);

// 1234567 with narrow spaces between its thousands.
std::string WithSpaces(int64_t number);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_REPORT_HTML_PAGE_H_
