#include "engine/format/chat/jinja_builtins.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/chat/text_methods.h"

namespace ultrasketch::chat_internal {
namespace {

constexpr size_t kAny = std::numeric_limits<size_t>::max();

constexpr Signature<FilterId> kFilters[] = {
    {"capitalize", FilterId::kCapitalize, 0, 0},
    {"count", FilterId::kLength, 0, 0},
    {"d", FilterId::kDefault, 0, 2, " default_value boolean "},
    {"default", FilterId::kDefault, 0, 2, " default_value boolean "},
    {"dictsort", FilterId::kDictSort, 0, 0},
    {"first", FilterId::kFirst, 0, 0},
    {"items", FilterId::kItems, 0, 0},
    {"join", FilterId::kJoin, 0, 1},
    {"last", FilterId::kLast, 0, 0},
    {"length", FilterId::kLength, 0, 0},
    {"list", FilterId::kList, 0, 0},
    {"lower", FilterId::kLower, 0, 0},
    {"map", FilterId::kMap, 0, kAny, " attribute default "},
    {"reject", FilterId::kReject, 0, kAny},
    {"rejectattr", FilterId::kRejectAttr, 1, kAny},
    {"replace", FilterId::kReplace, 2, 3},
    {"reverse", FilterId::kReverse, 0, 0},
    {"safe", FilterId::kSafe, 0, 0},
    {"select", FilterId::kSelect, 0, kAny},
    {"selectattr", FilterId::kSelectAttr, 1, kAny},
    {"string", FilterId::kString, 0, 0},
    {"tojson", FilterId::kToJson, 0, 0, " indent ensure_ascii "},
    {"trim", FilterId::kTrim, 0, 1},
    {"upper", FilterId::kUpper, 0, 0},
};

constexpr Signature<TestId> kTests[] = {
    {"!=", TestId::kNotEqual, 1, 1},
    {"<", TestId::kLess, 1, 1},
    {"<=", TestId::kLessEqual, 1, 1},
    {"==", TestId::kEqual, 1, 1},
    {">", TestId::kGreater, 1, 1},
    {">=", TestId::kGreaterEqual, 1, 1},
    {"boolean", TestId::kBoolean, 0, 0},
    {"defined", TestId::kDefined, 0, 0},
    {"divisibleby", TestId::kDivisibleBy, 1, 1},
    {"eq", TestId::kEqual, 1, 1},
    {"equalto", TestId::kEqual, 1, 1},
    {"even", TestId::kEven, 0, 0},
    {"false", TestId::kFalse, 0, 0},
    {"float", TestId::kFloat, 0, 0},
    {"ge", TestId::kGreaterEqual, 1, 1},
    {"greaterthan", TestId::kGreater, 1, 1},
    {"gt", TestId::kGreater, 1, 1},
    {"in", TestId::kIn, 1, 1},
    {"integer", TestId::kInteger, 0, 0},
    {"iterable", TestId::kIterable, 0, 0},
    {"le", TestId::kLessEqual, 1, 1},
    {"lessthan", TestId::kLess, 1, 1},
    {"lt", TestId::kLess, 1, 1},
    {"mapping", TestId::kMapping, 0, 0},
    {"ne", TestId::kNotEqual, 1, 1},
    {"none", TestId::kNone, 0, 0},
    {"number", TestId::kNumber, 0, 0},
    {"odd", TestId::kOdd, 0, 0},
    {"sequence", TestId::kSequence, 0, 0},
    {"string", TestId::kString, 0, 0},
    {"true", TestId::kTrue, 0, 0},
    {"undefined", TestId::kUndefined, 0, 0},
};

constexpr Signature<MethodId> kMethods[] = {
    {"capitalize", MethodId::kCapitalize, 0, 0},
    {"endswith", MethodId::kEndsWith, 1, 1},
    {"get", MethodId::kGet, 1, 2},
    {"items", MethodId::kItems, 0, 0},
    {"join", MethodId::kJoin, 1, 1},
    {"keys", MethodId::kKeys, 0, 0},
    {"lower", MethodId::kLower, 0, 0},
    {"lstrip", MethodId::kLstrip, 0, 1},
    {"replace", MethodId::kReplace, 2, 3},
    {"rstrip", MethodId::kRstrip, 0, 1},
    {"split", MethodId::kSplit, 0, 2},
    {"startswith", MethodId::kStartsWith, 1, 1},
    {"strip", MethodId::kStrip, 0, 1},
    {"upper", MethodId::kUpper, 0, 0},
    {"values", MethodId::kValues, 0, 0},
};

constexpr Signature<FunctionId> kFunctions[] = {
    {"namespace", FunctionId::kNamespace, 0, 0, "*"},
    {"raise_exception", FunctionId::kRaiseException, 1, 1},
    {"range", FunctionId::kRange, 1, 3},
    {"strftime_now", FunctionId::kStrftimeNow, 1, 1},
};

template <typename Table>
auto Find(const Table& table, std::string_view name) -> decltype(std::data(table)) {
  const auto found = std::find_if(std::begin(table), std::end(table),
                                  [name](const auto& entry) { return entry.name == name; });
  return found == std::end(table) ? nullptr : found;
}

// Attributes of Python's objects that are no items: methods, mostly.
bool IsPythonAttribute(const Value& object, std::string_view name) {
  constexpr std::string_view kOfTexts =
      " capitalize casefold center count encode endswith expandtabs find format format_map index "
      "isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
      "isspace "
      "istitle isupper join ljust lower lstrip maketrans partition removeprefix removesuffix "
      "replace "
      "rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase "
      "title "
      "translate upper zfill ";
  constexpr std::string_view kOfDicts =
      " clear copy fromkeys get items keys pop popitem setdefault update values ";
  constexpr std::string_view kOfLists =
      " append clear copy count extend index insert mapping pop remove reverse sort start step "
      "stop "
      "isdisjoint close gi_code gi_frame gi_running gi_yieldfrom send throw ";
  constexpr std::string_view kOfOthers =
      " arguments as_integer_ratio bit_count bit_length caller catch_kwargs catch_varargs changed "
      "conjugate cycle denominator explicit_caller from_bytes fromhex hex imag is_integer iterable "
      "name numerator real to_bytes ";
  if (name.starts_with("__")) return true;
  const std::string_view names = AsText(object) != nullptr   ? kOfTexts
                                 : AsDict(object) != nullptr ? kOfDicts
                                 : AsList(object) != nullptr ? kOfLists
                                                             : kOfOthers;
  const size_t found = names.find(absl::StrCat(" ", A(name), " "));
  return found != std::string_view::npos;
}

absl::StatusOr<Value> LoopAttribute(const Loop& loop, std::string_view name) {
  const std::vector<Value>& items = loop.list->items;
  const auto index = static_cast<int64_t>(loop.index);
  const auto size = static_cast<int64_t>(items.size());
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index + 1 == size);
  if (name == "length") return Value(size);
  if (name == "revindex") return Value(size - index);
  if (name == "revindex0") return Value(size - index - 1);
  if (name == "depth") return Value(int64_t{loop.depth});
  if (name == "depth0") return Value(int64_t{loop.depth - 1});
  if (name == "previtem") return index == 0 ? Value(Undefined()) : items[loop.index - 1];
  if (name == "nextitem") return index + 1 == size ? Value(Undefined()) : items[loop.index + 1];
  return Value(Undefined());
}

// The key of an item, as an index into `size` items; nullopt when it is out of range or no integer.
std::optional<size_t> Index(const Value& key, size_t size) {
  int64_t index;
  if (const auto* integer = std::get_if<int64_t>(&key)) {
    index = *integer;
  } else if (const auto* boolean = std::get_if<bool>(&key)) {
    index = *boolean ? 1 : 0;
  } else {
    return std::nullopt;
  }
  if (index < 0) index += static_cast<int64_t>(size);
  if (index < 0 || index >= static_cast<int64_t>(size)) return std::nullopt;
  return static_cast<size_t>(index);
}

struct SliceBounds {
  int64_t begin;
  int64_t end;
  int64_t step;
};

// PySlice_AdjustIndices.
absl::StatusOr<SliceBounds> ResolveSlice(const Value& begin, const Value& end, const Value& step,
                                         int64_t size) {
  const auto resolve = [](const Value& value, int64_t otherwise) -> absl::StatusOr<int64_t> {
    if (IsUndefined(value) || IsNone(value)) return otherwise;
    if (const auto* integer = std::get_if<int64_t>(&value)) return *integer;
    return absl::InvalidArgumentError(
        absl::StrCat("a slice needs integers, found ", A(DescribeKind(value))));
  };
  SliceBounds bounds{};
  US_ASSIGN_OR_RETURN(bounds.step, resolve(step, 1));
  if (bounds.step == 0) return absl::InvalidArgumentError("the step of a slice is 0");
  bounds.step = std::clamp<int64_t>(bounds.step, -(size + 1), size + 1);
  const bool backward = bounds.step < 0;
  const int64_t lowest = backward ? -1 : 0;
  const int64_t highest = backward ? size - 1 : size;
  const auto clamp = [&](int64_t index) {
    if (index < 0) index = index < -size ? -size - 1 : index + size;
    return std::clamp(index, lowest, highest);
  };
  // A bound that is left out lies beyond the last element on its side.
  US_ASSIGN_OR_RETURN(bounds.begin, resolve(begin, backward ? size : 0));
  bounds.begin = clamp(bounds.begin);
  US_ASSIGN_OR_RETURN(bounds.end, resolve(end, backward ? -size - 1 : size));
  bounds.end = clamp(bounds.end);
  return bounds;
}

absl::StatusOr<Value> FirstOrLast(const Value& value, bool first) {
  if (!first && AsList(value) != nullptr && AsList(value)->kind == List::Kind::kGenerator) {
    return absl::InvalidArgumentError("a generator has no last item");
  }
  US_ASSIGN_OR_RETURN(const auto list, Iterate(value));
  if (list->items.empty()) return Value(Undefined());
  return first ? list->items.front() : list->items.back();
}

absl::StatusOr<Value> Length(const Value& value) {
  if (IsUndefined(value)) return Value(int64_t{0});
  if (const Text* text = AsText(value)) return Value(NumCodePoints(text->bytes));
  if (const Dict* dict = AsDict(value)) return Value(static_cast<int64_t>(dict->items.size()));
  const List* list = AsList(value);
  if (list != nullptr && list->kind != List::Kind::kGenerator) {
    return Value(static_cast<int64_t>(list->items.size()));
  }
  return absl::InvalidArgumentError(absl::StrCat(A(DescribeKind(value)), " has no length"));
}

absl::StatusOr<Value> Items(const Value& value, List::Kind kind) {
  std::vector<Value> pairs;
  const Dict* dict = AsDict(value);
  if (dict == nullptr && !(IsUndefined(value) && kind == List::Kind::kGenerator)) {
    return absl::InvalidArgumentError(absl::StrCat(A(DescribeKind(value)), " has no items"));
  }
  if (dict != nullptr) {
    for (const auto& [key, item] : dict->items) {
      US_ASSIGN_OR_RETURN(Value pair, MakeList(List::Kind::kTuple, {key, item}));
      pairs.push_back(std::move(pair));
    }
  }
  return MakeList(kind, std::move(pairs));
}

// By key, whatever the case of its letters.
absl::StatusOr<Value> DictSort(const Value& value) {
  US_ASSIGN_OR_RETURN(const Value items, Items(value, List::Kind::kList));
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : AsList(items)->items) {
    Value key = AsList(item)->items[0];
    if (const Text* text = AsText(key)) {
      US_ASSIGN_OR_RETURN(Text lower, Lower(*text));
      key = MakeText(std::move(lower));
    }
    if (!keyed.empty()) US_RETURN_IF_ERROR(Compare(keyed[0].first, key).status());
    keyed.emplace_back(std::move(key), item);
  }
  // All keys can be compared with the first, and so with each other.
  std::stable_sort(keyed.begin(), keyed.end(), [](const auto& left, const auto& right) {
    return Compare(left.first, right.first).value_or(0) < 0;
  });
  std::vector<Value> sorted;
  for (auto& [key, item] : keyed) sorted.push_back(std::move(item));
  return MakeList(List::Kind::kList, std::move(sorted));
}

