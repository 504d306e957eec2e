// What variables of a Jinja template hold: the Python values that chat templates use.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_VALUE_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_VALUE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/chat/text.h"

namespace ultrasketch::chat_internal {

struct Dict;
struct List;
struct Loop;
struct Macro;
struct Namespace;

// The functions that every template sees.
enum class FunctionId { kNamespace, kRaiseException, kRange, kStrftimeNow };

struct Undefined {
  bool operator==(const Undefined&) const = default;
};
struct None {
  bool operator==(const None&) const = default;
};

// Copies share lists, dicts and texts, which never change.
using Value = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                           std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                           std::shared_ptr<Loop>, Namespace*, const Macro*, FunctionId>;

struct List {
  enum class Kind {
    kList,
    kTuple,
    kRange,      // prints and compares otherwise than a list
    kView,       // of a dict: has a length and no subscripts
    kGenerator,  // can be gone through once; no length, always true
  };
  Kind kind = Kind::kList;
  std::vector<Value> items;
  int height = 1;              // of the nesting from here
  mutable bool spent = false;  // a generator that somebody went through
  absl::Status error = {};     // what going through a generator ends with
};

// In order of insertion. Keys are strings, integers, booleans or none.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  int height = 1;

  // Null when there is none.
  const Value* Find(const Value& key) const;
};

// The state of the innermost "for" around an expression.
struct Loop {
  std::shared_ptr<const List> list;
  size_t index = 0;
  int depth = 1;
};

// Owned by the interpreter; the only value that changes.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

Value MakeText(Text text);
Value MakeLiteral(std::string text);

// What a text may grow to; RESOURCE_EXHAUSTED beyond.
inline constexpr size_t kMaxTextBytes = size_t{1} << 26;
absl::Status CheckTextSize(size_t num_bytes);

// Lists within lists: everything recursive over a value is safe.
inline constexpr int kMaxValueHeight = 32;

// RESOURCE_EXHAUSTED past kMaxValueHeight.
absl::StatusOr<Value> MakeList(List::Kind kind, std::vector<Value> items);
// A later key replaces the value of an equal one.
absl::StatusOr<Value> MakeDict(std::vector<std::pair<Value, Value>> items);

// Null when the value is of another kind.
const Text* AsText(const Value& value);
const List* AsList(const Value& value);
const Dict* AsDict(const Value& value);

bool IsUndefined(const Value& value);
bool IsNone(const Value& value);

// For an error message: "undefined", "a string", ...
std::string_view DescribeKind(const Value& value);

// Python's bool(value).
bool IsTrue(const Value& value);

// Python's left == right. UNIMPLEMENTED where that depends on identity.
absl::StatusOr<bool> AreEqual(const Value& left, const Value& right);

// Below zero, zero, above zero. INVALID_ARGUMENT for what has no order.
absl::StatusOr<int> Compare(const Value& left, const Value& right);

// Python's `item in container`.
absl::StatusOr<bool> Contains(const Value& container, const Value& item);

// Python's str(value). UNIMPLEMENTED for lists, dicts and real numbers.
absl::StatusOr<Text> ToText(const Value& value);

// What a "for" goes through, in a kList; INVALID_ARGUMENT for what cannot be gone through.
absl::StatusOr<std::shared_ptr<const List>> Iterate(const Value& value);

// Python's json.dumps(value, ensure_ascii=False, indent=indent); negative: no indent.
absl::StatusOr<Text> ToJson(const Value& value, int64_t indent);

}  // namespace ultrasketch::chat_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHAT_JINJA_VALUE_H_
