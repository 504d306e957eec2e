#include "engine/format/config_reader.h"

#include <limits>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/json.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

// The value of an integer that fits int64.
std::optional<int64_t> AsInt64(const json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return std::nullopt;
}

}  // namespace

ConfigReader::ConfigReader(const json& object, std::string_view description,
                           std::string_view prefix)
    : object_(object), description_(description), prefix_(prefix) {
  if (object.is_object()) return;
  const std::string what =
      prefix.empty() ? "" : absl::StrCat(A(prefix.substr(0, prefix.size() - 1)), ": ");
  status_ = absl::DataLossError(absl::StrCat(
      description_, ": ", what, "expected a JSON object, found ", DescribeJson(&object)));
}

const json* ConfigReader::Find(std::string_view key) const { return FindMember(object_, key); }

bool ConfigReader::HasKey(std::string_view key) const {
  return object_.is_object() && object_.find(key) != object_.end();
}

void ConfigReader::Adopt(const absl::Status& status) {
  if (status_.ok()) status_ = status;
}

void ConfigReader::FailFound(std::string_view key, std::string_view expected, const json* found) {
  Adopt(absl::DataLossError(absl::StrCat(description_, ": ", prefix_, A(key), ": expected ",
                                         A(expected), ", found ", DescribeJson(found))));
}

void ConfigReader::FailExpected(std::string_view key, std::string_view expected) {
  FailFound(key, expected, Find(key));
}

void ConfigReader::FailUnsupported(std::string_view key, std::string_view problem) {
  Adopt(absl::UnimplementedError(
      absl::StrCat(description_, ": ", prefix_, A(key), ": ", A(problem))));
}

std::optional<int64_t> ConfigReader::Integer(std::string_view key, int64_t least, int64_t most) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = AsInt64(*value);
  if (number.has_value() && *number >= least && *number <= most) return number;
  FailExpected(key, absl::StrCat("an integer from ", least, " to ", most));
  return std::nullopt;
}

std::optional<double> ConfigReader::Number(std::string_view key, double least, double most) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= least && number <= most) return number;
  }
  FailExpected(key, absl::StrCat("a number from ", least, " to ", most));
  return std::nullopt;
}

std::optional<bool> ConfigReader::Bool(std::string_view key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  FailExpected(key, "true or false");
  return std::nullopt;
}

std::optional<std::string> ConfigReader::String(std::string_view key) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get_ref<const std::string&>();
  FailExpected(key, "a string");
  return std::nullopt;
}

std::optional<std::vector<int32_t>> ConfigReader::TokenIds(std::string_view key, int32_t vocab_size,
                                                           std::vector<std::string>& warnings) {
  const json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<int32_t> ids;
  const json* first_wrong = nullptr;
  int64_t num_wrong = 0;
  const auto add = [&](const json& element) {
    const std::optional<int64_t> id = AsInt64(element);
    if (id.has_value() && *id >= 0 && *id < vocab_size) {
      ids.push_back(static_cast<int32_t>(*id));
      return;
    }
    if (!element.is_number_integer()) {
      FailFound(key, "a token id, an integer", &element);
      return;
    }
    if (first_wrong == nullptr) first_wrong = &element;
    ++num_wrong;
  };
  if (value->is_array()) {
    for (const json& element : *value) add(element);
  } else {
    add(*value);
  }
  if (num_wrong > 0) {
    warnings.push_back(absl::StrCat(
        description_, ": ", prefix_, A(key), ": expected token ids of the vocabulary, 0 to ",
        vocab_size - 1, ", found ", DescribeJson(first_wrong),
        num_wrong == 1 ? "; it is not used"
                       : absl::StrCat(" and ", num_wrong - 1, " more such; they are not used")));
  }
  if (ids.empty()) return std::nullopt;
  return ids;
}

int64_t ConfigReader::RequiredInteger(std::string_view key, int64_t least, int64_t most) {
  if (Find(key) == nullptr) {
    FailExpected(key, absl::StrCat("an integer from ", least, " to ", most));
  }
  return Integer(key, least, most).value_or(least);
}

double ConfigReader::RequiredNumber(std::string_view key, double least, double most) {
  if (Find(key) == nullptr) {
    FailExpected(key, absl::StrCat("a number from ", least, " to ", most));
  }
  return Number(key, least, most).value_or(least);
}

}  // namespace ultrasketch
