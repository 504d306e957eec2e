// Typed access to a JSON document of doubtful origin: every accessor checks, and every error names
// the file and the path of the value inside it.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_JSON_VALUE_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_JSON_VALUE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <nlohmann/json.hpp>

namespace ultrasketch::tokenizer_internal {

// A value of a document (see ParseJson in engine/format/json.h) and where it stands. The document
// must outlive it.
class JsonValue {
 public:
  // The root of a document; `name` stands for the file in messages.
  JsonValue(const nlohmann::json& root, std::string_view name) : JsonValue(&root, name, "") {}

  const nlohmann::json& raw() const { return *value_; }
  const std::string& name() const { return name_; }
  bool is_null() const { return value_->is_null(); }

  // "tokenizer.json: model.merges[3]: <message>".
  absl::Status DataLoss(std::string_view message) const;
  absl::Status Unimplemented(std::string_view message) const;

  // DATA_LOSS unless the value has the type.
  absl::StatusOr<std::string> String() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<int64_t> Int(int64_t min, int64_t max) const;
  absl::Status ExpectObject() const;
  absl::Status ExpectArray() const;
  // The single code point of a string.
  absl::StatusOr<uint32_t> Character() const;

  // The member of an object. Member: DATA_LOSS when absent. OptionalMember: nullopt when absent or
  // null. Both: DATA_LOSS when this is not an object.
  absl::StatusOr<JsonValue> Member(std::string_view key) const;
  absl::StatusOr<std::optional<JsonValue>> OptionalMember(std::string_view key) const;

  // Members of basic types: the default when absent or null.
  absl::StatusOr<bool> BoolMember(std::string_view key, bool default_value) const;

  // The elements of an array; DATA_LOSS when this is not one.
  absl::StatusOr<std::vector<JsonValue>> Elements() const;

  // The value of the string member "type".
  absl::StatusOr<std::string> Type() const;

  JsonValue Element(size_t index) const;  // of an array known to have it

 private:
  JsonValue(const nlohmann::json* value, std::string_view name, std::string path)
      : value_(value), name_(name), path_(std::move(path)) {}

  absl::Status WrongType(std::string_view expected) const;

  const nlohmann::json* value_;
  std::string name_;
  std::string path_;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_JSON_VALUE_H_
