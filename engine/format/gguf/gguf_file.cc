#include "engine/format/gguf/gguf_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/tensor.h"

namespace ultrasketch {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = int64_t{1} << 30;
constexpr int64_t kMaxKeyBytes = 65535;
constexpr int64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDimensions = 4;

// The fewest bytes that a key with its value, and a tensor's description, take: what bounds counts
// before anything is allocated for them.
constexpr int64_t kLeastValueBytes = 8 + 1 + 4 + 1;
constexpr int64_t kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

struct TypeInfo {
  const char* name;
  int bytes;  // 0: of no fixed size
};

// By number.
constexpr TypeInfo kTypes[] = {{"uint8", 1},  {"int8", 1},  {"uint16", 2},  {"int16", 2},
                               {"uint32", 4}, {"int32", 4}, {"float32", 4}, {"bool", 1},
                               {"string", 0}, {"array", 0}, {"uint64", 8},  {"int64", 8},
                               {"float64", 8}};
constexpr uint32_t kNumTypes = std::size(kTypes);

const TypeInfo& InfoOf(GgufValueType type) { return kTypes[static_cast<uint32_t>(type)]; }

template <typename T>
T Load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

}  // namespace

int64_t GgufTensor::num_elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

// Reads a file from its beginning to its first tensor.
class GgufParser {
 public:
  GgufParser(std::string_view bytes, GgufFile& file)
      : begin_(reinterpret_cast<const uint8_t*>(bytes.data())),
        size_(static_cast<int64_t>(bytes.size())),
        file_(file) {}

  absl::Status Parse() {
    US_RETURN_IF_ERROR(ReadVersion());
    int64_t num_tensors = 0;
    int64_t num_values = 0;
    US_RETURN_IF_ERROR(ReadCount("tensors", &num_tensors));
    US_RETURN_IF_ERROR(ReadCount("keys", &num_values));
    US_RETURN_IF_ERROR(CheckCount("keys", num_values, kLeastValueBytes));
    for (int64_t i = 0; i < num_values; ++i) US_RETURN_IF_ERROR(ReadValue());
    US_RETURN_IF_ERROR(CheckCount("tensors", num_tensors, kLeastTensorBytes));
    US_RETURN_IF_ERROR(ReadAlignment());
    for (int64_t i = 0; i < num_tensors; ++i) US_RETURN_IF_ERROR(ReadTensor());
    return PlaceTensors();
  }

 private:
  absl::Status Error(const std::string& problem) const {
    return absl::DataLossError(absl::StrCat(file_.path_, ": ", problem));
  }

  int64_t remaining() const { return size_ - position_; }

  // `what` is read from the file; the message for a file that ends before.
  absl::Status Truncated(std::string_view what, int64_t expected) const {
    return Error(absl::StrCat(A(what), ": expected ", expected, " bytes at offset ", position_,
                              ", found ", remaining(), ": truncated or corrupt"));
  }

  template <typename T>
  absl::Status Read(std::string_view what, T* value) {
    if (remaining() < static_cast<int64_t>(sizeof(T))) return Truncated(what, sizeof(T));
    *value = Load<T>(begin_ + position_);
    position_ += sizeof(T);
    return absl::OkStatus();
  }

  absl::Status ReadString(std::string_view what, int64_t most, std::string_view* text) {
    uint64_t length = 0;
    US_RETURN_IF_ERROR(Read(what, &length));
    if (length > static_cast<uint64_t>(most)) {
      return Error(absl::StrCat(A(what), ": expected a string of at most ", most,
                                " bytes, found a length of ", length));
    }
    if (static_cast<int64_t>(length) > remaining()) {
      return Truncated(what, static_cast<int64_t>(length));
    }
    *text = std::string_view(reinterpret_cast<const char*>(begin_ + position_), length);
    position_ += static_cast<int64_t>(length);
    return absl::OkStatus();
  }