absl::StatusOr<Value> Join(const Value& separator, const Value& value, bool converts) {
  US_ASSIGN_OR_RETURN(const Text* between, PlainText(separator, "a separator"));
  US_ASSIGN_OR_RETURN(const auto list, Iterate(value));
  Text joined;
  for (size_t i = 0; i < list->items.size(); ++i) {
    if (i > 0) joined.Append(*between);
    if (converts) {
      US_ASSIGN_OR_RETURN(const Text item, ToText(list->items[i]));
      joined.Append(item);
    } else {
      US_ASSIGN_OR_RETURN(const Text* item, PlainText(list->items[i], "an item to join"));
      joined.Append(*item);
    }
    US_RETURN_IF_ERROR(CheckTextSize(joined.bytes.size()));
  }
  return MakeText(std::move(joined));
}

// Filters that are generators fail when somebody goes through them.
Value FailingGenerator(const absl::Status& error) {
  auto list = std::make_shared<List>();
  list->kind = List::Kind::kGenerator;
  list->error = error;
  return std::shared_ptr<const List>(std::move(list));
}

// Attributes joined by dots, as the filters take them.
absl::StatusOr<Value> GetPath(const Value& object, const Value& path) {
  if (std::holds_alternative<int64_t>(path)) return GetItem(object, path);
  US_ASSIGN_OR_RETURN(const Text* text, PlainText(path, "the name of an attribute"));
  Value value = object;
  for (size_t begin = 0; begin <= text->bytes.size();) {
    const size_t end = std::min(text->bytes.find('.', begin), text->bytes.size());
    const std::string part = text->bytes.substr(begin, end - begin);
    if (!part.empty() && std::all_of(part.begin(), part.end(), absl::ascii_isdigit)) {
      return absl::UnimplementedError("numbers in the name of an attribute are not supported");
    }
    US_ASSIGN_OR_RETURN(value, GetItem(value, MakeLiteral(part)));
    begin = end + 1;
  }
  return value;
}

