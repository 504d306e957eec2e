// The GGUF file format of llama.cpp: typed metadata, then tensors in ggml's types.
// Source: https://github.com/ggml-org/ggml (docs/gguf.md).
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_FILE_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_FILE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/file.h"
#include "engine/base/strings.h"
#include "engine/format/gguf/ggml_types.h"

namespace ultrasketch {

// The types of metadata, with the numbers that files have.
enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// A tensor in a mapped file. All its bytes lie within the file.
struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;
  std::vector<int64_t> shape;     // row-major: the reverse of the order in files
  const uint8_t* data = nullptr;  // blocks of `type`, rows one after the other

  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() / type->block_elements * type->block_bytes; }
};

// A GGUF file of version 2 or 3, little-endian, mapped and validated: keys and tensors are unique,
// every value and every tensor lies within the file, tensors follow each other as ggml writes them.
// Immutable and thread-safe. Opening reads the metadata alone.
class GgufFile {
 public:
  // DATA_LOSS, naming file, key or tensor, expected and found, for a malformed file; UNIMPLEMENTED
  // for other versions, big-endian files, arrays of arrays and tensor types of unknown size; what
  // MappedFile::Open returns when the file cannot be read.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  // The same over memory, which the caller keeps alive. `description` stands for the path in
  // messages.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(std::string_view bytes,
                                                         std::string description);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }

  // In the file's order.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // Metadata by key. Nothing for a key that is absent; DATA_LOSS, naming file, key, expected and
  // found, for a value of another type or out of the inclusive range. An integer is taken from
  // every integer type, a number from every numeric type; NaN is out of every range.
  bool Has(std::string_view key) const { return values_.contains(A(key)); }
  absl::StatusOr<std::optional<int64_t>> Integer(std::string_view key, int64_t least,
                                                 int64_t most) const;
  absl::StatusOr<std::optional<double>> Number(std::string_view key, double least,
                                               double most) const;
  // A bool, or the integer 0 or 1.
  absl::StatusOr<std::optional<bool>> Bool(std::string_view key) const;
  absl::StatusOr<std::optional<std::string_view>> String(std::string_view key) const;

  // An array. Integers: as Integer, each; a single integer counts as an array of one.
  absl::StatusOr<std::optional<std::vector<int64_t>>> Integers(std::string_view key, int64_t least,
                                                               int64_t most) const;
  absl::StatusOr<std::optional<std::vector<double>>> Numbers(std::string_view key) const;
  absl::StatusOr<std::optional<std::vector<std::string_view>>> Strings(std::string_view key) const;

  // Keys that begin with `prefix`, sorted.
  std::vector<std::string> KeysWithPrefix(std::string_view prefix) const;

  // DATA_LOSS "<path>: key <key>: expected <expected>, found <found>".
  absl::Status KeyError(std::string_view key, std::string_view expected,
                        std::string_view found) const;
  // As KeyError for a value that is in the file, or absent.
  absl::Status ValueError(std::string_view key, std::string_view expected) const;
  // UNIMPLEMENTED "<path>: key <key>: <problem>".
  absl::Status Unsupported(std::string_view key, std::string_view problem) const;

 private:
  friend class GgufParser;

  struct Value {
    GgufValueType type = GgufValueType::kUint8;  // of an array: of its elements
    bool is_array = false;
    int64_t count = 1;
    const uint8_t* data = nullptr;          // numbers and bools: their bytes, not aligned
    std::vector<std::string_view> strings;  // of type kString
  };

  GgufFile() = default;

  const Value* Find(std::string_view key) const;
  static std::string Describe(const Value* value);
  static std::optional<int64_t> IntegerAt(const Value& value, int64_t index);
  static std::optional<double> NumberAt(const Value& value, int64_t index);

  std::string path_;
  std::unique_ptr<MappedFile> file_;  // null when parsed from memory
  uint32_t version_ = 0;
  absl::flat_hash_map<std::string, Value> values_;
  std::vector<GgufTensor> tensors_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_FILE_H_
