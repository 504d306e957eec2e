#include "engine/format/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/base/tensor.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

constexpr std::string_view kMetadataKey = "__metadata__";

// More than any tensor has; bounds what a hostile shape costs.
constexpr size_t kMaxDimensions = 64;

// Types of the format that DType lacks.
struct UnsupportedDType {
  std::string_view name;
  int bits;
};
constexpr std::array<UnsupportedDType, 9> kUnsupportedDTypes = {{{"F8_E4M3", 8},
                                                                 {"F8_E5M2", 8},
                                                                 {"F8_E8M0", 8},
                                                                 {"F8_E4M3FNUZ", 8},
                                                                 {"F8_E5M2FNUZ", 8},
                                                                 {"F6_E2M3", 6},
                                                                 {"F6_E3M2", 6},
                                                                 {"F4", 4},
                                                                 {"C64", 64}}};

const UnsupportedDType* FindUnsupportedDType(std::string_view name) {
  const auto* const found =
      std::find_if(kUnsupportedDTypes.begin(), kUnsupportedDTypes.end(),
                   [name](const UnsupportedDType& dtype) { return dtype.name == name; });
  return found == kUnsupportedDTypes.end() ? nullptr : found;
}

constexpr std::string_view kEntryKeys = "\"dtype\", \"shape\" and \"data_offsets\"";

// Reads the header as events, so that a header of 100 MB costs no tree of JSON values and the
// first unexpected value ends the parse. The header is an object of objects of values that are at
// most arrays of numbers: `level_` says where in that the parser is.
class HeaderReader : public json::json_sax_t {
 public:
  explicit HeaderReader(std::string_view path) : path_(path) {}

  bool null() override { return Unexpected("null"); }
  bool boolean(bool value) override { return Unexpected(value ? "true" : "false"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }
  bool number_integer(number_integer_t value) override {
    return Unexpected(absl::StrCat("the number ", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Unexpected(absl::StrCat("the number ", text));
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != Level::kShape && level_ != Level::kOffsets) {
      return Unexpected(absl::StrCat("the number ", value));
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat(Quoted(field_), ": expected numbers below 2^63, found ", value));
    }
    std::vector<int64_t>& numbers = level_ == Level::kShape ? entry_.shape : offsets_;
    const size_t most = level_ == Level::kShape ? kMaxDimensions : 2;
    if (numbers.size() == most) {
      return Fail(
          absl::StrCat(Quoted(field_), ": expected at most ", most, " numbers, found more"));
    }
    numbers.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (level_ == Level::kMetadata) {
      header_.metadata[field_] = std::move(value);
      return true;
    }
    if (level_ != Level::kEntry || field_ != "dtype") return Unexpected("a string");
    if (const std::optional<DType> dtype = DTypeFromName(value)) {
      entry_.dtype = *dtype;
      return true;
    }
    if (FindUnsupportedDType(value) != nullptr) {
      entry_.unsupported_dtype = std::move(value);
      return true;
    }
    return Fail(absl::StrCat("expected a dtype of the format (\"BF16\", \"F32\", ...), found ",
                             Quoted(value)));
  }

  bool start_object(size_t) override {
    if (level_ == Level::kStart) {
      level_ = Level::kHeader;
      return true;
    }
    if (level_ != Level::kHeader) return Unexpected("an object");
    if (entry_.name == kMetadataKey) {
      level_ = Level::kMetadata;
    } else {
      level_ = Level::kEntry;
      offsets_.clear();
      seen_.clear();
    }
    return true;
  }

  bool key(string_t& name) override {
    if (level_ == Level::kHeader) {
      entry_ = {};
      entry_.name = std::move(name);
      if (entry_.name.empty()) return Fail("expected a name, found an empty one");
      if (!names_.insert(entry_.name).second) return Fail("occurs twice in the header");
      return true;
    }
    field_ = std::move(name);
    if (level_ == Level::kMetadata) {
      if (header_.metadata.count(field_) == 0) return true;
      return Fail(absl::StrCat("key ", Quoted(field_), " occurs twice"));
    }
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets") {
      return Fail(absl::StrCat("expected the keys ", A(kEntryKeys), ", found ", Quoted(field_)));
    }
    if (std::find(seen_.begin(), seen_.end(), field_) != seen_.end()) {
      return Fail(absl::StrCat("key ", Quoted(field_), " occurs twice"));
    }
    seen_.push_back(field_);
    return true;
  }

  bool end_object() override {
    if (level_ == Level::kEntry && !FinishEntry()) return false;
    level_ = level_ == Level::kHeader ? Level::kStart : Level::kHeader;
    return true;
  }

  bool start_array(size_t) override {
    if (level_ != Level::kEntry || field_ == "dtype") return Unexpected("an array");
    level_ = field_ == "shape" ? Level::kShape : Level::kOffsets;
    return true;
  }

