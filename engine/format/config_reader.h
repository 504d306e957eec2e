// Reads the members of a JSON object of configuration, each checked for type and range.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CONFIG_READER_H_
#define ULTRASKETCH_ENGINE_FORMAT_CONFIG_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace ultrasketch {

// Remembers the first error and goes on, so that a configuration is read field by field and
// checked once, with status(), before anything of it is used. A member that is null counts as
// absent. Not thread-safe.
class ConfigReader {
 public:
  // `object` must outlive the reader. Messages start with `description`, and name keys as
  // `prefix` followed by the key ("rope_scaling.factor").
  ConfigReader(const nlohmann::json& object, std::string_view description,
               std::string_view prefix = "");

  // The member's value, inside the inclusive range. Nothing when it is absent, or wrong: that is an
  // error then.
  std::optional<int64_t> Integer(std::string_view key, int64_t least, int64_t most);
  std::optional<double> Number(std::string_view key, double least, double most);
  std::optional<bool> Bool(std::string_view key);
  std::optional<std::string> String(std::string_view key);

  // A token id or an array of them, integers. Those outside the vocabulary, [0, vocab_size), are
  // left out, which adds a sentence to `warnings`. Nothing, too, when no id is left.
  std::optional<std::vector<int32_t>> TokenIds(std::string_view key, int32_t vocab_size,
                                               std::vector<std::string>& warnings);

  // As above, where absence is an error too; after an error, the result is `least`.
  int64_t RequiredInteger(std::string_view key, int64_t least, int64_t most);
  double RequiredNumber(std::string_view key, double least, double most);

  // The member, whatever it is; null when absent.
  const nlohmann::json* Find(std::string_view key) const;

  // Whether the key is there, be its value null or not.
  bool HasKey(std::string_view key) const;

  // DATA_LOSS "<description>: <key>: expected <expected>, found <the member>".
  void FailExpected(std::string_view key, std::string_view expected);
  // UNIMPLEMENTED "<description>: <key>: <problem>".
  void FailUnsupported(std::string_view key, std::string_view problem);
  // Takes over the error of a reader of a part of this object.
  void Adopt(const absl::Status& status);

  // The first error.
  const absl::Status& status() const { return status_; }

 private:
  void FailFound(std::string_view key, std::string_view expected, const nlohmann::json* found);

  const nlohmann::json& object_;
  const std::string description_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_CONFIG_READER_H_
