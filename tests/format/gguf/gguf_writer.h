// Writes GGUF files for tests, malformed ones too.
#ifndef ULTRASKETCH_TESTS_FORMAT_GGUF_GGUF_WRITER_H_
#define ULTRASKETCH_TESTS_FORMAT_GGUF_GGUF_WRITER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/format/gguf/gguf_file.h"

namespace ultrasketch {

// Numbers and strings as files have them.
class GgufBytes {
 public:
  template <typename T>
  GgufBytes& Number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  GgufBytes& String(std::string_view text) {
    Number<uint64_t>(text.size());
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

class GgufWriter {
 public:
  // What a test may get wrong.
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> num_tensors;
  std::optional<uint64_t> num_keys;
  int64_t alignment = 32;  // of the data; Uint32("general.alignment", ...) says it in the file

  // A key that has been written already is replaced.
  void Raw(std::string_view key, GgufValueType type, std::string value) {
    GgufBytes bytes;
    bytes.String(key).Number(static_cast<uint32_t>(type));
    AddEntry(key, bytes.bytes() + value);
  }
  void Uint32(std::string_view key, uint32_t value) {
    Raw(key, GgufValueType::kUint32, GgufBytes().Number(value).bytes());
  }
  void Float32(std::string_view key, float value) {
    Raw(key, GgufValueType::kFloat32, GgufBytes().Number(value).bytes());
  }
  void Bool(std::string_view key, bool value) {
    Raw(key, GgufValueType::kBool, GgufBytes().Number(static_cast<uint8_t>(value)).bytes());
  }
  void String(std::string_view key, std::string_view value) {
    Raw(key, GgufValueType::kString, GgufBytes().String(value).bytes());
  }
  void Strings(std::string_view key, const std::vector<std::string>& values) {
    GgufBytes bytes = ArrayHeader(GgufValueType::kString, values.size());
    for (const std::string& value : values) bytes.String(value);
    Raw(key, GgufValueType::kArray, bytes.bytes());
  }
  void Int32s(std::string_view key, const std::vector<int32_t>& values) {
    GgufBytes bytes = ArrayHeader(GgufValueType::kInt32, values.size());
    for (const int32_t value : values) bytes.Number(value);
    Raw(key, GgufValueType::kArray, bytes.bytes());
  }
  void Float32s(std::string_view key, const std::vector<float>& values) {
    GgufBytes bytes = ArrayHeader(GgufValueType::kFloat32, values.size());
    for (const float value : values) bytes.Number(value);
    Raw(key, GgufValueType::kArray, bytes.bytes());
  }
  static GgufBytes ArrayHeader(GgufValueType type, uint64_t count) {
    GgufBytes bytes;
    bytes.Number(static_cast<uint32_t>(type)).Number(count);
    return bytes;
  }
  void RemoveKey(std::string_view key) {
    std::erase_if(entries_, [&](const auto& entry) { return entry.first == key; });
  }

  // `shape` is row-major. `offset`: where the file says that the data begins, if not where it does.
  void Tensor(std::string_view name, uint32_t type, std::vector<int64_t> shape, std::string data,
              std::optional<uint64_t> offset = std::nullopt) {
    tensors_.push_back({std::string(name), type, std::move(shape), std::move(data), offset});
  }
  void RemoveTensor(std::string_view name) {
    std::erase_if(tensors_, [&](const Entry& entry) { return entry.name == name; });
  }

  std::string Write() const {
    GgufBytes head;
    head.Number(version).Number(num_tensors.value_or(tensors_.size()));
    head.Number(num_keys.value_or(entries_.size()));
    std::string bytes = magic + head.bytes();
    for (const auto& [key, entry] : entries_) bytes += entry;
    std::string data;
    for (const Entry& tensor : tensors_) {
      GgufBytes info;
      info.String(tensor.name).Number(static_cast<uint32_t>(tensor.shape.size()));
      for (size_t i = tensor.shape.size(); i-- > 0;) info.Number(tensor.shape[i]);
      info.Number(tensor.type).Number(tensor.offset.value_or(data.size()));
      bytes += info.bytes();
      data += tensor.data;
      Pad(data);
    }
    if (!tensors_.empty()) Pad(bytes);
    return bytes + data;
  }

 private:
  struct Entry {
    std::string name;
    uint32_t type;
    std::vector<int64_t> shape;
    std::string data;
    std::optional<uint64_t> offset;
  };

  void AddEntry(std::string_view key, std::string entry) {
    for (auto& [known, bytes] : entries_) {
      if (known != key) continue;
      bytes = std::move(entry);
      return;
    }
    entries_.emplace_back(key, std::move(entry));
  }
  void Pad(std::string& bytes) const {
    while (bytes.size() % static_cast<size_t>(alignment) != 0) bytes.push_back('\0');
  }

  std::vector<std::pair<std::string, std::string>> entries_;
  std::vector<Entry> tensors_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FORMAT_GGUF_GGUF_WRITER_H_