  bool end_array() override {
    level_ = Level::kEntry;
    return true;
  }

  bool parse_error(size_t byte, const std::string&, const json::exception& error) override {
    std::string_view text = error.what();
    if (const size_t end = text.find("] "); end != std::string_view::npos) {
      text.remove_prefix(end + 2);
    }
    status_ = absl::DataLossError(absl::StrCat(A(path_), ": header is not valid JSON at byte ",
                                               byte, ": ", Quoted(text, 300)));
    return false;
  }

  const absl::Status& status() const { return status_; }
  SafetensorsHeader TakeHeader() { return std::move(header_); }

 private:
  enum class Level { kStart, kHeader, kMetadata, kEntry, kShape, kOffsets };

  bool Fail(const std::string& problem) {
    status_ = absl::DataLossError(
        absl::StrCat(A(path_), ": tensor ", Quoted(entry_.name, 200), ": ", problem));
    return false;
  }

  bool Unexpected(const std::string& found) {
    switch (level_) {
      case Level::kStart:
        status_ = absl::DataLossError(
            absl::StrCat(A(path_), ": expected a header that is a JSON object, found ", found));
        return false;
      case Level::kHeader:
        return Fail(absl::StrCat("expected an object, found ", found));
      case Level::kMetadata:
        return Fail(absl::StrCat(Quoted(field_), ": expected a string, found ", found));
      case Level::kEntry:
        return Fail(
            absl::StrCat(Quoted(field_), ": expected ",
                         field_ == "dtype" ? "a string" : "an array of non-negative integers",
                         ", found ", found));
      case Level::kShape:
      case Level::kOffsets:
        return Fail(
            absl::StrCat(Quoted(field_), ": expected non-negative integers, found ", found));
    }
    return false;
  }

  // Checks the tensor whose description is complete and adds it to the header.
  bool FinishEntry() {
    for (const char* required : {"dtype", "shape", "data_offsets"}) {
      if (std::find(seen_.begin(), seen_.end(), required) == seen_.end()) {
        return Fail(
            absl::StrCat("expected the keys ", A(kEntryKeys), ", found no ", Quoted(required)));
      }
    }
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) {
      return Fail(absl::StrCat("expected data offsets [begin, end] with begin <= end, found ",
                               ShapeString(offsets_)));
    }
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    const UnsupportedDType* const unsupported = FindUnsupportedDType(entry_.unsupported_dtype);
    const std::string type =
        absl::StrCat(A(unsupported != nullptr ? unsupported->name : DTypeName(entry_.dtype)), " ",
                     ShapeString(entry_.shape));
    int64_t num_bytes = 0;
    if (unsupported == nullptr) {
      num_bytes = CheckedTensorBytes(entry_.shape, ElementBytes(entry_.dtype));
    } else {
      const int64_t num_bits = CheckedTensorBytes(entry_.shape, unsupported->bits);
      if (num_bits > 0 && num_bits % 8 != 0) {
        return Fail(absl::StrCat("expected whole bytes, found ", type, ", ", num_bits, " bits"));
      }
      num_bytes = num_bits < 0 ? num_bits : num_bits / 8;
    }
    if (num_bytes < 0) {
      return Fail(absl::StrCat("expected a size below 2^63 bytes, found ", type));
    }
    if (num_bytes != entry_.end - entry_.begin) {
      return Fail(absl::StrCat("expected ", num_bytes, " bytes for ", type, ", found data offsets ",
                               ShapeString(offsets_), ", ", entry_.end - entry_.begin, " bytes"));
    }
    header_.entries.push_back(entry_);
    return true;
  }

  const std::string_view path_;
  Level level_ = Level::kStart;
  absl::flat_hash_set<std::string> names_;
  std::string field_;              // the last key within the current entry
  std::vector<std::string> seen_;  // its keys so far
  std::vector<int64_t> offsets_;
  SafetensorsHeaderEntry entry_;
  SafetensorsHeader header_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text,
                                                         std::string_view path) {
  HeaderReader reader(path);
  if (!json::sax_parse(text, &reader)) return reader.status();
  // nlohmann's parser takes a NUL for the end of the text.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return absl::DataLossError(absl::StrCat(A(path), ": header is not valid JSON at byte ", nul + 1,
                                            ": expected its end, found a NUL byte"));
  }
  return reader.TakeHeader();
}

int64_t CheckedTensorBytes(const std::vector<int64_t>& shape, int element_bytes) {
  // A zero anywhere makes the tensor empty, however large the other extents are.
  bool empty = false;
  for (const int64_t extent : shape) {
    if (extent < 0) return -1;
    empty = empty || extent == 0;
  }
  int64_t bytes = empty ? 0 : element_bytes;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return -1;
  }
  return bytes;
}

}  // namespace ultrasketch
