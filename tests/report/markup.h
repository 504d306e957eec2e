// Whether HTML or SVG as this project writes it is well formed.
#ifndef ULTRASKETCH_TESTS_REPORT_MARKUP_H_
#define ULTRASKETCH_TESTS_REPORT_MARKUP_H_

#include <string>
#include <string_view>
#include <vector>

namespace ultrasketch {

// What is wrong with the nesting of elements, or with quotes and ampersands; "" when nothing is.
// Knows elements, attributes in double quotes, the doctype, <meta>, and that CSS is not markup.
inline std::string MarkupProblem(std::string_view text) {
  std::vector<std::string> open;
  size_t i = 0;
  while (i < text.size()) {
    if (text[i] == '>') return "a '>' in text near " + std::string(text.substr(i, 40));
    if (text[i] == '&') {
      const size_t end = text.find(';', i);
      const std::string_view entity = text.substr(i, end - i + 1);
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;") {
        return "an entity near " + std::string(text.substr(i, 40));
      }
    }
    if (text[i] != '<') {
      ++i;
      continue;
    }
    size_t end = i + 1;
    for (bool quoted = false; end < text.size() && (quoted || text[end] != '>'); ++end) {
      if (text[end] == '"') quoted = !quoted;
      if (text[end] == '<') return "a '<' within a tag near " + std::string(text.substr(i, 40));
    }
    if (end == text.size()) return "a tag that does not end: " + std::string(text.substr(i, 40));
    const std::string_view tag = text.substr(i + 1, end - i - 1);
    const std::string name(tag.substr(0, tag.find_first_of(" /\n", 1)));
    i = end + 1;
    if (name == "!DOCTYPE" || name == "meta" || tag.ends_with('/')) continue;
    if (name.starts_with('/')) {
      if (open.empty() || open.back() != name.substr(1)) return "<" + name + "> without its start";
      open.pop_back();
      continue;
    }
    open.push_back(name);
    if (name == "style") i = text.find("</style>", i);
  }
  return open.empty() ? "" : "no end of <" + open.back() + ">";
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_REPORT_MARKUP_H_