  absl::Status ReadVersion() {
    if (size_ < static_cast<int64_t>(kMagic.size()) ||
        std::memcmp(begin_, kMagic.data(), kMagic.size()) != 0) {
      const auto shown = static_cast<size_t>(std::min<int64_t>(size_, 4));
      return Error(
          absl::StrCat("expected a file that begins with \"GGUF\", found ",
                       Quoted(std::string_view(reinterpret_cast<const char*>(begin_), shown))));
    }
    position_ = static_cast<int64_t>(kMagic.size());
    US_RETURN_IF_ERROR(Read("version", &file_.version_));
    if (file_.version_ == 2 || file_.version_ == 3) return absl::OkStatus();
    if ((file_.version_ & 0xffff) == 0 && file_.version_ != 0) {
      return absl::UnimplementedError(
          absl::StrCat(file_.path_, ": big-endian GGUF files are not supported"));
    }
    return absl::UnimplementedError(absl::StrCat(file_.path_, ": version ", file_.version_,
                                                 " of GGUF is not supported; 2 and 3 are"));
  }

  absl::Status ReadCount(std::string_view what, int64_t* count) {
    uint64_t number = 0;
    US_RETURN_IF_ERROR(Read(absl::StrCat("number of ", A(what)), &number));
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Error(
          absl::StrCat("number of ", A(what), ": expected less than 2^63, found ", number));
    }
    *count = static_cast<int64_t>(number);
    return absl::OkStatus();
  }

  absl::Status CheckCount(std::string_view what, int64_t count, int64_t least_bytes) const {
    if (count <= remaining() / least_bytes) return absl::OkStatus();
    return Error(absl::StrCat("number of ", A(what), ": expected at most ",
                              remaining() / least_bytes, ", which fit into the ", remaining(),
                              " bytes that follow, found ", count));
  }

  absl::Status ReadType(const std::string& what, GgufValueType* type) {
    uint32_t number = 0;
    US_RETURN_IF_ERROR(Read(what, &number));
    if (number >= kNumTypes) {
      return Error(
          absl::StrCat(what, ": expected a type from 0 to ", kNumTypes - 1, ", found ", number));
    }
    *type = static_cast<GgufValueType>(number);
    return absl::OkStatus();
  }

  absl::Status ReadValue() {
    std::string_view key;
    US_RETURN_IF_ERROR(ReadString(absl::StrCat("key ", file_.values_.size()), kMaxKeyBytes, &key));
    if (key.empty()) {
      return Error(absl::StrCat("key ", file_.values_.size(), ": expected a name, found none"));
    }
    const std::string what = absl::StrCat("key ", Quoted(key, 200));
    const auto [entry, is_new] = file_.values_.try_emplace(std::string(key));
    if (!is_new) return Error(absl::StrCat(what, " occurs twice"));
    GgufFile::Value& value = entry->second;
    US_RETURN_IF_ERROR(ReadType(what, &value.type));
    if (value.type == GgufValueType::kArray) {
      value.is_array = true;
      US_RETURN_IF_ERROR(ReadType(what, &value.type));
      if (value.type == GgufValueType::kArray) {
        return absl::UnimplementedError(
            absl::StrCat(file_.path_, ": ", what, ": arrays of arrays are not supported"));
      }
      uint64_t count = 0;
      US_RETURN_IF_ERROR(Read(what, &count));
      const int element_bytes = value.type == GgufValueType::kString ? 8 : InfoOf(value.type).bytes;
      if (count > static_cast<uint64_t>(remaining() / element_bytes)) {
        return Error(absl::StrCat(what, ": expected an array of at most ",
                                  remaining() / element_bytes, " elements of type ",
                                  InfoOf(value.type).name, ", which fit into the ", remaining(),
                                  " bytes that follow, found ", count));
      }
      value.count = static_cast<int64_t>(count);
    }
    if (value.type == GgufValueType::kString) {
      value.strings.resize(static_cast<size_t>(value.count));
      for (std::string_view& text : value.strings) {
        US_RETURN_IF_ERROR(ReadString(what, size_, &text));
      }
      return absl::OkStatus();
    }
    const int64_t num_bytes = value.count * InfoOf(value.type).bytes;
    if (num_bytes > remaining()) return Truncated(what, num_bytes);
    value.data = begin_ + position_;
    position_ += num_bytes;
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    US_ASSIGN_OR_RETURN(const auto alignment, file_.Integer(kAlignmentKey, 1, kMaxAlignment));
    alignment_ = alignment.value_or(kDefaultAlignment);
    if ((alignment_ & (alignment_ - 1)) == 0) return absl::OkStatus();
    return file_.ValueError(kAlignmentKey, "a power of two");
  }

  absl::Status ReadTensor() {
    std::string_view name;
    US_RETURN_IF_ERROR(
        ReadString(absl::StrCat("tensor ", file_.tensors_.size()), kMaxTensorNameBytes, &name));
    const std::string what = absl::StrCat("tensor ", Quoted(name, 200));
    if (name.empty()) {
      return Error(absl::StrCat("tensor ", file_.tensors_.size(), ": expected a name, found none"));
    }
    if (!tensor_names_.insert(std::string(name)).second) {
      return Error(absl::StrCat(what, " occurs twice"));
    }
    GgufTensor tensor;
    tensor.name = std::string(name);
    uint32_t num_dimensions = 0;
    US_RETURN_IF_ERROR(Read(what, &num_dimensions));
    if (num_dimensions < 1 || num_dimensions > kMaxDimensions) {
      return Error(absl::StrCat(what, ": expected 1 to ", kMaxDimensions, " dimensions, found ",
                                num_dimensions));
    }
    for (uint32_t i = 0; i < num_dimensions; ++i) {
      uint64_t extent = 0;
      US_RETURN_IF_ERROR(Read(what, &extent));
      if (extent < 1 || extent > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Error(absl::StrCat(what, ": expected extents from 1 to 2^63 - 1, found ", extent));
      }
      tensor.shape.push_back(static_cast<int64_t>(extent));
    }
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    uint32_t type = 0;
    US_RETURN_IF_ERROR(Read(what, &type));
    tensor.type = FindGgmlType(type);
    if (tensor.type == nullptr) {
      return absl::UnimplementedError(absl::StrCat(file_.path_, ": ", what, ": type ", type,
                                                   " of ggml is not supported; supported are ",
                                                   SupportedGgmlTypes()));
    }
    US_RETURN_IF_ERROR(CheckSize(what, tensor));
    uint64_t offset = 0;
    US_RETURN_IF_ERROR(Read(what, &offset));
    offsets_.push_back(offset);
    file_.tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  // That the tensor's rows are whole blocks, and that its size fits in an int64.
  absl::Status CheckSize(const std::string& what, const GgufTensor& tensor) const {
    const GgmlType& type = *tensor.type;
    if (tensor.shape.back() % type.block_elements != 0) {
      return Error(absl::StrCat(what, ": expected rows of a multiple of ", type.block_elements,
                                " elements, the block of ", A(type.name), ", found ",
                                ShapeString(tensor.shape)));
    }
    int64_t bytes = tensor.shape.back() / type.block_elements;
    int64_t elements = tensor.shape.back();
    bool overflows = __builtin_mul_overflow(bytes, int64_t{type.block_bytes}, &bytes);
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
      overflows = __builtin_mul_overflow(bytes, tensor.shape[i], &bytes) || overflows;
      overflows = __builtin_mul_overflow(elements, tensor.shape[i], &elements) || overflows;
    }
    if (!overflows) return absl::OkStatus();
    return Error(absl::StrCat(what, ": expected a size below 2^63, found ", A(type.name), " ",
                              ShapeString(tensor.shape)));
  }

  // Each tensor begins where the one before it ends, rounded up to the alignment: so ggml writes
  // them, and demands it. That excludes overlaps, holes and misaligned data.
  absl::Status PlaceTensors() {
    if (file_.tensors_.empty()) return absl::OkStatus();
    const int64_t data_begin = (position_ + alignment_ - 1) / alignment_ * alignment_;
    const int64_t data_bytes = size_ - data_begin;
    int64_t expected = 0;
    for (size_t i = 0; i < file_.tensors_.size(); ++i) {
      GgufTensor& tensor = file_.tensors_[i];
      const std::string what = absl::StrCat("tensor ", Quoted(tensor.name, 200));
      if (offsets_[i] != static_cast<uint64_t>(expected)) {
        return Error(absl::StrCat(what, ": expected data at offset ", expected,
                                  ", after the tensor before it and aligned to ", alignment_,
                                  " bytes, found ", offsets_[i]));
      }
      const int64_t num_bytes = tensor.num_bytes();
      if (num_bytes > data_bytes - expected) {
        return Error(absl::StrCat(what, ": expected ", num_bytes, " bytes of data at offset ",
                                  expected, ", found ", std::max<int64_t>(data_bytes - expected, 0),
                                  ": truncated or corrupt"));
      }
      tensor.data = begin_ + data_begin + expected;
      // At most a file's size and an alignment: no overflow.
      expected = (expected + num_bytes + alignment_ - 1) / alignment_ * alignment_;
    }
    return absl::OkStatus();
  }

  const uint8_t* const begin_;
  const int64_t size_;
  GgufFile& file_;
  int64_t position_ = 0;
  int64_t alignment_ = kDefaultAlignment;
  absl::flat_hash_set<std::string> tensor_names_;
  std::vector<uint64_t> offsets_;  // of file_.tensors_, from the beginning of the data
};

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> mapped, MappedFile::Open(path));
  const std::string_view bytes(reinterpret_cast<const char*>(mapped->data()),
                               static_cast<size_t>(mapped->size()));
  US_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, Parse(bytes, path));
  file->file_ = std::move(mapped);
  return file;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(std::string_view bytes,
                                                          std::string description) {
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->path_ = std::move(description);
  US_RETURN_IF_ERROR(GgufParser(bytes, *file).Parse());
  return file;
}

