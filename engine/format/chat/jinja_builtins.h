// Jinja's filters and tests, the methods of Python's strings and dicts, and what "." and "[]" find.
//
// Errors here name no place: INVALID_ARGUMENT where Python raises an exception, UNIMPLEMENTED where
// it has a result that is not reproduced here.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_BUILTINS_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_BUILTINS_H_

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/chat/jinja_value.h"

namespace ultrasketch::chat_internal {

enum class FilterId {
  kCapitalize,
  kDefault,
  kDictSort,
  kFirst,
  kItems,
  kJoin,
  kLast,
  kLength,
  kList,
  kLower,
  kMap,
  kReject,
  kRejectAttr,
  kReplace,
  kReverse,
  kSafe,
  kSelect,
  kSelectAttr,
  kString,
  kToJson,
  kTrim,
  kUpper,
};

enum class TestId {
  kBoolean,
  kDefined,
  kDivisibleBy,
  kEqual,
  kEven,
  kFalse,
  kFloat,
  kGreater,
  kGreaterEqual,
  kIn,
  kInteger,
  kIterable,
  kLess,
  kLessEqual,
  kMapping,
  kNone,
  kNotEqual,
  kNumber,
  kOdd,
  kSequence,
  kString,
  kTrue,
  kUndefined,
};

enum class MethodId {
  kCapitalize,
  kEndsWith,
  kGet,
  kItems,
  kJoin,
  kKeys,
  kLower,
  kLstrip,
  kReplace,
  kRstrip,
  kSplit,
  kStartsWith,
  kStrip,
  kUpper,
  kValues,
};

// How something is called; the value that a filter or a test is applied to does not count.
template <typename Id>
struct Signature {
  std::string_view name;
  Id id;
  size_t min_arguments;
  size_t max_arguments;
  std::string_view keywords = "";  // the names of keyword arguments, each between spaces
};

// Null when there is none of this name.
const Signature<FilterId>* FindFilter(std::string_view name);
const Signature<TestId>* FindTest(std::string_view name);
const Signature<MethodId>* FindMethod(std::string_view name);
const Signature<FunctionId>* FindFunction(std::string_view name);

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;

  // Null when there is no keyword argument of this name.
  const Value* Keyword(std::string_view name) const;
};

absl::StatusOr<Value> ApplyFilter(FilterId filter, const Value& value, const Arguments& arguments);
absl::StatusOr<bool> ApplyTest(TestId test, const Value& value,
                               const std::vector<Value>& arguments);
absl::StatusOr<Value> CallMethod(MethodId method, const Value& object, const Arguments& arguments);

// object.name
absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name);
// object[key]
absl::StatusOr<Value> GetItem(const Value& object, const Value& key);
// object[begin:end:step], undefined or none where a part is left out.
absl::StatusOr<Value> GetSlice(const Value& object, const Value& begin, const Value& end,
                               const Value& step);

// A string to compute with: INVALID_ARGUMENT for other values, UNIMPLEMENTED for what filter "safe"
// made. `what` is for the message.
absl::StatusOr<const Text*> PlainText(const Value& value, std::string_view what);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_BUILTINS_H_
