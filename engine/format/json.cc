#include "engine/format/json.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/git_lfs.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

// Builds the value, and stops at the first thing that ParseJson refuses. nlohmann's own builder
// keeps the last of duplicate keys and nests without bound.
class ValueBuilder : public json::json_sax_t {
 public:
  explicit ValueBuilder(std::string_view text) : text_(text) {}

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary data"); }

  bool start_object(size_t) override { return Open(json::object()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    const auto [position, inserted] = open_.back()->emplace(name, nullptr);
    if (!inserted) return Fail(absl::StrCat("key ", Quoted(name), " occurs twice in an object"));
    member_ = &*position;
    return true;
  }

  bool parse_error(size_t byte, const std::string&, const json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ...": the
    // part in brackets tells a reader nothing, and not all errors say where.
    std::string_view text = error.what();
    for (const std::string_view before : {"] ", "parse error at ", ": "}) {
      const size_t begin = text.find(before);
      if (begin == std::string_view::npos) break;
      text.remove_prefix(begin + before.size());
    }
    return FailAt(byte > 0 ? byte - 1 : 0, Quoted(text, 300));
  }

  // Call it after the parse: nlohmann's parser takes a NUL for the end of the text.
  bool CheckEnd() {
    const size_t nul = text_.find('\0');
    return nul == std::string_view::npos ||
           FailAt(nul, "expected the end of the document, found a NUL byte");
  }

  const std::string& problem() const { return problem_; }
  json TakeValue() { return std::move(root_); }

 private:
  bool FailAt(size_t byte, const std::string& problem) {
    const std::string_view read = text_.substr(0, byte);
    const auto line = 1 + std::count(read.begin(), read.end(), '\n');
    // npos + 1 is 0.
    const size_t column = read.size() - (read.rfind('\n') + 1) + 1;
    return Fail(absl::StrCat("line ", line, ", column ", column, ": not valid JSON: ", problem));
  }

  bool Fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  // The new value's place in what is built.
  template <typename T>
  json* Place(T&& value) {
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) return &parent.emplace_back(std::forward<T>(value));
    *member_ = std::forward<T>(value);
    return member_;
  }

  template <typename T>
  bool Add(T&& value) {
    Place(std::forward<T>(value));
    return true;
  }

  bool Open(json container) {
    if (open_.size() >= kMaxJsonDepth) {
      return Fail(absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels"));
    }
    open_.push_back(Place(std::move(container)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  json root_;
  // Containers that are not complete. Pointers stay valid: a container gets no new sibling before
  // it is closed.
  std::vector<json*> open_;
  json* member_ = nullptr;  // the value of the last key
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view description) {
  US_RETURN_IF_ERROR(RefuseGitLfsPointer(text, description));
  ValueBuilder builder(text);
  if (!json::sax_parse(text, &builder) || !builder.CheckEnd()) {
    return absl::DataLossError(absl::StrCat(A(description), ": ", builder.problem()));
  }
  return builder.TakeValue();
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, int64_t max_bytes) {
  US_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

std::string ReplaceNonFiniteLiterals(std::string_view text,
                                     std::vector<NonFiniteLiteral>& literals) {
  std::string result;
  int64_t line = 1;
  bool in_string = false;
  while (!text.empty()) {
    size_t length = 1;
    if (in_string) {
      if (text[0] == '\\' && text.size() > 1) length = 2;
      if (text[0] == '"') in_string = false;
    } else if (text[0] == '"') {
      in_string = true;
    } else {
      for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
        if (!text.starts_with(word)) continue;
        literals.push_back({word, line});
        result += "null";
        text.remove_prefix(word.size());
        length = 0;
        break;
      }
    }
    const std::string_view copied = text.substr(0, length);
    line += std::count(copied.begin(), copied.end(), '\n');
    result += copied;
    text.remove_prefix(length);
  }
  return result;
}

const json* FindMember(const json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto member = object.find(key);
  return member == object.end() || member->is_null() ? nullptr : &*member;
}

std::string DescribeJson(const json* value) {
  if (value == nullptr) return "nothing";
  switch (value->type()) {
    case json::value_t::string:
      return absl::StrCat("the string ", Quoted(value->get_ref<const std::string&>()));
    case json::value_t::boolean:
      return value->get<bool>() ? "true" : "false";
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
    case json::value_t::number_float:
      return absl::StrCat("the number ", value->dump());
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return "an array";
    default:
      return "null";
  }
}

}  // namespace ultrasketch
