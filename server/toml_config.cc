#include "server/toml_config.h"

#include <array>
#include <charconv>
#include <cstdint>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include <toml++/toml.h>

namespace ultrasketch {
namespace {

[[noreturn]] void Fail(const toml::source_region& where, const std::string& what) {
  throw CLI::ConfigError(absl::StrCat("line ", where.begin.line, ": ", what),
                         CLI::ExitCodes::ConfigError);
}

// The fewest digits that stand for this number and no other.
std::string ShortestText(double number) {
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.begin(), digits.end(), number);
  return std::string(digits.begin(), end.ptr);
}

std::string ToText(const toml::key& key, const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* integer = node.as_integer()) return absl::StrCat(integer->get());
  if (const auto* number = node.as_floating_point()) return ShortestText(number->get());
  if (const auto* boolean = node.as_boolean()) return boolean->get() ? "on" : "off";
  Fail(node.source(), absl::StrCat(std::string(key.str()),
                                   ": expected a string, a number, true or false, or an array of "
                                   "such: tables and times are no option's value"));
}

std::string Quote(const std::string& text) {
  std::ostringstream quoted;
  quoted << toml::value<std::string>(text);
  return quoted.str();
}

// A number where it reads back as the same text.
std::string ToValue(const std::string& text) {
  int64_t integer = 0;
  double number = 0;
  if (absl::SimpleAtoi(text, &integer) && absl::StrCat(integer) == text) return text;
  if (text.find('.') != std::string::npos && absl::SimpleAtod(text, &number) &&
      ShortestText(number) == text) {
    return text;
  }
  return Quote(text);
}

}  // namespace

std::vector<CLI::ConfigItem> TomlConfig::from_config(std::istream& input) const {
  toml::table table;
  try {
    table = toml::parse(input);
  } catch (const toml::parse_error& error) {
    Fail(error.source(), std::string(error.description()));
  }
  std::vector<CLI::ConfigItem> parsed;
  for (const auto& [key, node] : table) {
    CLI::ConfigItem& item = parsed.emplace_back();
    item.name = std::string(key.str());
    if (const toml::array* array = node.as_array()) {
      for (const toml::node& element : *array) item.inputs.push_back(ToText(key, element));
    } else {
      item.inputs = {ToText(key, node)};
    }
  }
  return parsed;
}

std::string TomlConfig::to_config(const CLI::App* app, bool, bool, std::string) const {
  std::string text;
  for (const CLI::Option* option : app->get_options({})) {
    if (!option->get_configurable()) continue;
    std::string value;
    if (option->get_expected_max() > 1) {
      const std::vector<std::string>& values = option->results();
      if (values.empty()) continue;
      value = absl::StrCat("[",
                           absl::StrJoin(values, ", ",
                                         [](std::string* out, const std::string& element) {
                                           absl::StrAppend(out, Quote(element));
                                         }),
                           "]");
    } else if (option->get_expected_min() == 0) {
      value = option->count() > 0 && option->as<bool>() ? "true" : "false";
    } else if (option->count() > 0) {
      value = ToValue(option->results().front());
    } else if (!option->get_default_str().empty()) {
      value = ToValue(option->get_default_str());
    } else {
      continue;
    }
    absl::StrAppend(&text, option->get_single_name(), " = ", value, "\n");
  }
  return text;
}

}  // namespace ultrasketch