const GgufFile::Value* GgufFile::Find(std::string_view key) const {
  const auto found = values_.find(A(key));
  return found == values_.end() ? nullptr : &found->second;
}

std::string GgufFile::Describe(const Value* value) {
  if (value == nullptr) return "nothing";
  if (value->is_array) {
    return absl::StrCat("an array of ", value->count, " of type ", InfoOf(value->type).name);
  }
  if (value->type == GgufValueType::kString) {
    return absl::StrCat("the string ", Quoted(value->strings[0]));
  }
  if (value->type == GgufValueType::kBool) return *value->data != 0 ? "true" : "false";
  if (value->type == GgufValueType::kUint64) {
    return absl::StrCat("the number ", Load<uint64_t>(value->data));
  }
  if (const auto integer = IntegerAt(*value, 0)) return absl::StrCat("the number ", *integer);
  return absl::StrCat("the number ", *NumberAt(*value, 0));
}

std::optional<int64_t> GgufFile::IntegerAt(const Value& value, int64_t index) {
  if (value.data == nullptr) return std::nullopt;
  const uint8_t* bytes = value.data + index * InfoOf(value.type).bytes;
  switch (value.type) {
    case GgufValueType::kUint8:
      return Load<uint8_t>(bytes);
    case GgufValueType::kInt8:
      return Load<int8_t>(bytes);
    case GgufValueType::kUint16:
      return Load<uint16_t>(bytes);
    case GgufValueType::kInt16:
      return Load<int16_t>(bytes);
    case GgufValueType::kUint32:
      return Load<uint32_t>(bytes);
    case GgufValueType::kInt32:
      return Load<int32_t>(bytes);
    case GgufValueType::kInt64:
      return Load<int64_t>(bytes);
    case GgufValueType::kUint64: {
      const auto number = Load<uint64_t>(bytes);
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(number);
    }
    case GgufValueType::kFloat32:
    case GgufValueType::kFloat64:
    case GgufValueType::kBool:
    case GgufValueType::kString:
    case GgufValueType::kArray:
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<double> GgufFile::NumberAt(const Value& value, int64_t index) {
  if (value.data == nullptr) return std::nullopt;
  const uint8_t* bytes = value.data + index * InfoOf(value.type).bytes;
  if (value.type == GgufValueType::kFloat32) return Load<float>(bytes);
  if (value.type == GgufValueType::kFloat64) return Load<double>(bytes);
  if (value.type == GgufValueType::kUint64) return static_cast<double>(Load<uint64_t>(bytes));
  const std::optional<int64_t> integer = IntegerAt(value, index);
  if (!integer.has_value()) return std::nullopt;
  return static_cast<double>(*integer);
}

absl::StatusOr<std::optional<int64_t>> GgufFile::Integer(std::string_view key, int64_t least,
                                                         int64_t most) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const auto integer = value->is_array ? std::nullopt : IntegerAt(*value, 0);
  if (!integer.has_value() || *integer < least || *integer > most) {
    return ValueError(key, absl::StrCat("an integer from ", least, " to ", most));
  }
  return integer;
}

absl::StatusOr<std::optional<double>> GgufFile::Number(std::string_view key, double least,
                                                       double most) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const auto number = value->is_array ? std::nullopt : NumberAt(*value, 0);
  if (!number.has_value() || !(*number >= least && *number <= most)) {
    return ValueError(key, absl::StrCat("a number from ", least, " to ", most));
  }
  return number;
}

