#include "engine/format/tokenizer/json_value.h"

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

std::string Located(std::string_view name, std::string_view path, std::string_view message) {
  if (path.empty()) return absl::StrCat(A(name), ": ", A(message));
  return absl::StrCat(A(name), ": ", A(path), ": ", A(message));
}

}  // namespace

absl::Status JsonValue::DataLoss(std::string_view message) const {
  return absl::DataLossError(Located(name_, path_, message));
}

absl::Status JsonValue::Unimplemented(std::string_view message) const {
  return absl::UnimplementedError(Located(name_, path_, message));
}

absl::Status JsonValue::WrongType(std::string_view expected) const {
  return DataLoss(absl::StrCat("expected ", A(expected), ", found ", DescribeJson(value_)));
}

absl::StatusOr<std::string> JsonValue::String() const {
  const auto* text = value_->get_ptr<const std::string*>();
  if (text == nullptr) return WrongType("a string");
  return *text;
}

absl::StatusOr<bool> JsonValue::Bool() const {
  const auto* boolean = value_->get_ptr<const bool*>();
  if (boolean == nullptr) return WrongType("true or false");
  return *boolean;
}

absl::StatusOr<int64_t> JsonValue::Int(int64_t min, int64_t max) const {
  if (!value_->is_number_integer()) return WrongType("an integer");
  int64_t number = 0;
  bool in_range = true;
  if (const auto* natural = value_->get_ptr<const uint64_t*>()) {
    in_range = *natural <= static_cast<uint64_t>(INT64_MAX);
    number = static_cast<int64_t>(*natural);
  } else {
    number = *value_->get_ptr<const int64_t*>();
  }
  if (!in_range || number < min || number > max) {
    return DataLoss(absl::StrCat("expected an integer from ", min, " to ", max, ", found ",
                                 DescribeJson(value_)));
  }
  return number;
}

absl::Status JsonValue::ExpectObject() const {
  return value_->is_object() ? absl::OkStatus() : WrongType("an object");
}

absl::Status JsonValue::ExpectArray() const {
  return value_->is_array() ? absl::OkStatus() : WrongType("an array");
}

absl::StatusOr<uint32_t> JsonValue::Character() const {
  US_ASSIGN_OR_RETURN(const std::string text, String());
  if (text.empty() || text.size() != Utf8Length(text[0])) {
    return DataLoss(absl::StrCat("expected one character, found ", Quoted(text)));
  }
  size_t position = 0;
  return NextCodePoint(text, &position);
}

absl::StatusOr<JsonValue> JsonValue::Member(std::string_view key) const {
  US_RETURN_IF_ERROR(ExpectObject());
  const auto found = value_->find(std::string(key));
  if (found == value_->end()) return DataLoss(absl::StrCat("no member \"", A(key), "\""));
  return JsonValue(&*found, name_,
                   path_.empty() ? std::string(key) : absl::StrCat(path_, ".", A(key)));
}

absl::StatusOr<std::optional<JsonValue>> JsonValue::OptionalMember(std::string_view key) const {
  US_RETURN_IF_ERROR(ExpectObject());
  if (FindMember(*value_, key) == nullptr) return std::optional<JsonValue>();
  US_ASSIGN_OR_RETURN(JsonValue member, Member(key));
  return std::optional<JsonValue>(std::move(member));
}

absl::StatusOr<bool> JsonValue::BoolMember(std::string_view key, bool default_value) const {
  US_ASSIGN_OR_RETURN(const std::optional<JsonValue> member, OptionalMember(key));
  return member.has_value() ? member->Bool() : default_value;
}

absl::StatusOr<std::vector<JsonValue>> JsonValue::Elements() const {
  US_RETURN_IF_ERROR(ExpectArray());
  std::vector<JsonValue> elements;
  elements.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i) elements.push_back(Element(i));
  return elements;
}

absl::StatusOr<std::string> JsonValue::Type() const {
  US_ASSIGN_OR_RETURN(const JsonValue type, Member("type"));
  return type.String();
}

JsonValue JsonValue::Element(size_t index) const {
  return JsonValue(&(*value_)[index], name_, absl::StrCat(path_, "[", index, "]"));
}

}  // namespace ultrasketch::tokenizer_internal