absl::StatusOr<Value> Map(const Value& value, const Arguments& arguments) {
  const Value* attribute = arguments.Keyword("attribute");
  const Value* otherwise = arguments.Keyword("default");
  const Signature<FilterId>* filter = nullptr;
  Arguments rest;
  if (arguments.positional.empty() == (attribute == nullptr)) {
    return absl::InvalidArgumentError("\"map\" takes either a filter or attribute=");
  }
  if (attribute == nullptr) {
    US_ASSIGN_OR_RETURN(const Text* name, PlainText(arguments.positional[0], "a filter's name"));
    filter = FindFilter(name->bytes);
    rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
    if (filter == nullptr || otherwise != nullptr ||
        filter->min_arguments > rest.positional.size() ||
        filter->max_arguments < rest.positional.size()) {
      return absl::UnimplementedError(
          absl::StrCat("\"map\" by filter ", Quoted(name->bytes), " is not supported"));
    }
  }
  const auto list = Iterate(value);
  if (!list.ok()) return FailingGenerator(list.status());
  std::vector<Value> mapped;
  for (const Value& item : (*list)->items) {
    if (filter != nullptr) {
      US_ASSIGN_OR_RETURN(Value result, ApplyFilter(filter->id, item, rest));
      mapped.push_back(std::move(result));
      continue;
    }
    US_ASSIGN_OR_RETURN(Value found, GetPath(item, *attribute));
    if (IsUndefined(found) && otherwise != nullptr) found = *otherwise;
    mapped.push_back(std::move(found));
  }
  return MakeList(List::Kind::kGenerator, std::move(mapped));
}