absl::StatusOr<std::optional<bool>> GgufFile::Bool(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array) return ValueError(key, "a bool");
  if (value->type == GgufValueType::kBool) return *value->data != 0;
  const auto integer = IntegerAt(*value, 0);  // what some writers make of a bool
  if (integer != 0 && integer != 1) return ValueError(key, "a bool");
  return integer == 1;
}

absl::StatusOr<std::optional<std::string_view>> GgufFile::String(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufValueType::kString) return ValueError(key, "a string");
  return value->strings[0];
}

absl::StatusOr<std::optional<std::vector<int64_t>>> GgufFile::Integers(std::string_view key,
                                                                       int64_t least,
                                                                       int64_t most) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<int64_t> integers;
  integers.reserve(static_cast<size_t>(value->count));
  for (int64_t i = 0; i < value->count; ++i) {
    const auto integer = IntegerAt(*value, i);
    if (!integer.has_value() || *integer < least || *integer > most) {
      const std::string found =
          integer.has_value() ? absl::StrCat(*integer, " at place ", i) : Describe(value);
      return KeyError(key, absl::StrCat("integers from ", least, " to ", most), found);
    }
    integers.push_back(*integer);
  }
  return integers;
}

absl::StatusOr<std::optional<std::vector<double>>> GgufFile::Numbers(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array) return ValueError(key, "an array of numbers");
  std::vector<double> numbers;
  numbers.reserve(static_cast<size_t>(value->count));
  for (int64_t i = 0; i < value->count; ++i) {
    const auto number = NumberAt(*value, i);
    if (!number.has_value()) return ValueError(key, "an array of numbers");
    numbers.push_back(*number);
  }
  return numbers;
}

absl::StatusOr<std::optional<std::vector<std::string_view>>> GgufFile::Strings(
    std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufValueType::kString) {
    return ValueError(key, "an array of strings");
  }
  return value->strings;
}

std::vector<std::string> GgufFile::KeysWithPrefix(std::string_view prefix) const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : values_) {
    if (key.starts_with(prefix)) keys.push_back(key);
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

absl::Status GgufFile::KeyError(std::string_view key, std::string_view expected,
                                std::string_view found) const {
  return absl::DataLossError(absl::StrCat(path_, ": key ", Quoted(key, 200), ": expected ",
                                          A(expected), ", found ", A(found)));
}

absl::Status GgufFile::ValueError(std::string_view key, std::string_view expected) const {
  return KeyError(key, expected, Describe(Find(key)));
}

absl::Status GgufFile::Unsupported(std::string_view key, std::string_view problem) const {
  return absl::UnimplementedError(
      absl::StrCat(path_, ": key ", Quoted(key, 200), ": ", A(problem)));
}

}  // namespace ultrasketch
