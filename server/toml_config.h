// Configuration files for CLI11 in TOML, by toml++. CLI11's own reader cuts strings at a `#`, takes
// an unfinished string for a value and knows no comments in arrays.
#ifndef ULTRASKETCH_SERVER_TOML_CONFIG_H_
#define ULTRASKETCH_SERVER_TOML_CONFIG_H_

#include <istream>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace ultrasketch {

// Top-level keys are options' names; values are strings, numbers, booleans (on, off) and arrays of
// those. Anything else, and what is no TOML, throws CLI::ConfigError, with the line.
class TomlConfig final : public CLI::Config {
 public:
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

  // Every option with its value, in order of declaration; options without one, which have no
  // default, are left out. `app` has no subcommands. The other parameters say nothing here.
  std::string to_config(const CLI::App* app, bool default_also, bool write_description,
                        std::string prefix) const override;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_TOML_CONFIG_H_
