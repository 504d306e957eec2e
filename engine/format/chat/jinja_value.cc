#include "engine/format/chat/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::chat_internal {
namespace {

template <typename T>
bool Is(const Value& value) {
  return std::holds_alternative<T>(value);
}

bool IsNumber(const Value& value) {
  return Is<bool>(value) || Is<int64_t>(value) || Is<double>(value);
}

int64_t IntegerOf(const Value& value) {
  return Is<bool>(value) ? int64_t{std::get<bool>(value)} : std::get<int64_t>(value);
}

// -1, 0 or 1; both are numbers. Integers beyond 2^53 are not compared with real numbers.
absl::StatusOr<int> CompareNumbers(const Value& left, const Value& right) {
  const auto sign = [](auto a, auto b) { return a < b ? -1 : a > b ? 1 : 0; };
  if (!Is<double>(left) && !Is<double>(right)) return sign(IntegerOf(left), IntegerOf(right));
  const auto real = [](const Value& value) {
    return Is<double>(value) ? std::get<double>(value) : static_cast<double>(IntegerOf(value));
  };
  for (const double side : {real(left), real(right)}) {
    if (!(std::abs(side) < 9e15)) {
      return absl::UnimplementedError("numbers of this size are not compared");
    }
  }
  return sign(real(left), real(right));
}

absl::Status NotComparable(const Value& left, const Value& right) {
  return absl::InvalidArgumentError(
      absl::StrCat(A(DescribeKind(left)), " and ", A(DescribeKind(right)), " are not comparable"));
}

absl::StatusOr<bool> AreEqualLists(const List& left, const List& right) {
  for (const List* list : {&left, &right}) {
    if (list->kind != List::Kind::kList && list->kind != List::Kind::kTuple) {
      return absl::UnimplementedError("comparing this kind of sequence is not supported");
    }
  }
  if (left.kind != right.kind || left.items.size() != right.items.size()) return false;
  for (size_t i = 0; i < left.items.size(); ++i) {
    US_ASSIGN_OR_RETURN(const bool equal, AreEqual(left.items[i], right.items[i]));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<bool> AreEqualDicts(const Dict& left, const Dict& right) {
  if (left.items.size() != right.items.size()) return false;
  for (const auto& [key, value] : left.items) {
    const Value* other = right.Find(key);
    if (other == nullptr) return false;
    US_ASSIGN_OR_RETURN(const bool equal, AreEqual(value, *other));
    if (!equal) return false;
  }
  return true;
}

// Keys of dicts and the constants of a template.
bool IsKey(const Value& value) {
  return AsText(value) != nullptr || Is<bool>(value) || Is<int64_t>(value) || IsNone(value);
}

// The index of the item; the number of items when there is none.
size_t FindKey(const Dict& dict, const Value& key) {
  size_t index = 0;
  while (index < dict.items.size()) {
    const absl::StatusOr<bool> equal = AreEqual(dict.items[index].first, key);
    if (equal.ok() && *equal) break;
    ++index;
  }
  return index;
}

void AppendJsonString(const Text& text, Text* out) {
  out->AppendLiteral("\"");
  for (size_t i = 0; i < text.bytes.size(); ++i) {
    const char c = text.bytes[i];
    constexpr std::string_view kEscaped = "\"\\\b\f\n\r\t";
    constexpr std::string_view kLetters = "\"\\bfnrt";
    if (const size_t found = kEscaped.find(c); found != std::string_view::npos) {
      const char escape[] = {'\\', kLetters[found]};
      out->AppendAs(std::string_view(escape, 2), text, i, i + 1);
    } else if (static_cast<uint8_t>(c) < 0x20) {
      out->AppendAs(absl::StrFormat("\\u%04x", c), text, i, i + 1);
    } else {
      out->AppendAs(std::string_view(&c, 1), text, i, i + 1);
    }
  }
  out->AppendLiteral("\"");
}

class JsonWriter {
 public:
  explicit JsonWriter(int64_t indent) : indent_(indent) {}

  absl::Status Write(const Value& value, int depth) {
    US_RETURN_IF_ERROR(CheckTextSize(out_.bytes.size()));
    if (const Text* text = AsText(value)) {
      AppendJsonString(*text, &out_);
    } else if (const Dict* dict = AsDict(value)) {
      return WriteDict(*dict, depth);
    } else if (const List* list = AsList(value)) {
      return WriteList(*list, depth);
    } else if (IsNone(value)) {
      out_.AppendLiteral("null");
    } else if (Is<bool>(value)) {
      out_.AppendLiteral(std::get<bool>(value) ? "true" : "false");
    } else if (Is<int64_t>(value)) {
      out_.AppendLiteral(absl::StrCat(std::get<int64_t>(value)));
    } else if (Is<double>(value)) {
      return absl::UnimplementedError("printing real numbers is not supported");
    } else {
      return absl::InvalidArgumentError(absl::StrCat("no JSON for ", A(DescribeKind(value))));
    }
    return absl::OkStatus();
  }

  Text Finish() { return std::move(out_); }

 private:
  absl::Status WriteDict(const Dict& dict, int depth) {
    if (dict.items.empty()) {
      out_.AppendLiteral("{}");
      return absl::OkStatus();
    }
    std::string_view separator = "{";
    for (const auto& [key, value] : dict.items) {
      if (AsText(key) == nullptr) {
        return absl::UnimplementedError("JSON of dicts whose keys are not strings");
      }
      Separate(separator, depth + 1);
      separator = indent_ < 0 ? ", " : ",";
      AppendJsonString(*AsText(key), &out_);
      out_.AppendLiteral(": ");
      US_RETURN_IF_ERROR(Write(value, depth + 1));
    }
    if (indent_ >= 0) NewLine(depth);
    out_.AppendLiteral("}");
    return absl::OkStatus();
  }

  absl::Status WriteList(const List& list, int depth) {
    if (list.kind != List::Kind::kList && list.kind != List::Kind::kTuple) {
      return absl::InvalidArgumentError("no JSON for this kind of sequence");
    }
    if (list.items.empty()) {
      out_.AppendLiteral("[]");
      return absl::OkStatus();
    }
    std::string_view separator = "[";
    for (const Value& value : list.items) {
      Separate(separator, depth + 1);
      separator = indent_ < 0 ? ", " : ",";
      US_RETURN_IF_ERROR(Write(value, depth + 1));
    }
    if (indent_ >= 0) NewLine(depth);
    out_.AppendLiteral("]");
    return absl::OkStatus();
  }

  void Separate(std::string_view separator, int depth) {
    out_.AppendLiteral(separator);
    if (indent_ >= 0) NewLine(depth);
  }
  void NewLine(int depth) {
    out_.AppendLiteral("\n");
    out_.AppendLiteral(std::string(static_cast<size_t>(depth * indent_), ' '));
  }

  const int64_t indent_;
  Text out_;
};

int Height(const Value& value) {
  if (const List* list = AsList(value)) return list->height;
  if (const Dict* dict = AsDict(value)) return dict->height;
  return 0;
}

absl::Status CheckHeight(int height) {
  if (height <= kMaxValueHeight) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("values are nested deeper than ", kMaxValueHeight));
}

}  // namespace

const Value* Dict::Find(const Value& key) const {
  if (!IsKey(key)) return nullptr;
  const size_t index = FindKey(*this, key);
  return index < items.size() ? &items[index].second : nullptr;
}

absl::Status CheckTextSize(size_t num_bytes) {
  if (num_bytes <= kMaxTextBytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("a text grows beyond ", HumanBytes(kMaxTextBytes)));
}

Value MakeText(Text text) { return std::make_shared<const Text>(std::move(text)); }
Value MakeLiteral(std::string text) { return MakeText(Text::Literal(std::move(text))); }

absl::StatusOr<Value> MakeList(List::Kind kind, std::vector<Value> items) {
  List list;
  list.kind = kind;
  for (const Value& item : items) list.height = std::max(list.height, Height(item) + 1);
  list.items = std::move(items);
  US_RETURN_IF_ERROR(CheckHeight(list.height));
  return std::make_shared<const List>(std::move(list));
}

absl::StatusOr<Value> MakeDict(std::vector<std::pair<Value, Value>> items) {
  Dict dict;
  for (auto& [key, value] : items) {
    if (!IsKey(key)) {
      return absl::UnimplementedError(
          absl::StrCat(A(DescribeKind(key)), " as a key of a dict is not supported"));
    }
    dict.height = std::max(dict.height, Height(value) + 1);
    const size_t index = FindKey(dict, key);
    if (index < dict.items.size()) {
      dict.items[index].second = std::move(value);
    } else {
      dict.items.emplace_back(std::move(key), std::move(value));
    }
  }
  US_RETURN_IF_ERROR(CheckHeight(dict.height));
  return std::make_shared<const Dict>(std::move(dict));
}

const Text* AsText(const Value& value) {
  const auto* text = std::get_if<std::shared_ptr<const Text>>(&value);
  return text == nullptr ? nullptr : text->get();
}

const List* AsList(const Value& value) {
  const auto* list = std::get_if<std::shared_ptr<const List>>(&value);
  return list == nullptr ? nullptr : list->get();
}

const Dict* AsDict(const Value& value) {
  const auto* dict = std::get_if<std::shared_ptr<const Dict>>(&value);
  return dict == nullptr ? nullptr : dict->get();
}

bool IsUndefined(const Value& value) { return Is<Undefined>(value); }
bool IsNone(const Value& value) { return Is<None>(value); }

std::string_view DescribeKind(const Value& value) {
  if (const List* list = AsList(value)) {
    constexpr std::string_view kNames[] = {"a list", "a tuple", "a range", "a view of a dict",
                                           "a generator"};
    return kNames[static_cast<size_t>(list->kind)];
  }
  constexpr std::string_view kNames[] = {"an undefined value",
                                         "none",
                                         "a boolean",
                                         "an integer",
                                         "a real number",
                                         "a string",
                                         "a list",
                                         "a dict",
                                         "a loop",
                                         "a namespace",
                                         "a macro",
                                         "a function"};
  return kNames[value.index()];
}

bool IsTrue(const Value& value) {
  if (IsUndefined(value) || IsNone(value)) return false;
  if (Is<double>(value)) return std::get<double>(value) != 0;
  if (IsNumber(value)) return IntegerOf(value) != 0;
  if (const Text* text = AsText(value)) return !text->bytes.empty();
  if (const Dict* dict = AsDict(value)) return !dict->items.empty();
  if (const List* list = AsList(value)) {
    return list->kind == List::Kind::kGenerator || !list->items.empty();
  }
  if (Is<std::shared_ptr<Loop>>(value)) {
    return !std::get<std::shared_ptr<Loop>>(value)->list->items.empty();
  }
  return true;
}

absl::StatusOr<bool> AreEqual(const Value& left, const Value& right) {
  if (IsNumber(left) && IsNumber(right)) {
    US_ASSIGN_OR_RETURN(const int order, CompareNumbers(left, right));
    return order == 0;
  }
  if (left.index() != right.index()) return false;
  if (IsUndefined(left) || IsNone(left)) return true;
  if (AsText(left) != nullptr) return AsText(left)->bytes == AsText(right)->bytes;
  if (AsList(left) != nullptr) return AreEqualLists(*AsList(left), *AsList(right));
  if (AsDict(left) != nullptr) return AreEqualDicts(*AsDict(left), *AsDict(right));
  return left == right;  // the same object
}

absl::StatusOr<int> Compare(const Value& left, const Value& right) {
  if (IsNumber(left) && IsNumber(right)) return CompareNumbers(left, right);
  if (AsText(left) == nullptr || AsText(right) == nullptr) return NotComparable(left, right);
  return AsText(left)->bytes.compare(AsText(right)->bytes);
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item) {
  if (IsUndefined(container)) return false;
  if (const Text* text = AsText(container)) {
    const Text* part = AsText(item);
    if (part == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"in\" a string needs a string, found ", A(DescribeKind(item))));
    }
    return text->bytes.find(part->bytes) != std::string::npos;
  }
  if (const Dict* dict = AsDict(container)) {
    if (!IsKey(item)) {
      return absl::UnimplementedError(
          absl::StrCat(A(DescribeKind(item)), " as a key of a dict is not supported"));
    }
    return dict->Find(item) != nullptr;
  }
  US_ASSIGN_OR_RETURN(const std::shared_ptr<const List> list, Iterate(container));
  for (const Value& other : list->items) {
    US_ASSIGN_OR_RETURN(const bool equal, AreEqual(other, item));
    if (equal) return true;
  }
  return false;
}