// select, reject, selectattr, rejectattr.
absl::StatusOr<Value> Select(const Value& value, const Arguments& arguments, bool by_attribute,
                             bool keep) {
  size_t next = by_attribute ? 1 : 0;
  const Signature<TestId>* test = nullptr;
  std::vector<Value> rest;
  if (next < arguments.positional.size()) {
    US_ASSIGN_OR_RETURN(const Text* name, PlainText(arguments.positional[next], "a test's name"));
    test = FindTest(name->bytes);
    ++next;
    rest.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(next),
                arguments.positional.end());
    if (test == nullptr || test->min_arguments != rest.size()) {
      return absl::UnimplementedError(absl::StrCat("test ", Quoted(name->bytes), " with ",
                                                   rest.size(), " arguments is not supported"));
    }
  }
  std::vector<Value> selected;
  // Jinja asks whether there is anything before it begins: of none and 0, too, nothing is selected.
  if (!IsTrue(value)) return MakeList(List::Kind::kGenerator, std::move(selected));
  const auto list = Iterate(value);
  if (!list.ok()) return FailingGenerator(list.status());
  for (const Value& item : (*list)->items) {
    Value tested = item;
    if (by_attribute) {
      US_ASSIGN_OR_RETURN(tested, GetPath(item, arguments.positional[0]));
    }
    bool holds = IsTrue(tested);
    if (test != nullptr) {
      US_ASSIGN_OR_RETURN(holds, ApplyTest(test->id, tested, rest));
    }
    if (holds == keep) selected.push_back(item);
  }
  return MakeList(List::Kind::kGenerator, std::move(selected));
}

absl::StatusOr<Value> Reverse(const Value& value) {
  if (const Text* text = AsText(value)) {
    US_RETURN_IF_ERROR(PlainText(value, "a string to reverse").status());
    const std::vector<size_t> offsets = CodePointOffsets(text->bytes);
    Text reversed;
    for (size_t i = offsets.size() - 1; i > 0; --i) {
      reversed.Append(text->Substring(offsets[i - 1], offsets[i]));
    }
    return MakeText(std::move(reversed));
  }
  US_ASSIGN_OR_RETURN(const auto list, Iterate(value));
  return MakeList(List::Kind::kGenerator, {list->items.rbegin(), list->items.rend()});
}

absl::StatusOr<Value> Default(const Value& value, const Arguments& arguments) {
  const auto argument = [&](size_t index, std::string_view name) -> const Value* {
    if (index < arguments.positional.size()) return &arguments.positional[index];
    return arguments.Keyword(name);
  };
  const Value* otherwise = argument(0, "default_value");
  const Value* boolean = argument(1, "boolean");
  if (!IsUndefined(value) && !(boolean != nullptr && IsTrue(*boolean) && !IsTrue(value))) {
    return value;
  }
  return otherwise == nullptr ? MakeLiteral("") : *otherwise;
}

absl::StatusOr<Value> ToJsonFilter(const Value& value, const Arguments& arguments) {
  const Value* ascii = arguments.Keyword("ensure_ascii");
  if (ascii != nullptr && IsTrue(*ascii)) {
    return absl::UnimplementedError("\"tojson\" with ensure_ascii is not supported");
  }
  int64_t indent = -1;
  if (const Value* argument = arguments.Keyword("indent");
      argument != nullptr && !IsNone(*argument)) {
    const auto* integer = std::get_if<int64_t>(argument);
    if (integer == nullptr || *integer < 0 || *integer > 16) {
      return absl::UnimplementedError("\"tojson\" is supported with an indent of 0 to 16");
    }
    indent = *integer;
  }
  US_ASSIGN_OR_RETURN(Text text, ToJson(value, indent));
  return MakeText(std::move(text));
}