absl::StatusOr<Text> ToText(const Value& value) {
  if (const Text* text = AsText(value)) return *text;
  if (IsUndefined(value)) return Text();
  if (IsNone(value)) return Text::Literal("None");
  if (Is<bool>(value)) return Text::Literal(std::get<bool>(value) ? "True" : "False");
  if (Is<int64_t>(value)) return Text::Literal(absl::StrCat(std::get<int64_t>(value)));
  return absl::UnimplementedError(
      absl::StrCat("printing ", A(DescribeKind(value)), " is not supported"));
}

absl::StatusOr<std::shared_ptr<const List>> Iterate(const Value& value) {
  auto list = std::make_shared<List>();
  if (const Text* text = AsText(value)) {
    const std::vector<size_t> offsets = CodePointOffsets(text->bytes);
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      list->items.push_back(MakeText(text->Substring(offsets[i], offsets[i + 1])));
    }
  } else if (const Dict* dict = AsDict(value)) {
    for (const auto& item : dict->items) list->items.push_back(item.first);
  } else if (const List* other = AsList(value)) {
    if (!other->error.ok()) return other->error;
    if (other->kind == List::Kind::kGenerator && std::exchange(other->spent, true)) {
      return absl::UnimplementedError("a generator is gone through twice: make it a list");
    }
    return std::get<std::shared_ptr<const List>>(value);
  } else if (!IsUndefined(value)) {
    return absl::InvalidArgumentError(
        absl::StrCat(A(DescribeKind(value)), " cannot be gone through"));
  }
  return list;
}

absl::StatusOr<Text> ToJson(const Value& value, int64_t indent) {
  JsonWriter writer(indent);
  US_RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Finish();
}

}  // namespace ultrasketch::chat_internal