// Filters and methods of the same name differ in what they take for a string.
absl::StatusOr<Value> StringFilter(FilterId filter, const Value& value,
                                   const Arguments& arguments) {
  if (AsText(value) != nullptr) US_RETURN_IF_ERROR(PlainText(value, "").status());
  US_ASSIGN_OR_RETURN(const Text text, ToText(value));
  absl::StatusOr<Text> result;
  if (filter == FilterId::kTrim) {
    result = Strip(text, arguments.positional, StripSides::kBoth);
  } else if (filter == FilterId::kReplace) {
    result = Replace(text, arguments.positional);
  } else if (filter == FilterId::kUpper) {
    result = Upper(text);
  } else if (filter == FilterId::kLower) {
    result = Lower(text);
  } else {
    result = Capitalize(text);
  }
  if (!result.ok()) return result.status();
  return MakeText(*std::move(result));
}

absl::StatusOr<Value> CallDictMethod(MethodId method, const Dict& dict, const Value& object,
                                     const std::vector<Value>& arguments) {
  if (method == MethodId::kItems) return Items(object, List::Kind::kView);
  if (method == MethodId::kGet) {
    US_ASSIGN_OR_RETURN(const bool found, Contains(object, arguments[0]));
    if (found) return *dict.Find(arguments[0]);
    return arguments.size() > 1 ? arguments[1] : Value(None());
  }
  std::vector<Value> values;
  for (const auto& [key, value] : dict.items) {
    values.push_back(method == MethodId::kKeys ? key : value);
  }
  return MakeList(List::Kind::kView, std::move(values));
}

bool IsDictMethod(MethodId method) {
  return method == MethodId::kGet || method == MethodId::kItems || method == MethodId::kKeys ||
         method == MethodId::kValues;
}

}  // namespace

const Signature<FilterId>* FindFilter(std::string_view name) { return Find(kFilters, name); }
const Signature<TestId>* FindTest(std::string_view name) { return Find(kTests, name); }
const Signature<MethodId>* FindMethod(std::string_view name) { return Find(kMethods, name); }
const Signature<FunctionId>* FindFunction(std::string_view name) { return Find(kFunctions, name); }

const Value* Arguments::Keyword(std::string_view name) const {
  for (const auto& [keyword, value] : keywords) {
    if (keyword == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<const Text*> PlainText(const Value& value, std::string_view what) {
  const Text* text = AsText(value);
  if (text == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a string for ", A(what), ", found ", A(DescribeKind(value))));
  }
  if (text->is_markup) {
    return absl::UnimplementedError("what filter \"safe\" made can only be printed");
  }
  return text;
}

absl::StatusOr<Value> ApplyFilter(FilterId filter, const Value& value, const Arguments& arguments) {
  switch (filter) {
    case FilterId::kDefault:
      return Default(value, arguments);
    case FilterId::kDictSort:
      return DictSort(value);
    case FilterId::kFirst:
    case FilterId::kLast:
      return FirstOrLast(value, filter == FilterId::kFirst);
    case FilterId::kItems:
      return Items(value, List::Kind::kGenerator);
    case FilterId::kJoin:
      return Join(arguments.positional.empty() ? MakeLiteral("") : arguments.positional[0], value,
                  true);
    case FilterId::kLength:
      return Length(value);
    case FilterId::kList: {
      US_ASSIGN_OR_RETURN(const auto list, Iterate(value));
      return MakeList(List::Kind::kList, list->items);
    }
    case FilterId::kMap:
      return Map(value, arguments);
    case FilterId::kSelect:
    case FilterId::kReject:
      return Select(value, arguments, false, filter == FilterId::kSelect);
    case FilterId::kSelectAttr:
    case FilterId::kRejectAttr:
      return Select(value, arguments, true, filter == FilterId::kSelectAttr);
    case FilterId::kReverse:
      return Reverse(value);
    case FilterId::kSafe: {
      US_ASSIGN_OR_RETURN(Text text, ToText(value));
      text.is_markup = true;
      return MakeText(std::move(text));
    }
    case FilterId::kString: {
      US_ASSIGN_OR_RETURN(Text text, ToText(value));
      return MakeText(std::move(text));
    }
    case FilterId::kToJson:
      return ToJsonFilter(value, arguments);
    case FilterId::kCapitalize:
    case FilterId::kLower:
    case FilterId::kReplace:
    case FilterId::kTrim:
    case FilterId::kUpper:
      return StringFilter(filter, value, arguments);
  }
  return absl::InternalError("unknown filter");
}

absl::StatusOr<bool> ApplyTest(TestId test, const Value& value,
                               const std::vector<Value>& arguments) {
  const List* list = AsList(value);
  switch (test) {
    case TestId::kBoolean:
      return std::holds_alternative<bool>(value);
    case TestId::kDefined:
      return !IsUndefined(value);
    case TestId::kUndefined:
      return IsUndefined(value);
    case TestId::kNone:
      return IsNone(value);
    case TestId::kTrue:
    case TestId::kFalse:
      return value == Value(test == TestId::kTrue);
    case TestId::kFloat:
      return std::holds_alternative<double>(value);
    case TestId::kInteger:
      return std::holds_alternative<int64_t>(value);
    case TestId::kNumber:
      return std::holds_alternative<bool>(value) || std::holds_alternative<int64_t>(value) ||
             std::holds_alternative<double>(value);
    case TestId::kString:
      return AsText(value) != nullptr;
    case TestId::kMapping:
      return AsDict(value) != nullptr;
    case TestId::kIterable:
      return IsUndefined(value) || AsText(value) != nullptr || AsDict(value) != nullptr ||
             list != nullptr || std::holds_alternative<std::shared_ptr<Loop>>(value);
    case TestId::kSequence:
      return IsUndefined(value) || AsText(value) != nullptr || AsDict(value) != nullptr ||
             (list != nullptr && list->kind != List::Kind::kView &&
              list->kind != List::Kind::kGenerator);
    case TestId::kEqual:
    case TestId::kNotEqual: {
      US_ASSIGN_OR_RETURN(const bool equal, AreEqual(value, arguments[0]));
      return equal == (test == TestId::kEqual);
    }
    case TestId::kLess:
    case TestId::kLessEqual:
    case TestId::kGreater:
    case TestId::kGreaterEqual: {
      US_ASSIGN_OR_RETURN(const int order, Compare(value, arguments[0]));
      return test == TestId::kLess        ? order < 0
             : test == TestId::kLessEqual ? order <= 0
             : test == TestId::kGreater   ? order > 0
                                          : order >= 0;
    }
    case TestId::kIn:
      return Contains(arguments[0], value);
    case TestId::kEven:
    case TestId::kOdd:
    case TestId::kDivisibleBy: {
      const auto* integer = std::get_if<int64_t>(&value);
      const Value divisor = test == TestId::kDivisibleBy ? arguments[0] : Value(int64_t{2});
      const auto* by = std::get_if<int64_t>(&divisor);
      if (integer == nullptr || by == nullptr || *by <= 0) {
        return absl::InvalidArgumentError("this test needs an integer and a divisor above 0");
      }
      return (*integer % *by == 0) == (test != TestId::kOdd);
    }
  }
  return absl::InternalError("unknown test");
}

absl::StatusOr<Value> CallMethod(MethodId method, const Value& object, const Arguments& arguments) {
  const std::vector<Value>& positional = arguments.positional;
  if (IsDictMethod(method)) {
    const Dict* dict = AsDict(object);
    if (dict != nullptr) return CallDictMethod(method, *dict, object, positional);
    return absl::InvalidArgumentError(
        absl::StrCat("expected a dict for this method, found ", A(DescribeKind(object))));
  }
  US_ASSIGN_OR_RETURN(const Text* text, PlainText(object, "this method"));
  absl::StatusOr<Text> result;
  switch (method) {
    case MethodId::kEndsWith:
    case MethodId::kStartsWith: {
      const bool starts = method == MethodId::kStartsWith;
      US_ASSIGN_OR_RETURN(const Text* part, PlainText(positional[0], "a prefix or suffix"));
      return Value(starts ? text->bytes.starts_with(part->bytes)
                          : text->bytes.ends_with(part->bytes));
    }
    case MethodId::kJoin:
      return Join(object, positional[0], false);
    case MethodId::kSplit:
      return Split(*text, positional);
    case MethodId::kReplace:
      result = Replace(*text, positional);
      break;
    case MethodId::kUpper:
      result = Upper(*text);
      break;
    case MethodId::kLower:
      result = Lower(*text);
      break;
    case MethodId::kCapitalize:
      result = Capitalize(*text);
      break;
    default:
      result = Strip(*text, positional,
                     method == MethodId::kStrip    ? StripSides::kBoth
                     : method == MethodId::kLstrip ? StripSides::kLeft
                                                   : StripSides::kRight);
  }
  if (!result.ok()) return result.status();
  return MakeText(*std::move(result));
}

absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name) {
  if (IsUndefined(object)) {
    return absl::InvalidArgumentError(absl::StrCat(Quoted(name), " of an undefined value"));
  }
  if (const auto* space = std::get_if<Namespace*>(&object)) {
    for (const auto& [attribute, value] : (*space)->attributes) {
      if (attribute == name) return value;
    }
    return Value(Undefined());
  }
  if (IsPythonAttribute(object, name)) {
    return absl::UnimplementedError(
        absl::StrCat(Quoted(name), " of ", A(DescribeKind(object)), " is not supported"));
  }
  if (const auto* loop = std::get_if<std::shared_ptr<Loop>>(&object)) {
    return LoopAttribute(**loop, name);
  }
  if (const Dict* dict = AsDict(object)) {
    const Value* found = dict->Find(MakeLiteral(std::string(name)));
    if (found != nullptr) return *found;
  }
  return Value(Undefined());
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key) {
  if (IsUndefined(object)) return absl::InvalidArgumentError("an item of an undefined value");
  if (const Dict* dict = AsDict(object)) {
    const Value* found = dict->Find(key);
    if (found != nullptr) return *found;
  } else if (const Text* text = AsText(object)) {
    const std::vector<size_t> offsets = CodePointOffsets(text->bytes);
    if (const auto index = Index(key, offsets.size() - 1)) {
      US_RETURN_IF_ERROR(PlainText(object, "").status());
      return MakeText(text->Substring(offsets[*index], offsets[*index + 1]));
    }
  } else if (const List* list = AsList(object); list != nullptr &&
                                                list->kind != List::Kind::kView &&
                                                list->kind != List::Kind::kGenerator) {
    if (const auto index = Index(key, list->items.size())) return list->items[*index];
  }
  if (const Text* name = AsText(key)) return GetAttribute(object, name->bytes);
  return Value(Undefined());
}

absl::StatusOr<Value> GetSlice(const Value& object, const Value& begin, const Value& end,
                               const Value& step) {
  const List* list = AsList(object);
  if (AsText(object) != nullptr) {
    US_ASSIGN_OR_RETURN(const Text* text, PlainText(object, ""));
    const std::vector<size_t> offsets = CodePointOffsets(text->bytes);
    US_ASSIGN_OR_RETURN(const SliceBounds bounds,
                        ResolveSlice(begin, end, step, static_cast<int64_t>(offsets.size()) - 1));
    Text part;
    for (int64_t i = bounds.begin; bounds.step > 0 ? i < bounds.end : i > bounds.end;
         i += bounds.step) {
      part.Append(
          text->Substring(offsets[static_cast<size_t>(i)], offsets[static_cast<size_t>(i) + 1]));
    }
    return MakeText(std::move(part));
  }
  if (list == nullptr || list->kind == List::Kind::kView || list->kind == List::Kind::kGenerator) {
    return absl::InvalidArgumentError(absl::StrCat("a slice of ", A(DescribeKind(object))));
  }
  US_ASSIGN_OR_RETURN(const SliceBounds bounds,
                      ResolveSlice(begin, end, step, static_cast<int64_t>(list->items.size())));
  std::vector<Value> items;
  for (int64_t i = bounds.begin; bounds.step > 0 ? i < bounds.end : i > bounds.end;
       i += bounds.step) {
    items.push_back(list->items[static_cast<size_t>(i)]);
  }
  return MakeList(list->kind, std::move(items));
}

}  // namespace ultrasketch::chat_internal
