// The safetensors file format: 8 bytes of header length, a JSON header, the tensors' bytes.
// Source: https://github.com/huggingface/safetensors (README, "Format").
#ifndef ULTRASKETCH_ENGINE_FORMAT_SAFETENSORS_H_
#define ULTRASKETCH_ENGINE_FORMAT_SAFETENSORS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/file.h"
#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"

namespace ultrasketch {

// The format's limit on the header.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// Before the name of a tensor: the "__metadata__" key of its checksum (FORMAT.md, "Checksums").
inline constexpr std::string_view kChecksumKeyPrefix = "ultrasketch.crc64.";

// A safetensors file, mapped and validated: every view lies within the file and has
// as many bytes as its dtype and shape say; the tensors do not overlap and leave no byte of the
// file unused. Immutable and thread-safe. Elements are little-endian and not always aligned.
// Opening reads the header alone; VerifyChecksums reads the tensors.
class SafetensorsFile : public TensorSource {
 public:
  // DATA_LOSS, naming file, tensor, expected and found, for a malformed file; what MappedFile::Open
  // returns when the file cannot be read. Malformed are also checksums that some tensors have and
  // others lack, or that belong to no tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  // The same over memory, which the caller keeps alive. `description` stands for the path in
  // messages.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Parse(std::string_view bytes,
                                                                std::string description);

  const TensorView* Find(std::string_view name) const override;
  std::string Describe(std::string_view name) const override;
  // UNIMPLEMENTED for the name of an unsupported tensor.
  absl::Status Missing(std::string_view name) const override;

  // The tensors of types that DType lacks (8-bit floats and smaller, complex numbers), name to
  // type. Their places in the file are checked; they are not among tensors().
  const std::map<std::string, std::string, std::less<>>& unsupported() const {
    return unsupported_;
  }

  // In order of name (bytewise).
  const std::vector<NamedTensor>& tensors() const { return tensors_; }

  // The header's "__metadata__", less the checksums.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Whether the tensors have checksums: then all have. Files that WriteSafetensors wrote do.
  bool has_checksums() const { return !checksums_.empty(); }

  // That of a tensor, as the file states it; nullopt when it states none.
  std::optional<uint64_t> FindChecksum(std::string_view name) const;

  // Reads all tensors and compares their checksums with the file's: DATA_LOSS, naming file, tensor,
  // expected and found, where one differs. OK for a file without checksums.
  absl::Status VerifyChecksums(ThreadPool& pool) const;

  // MappedFile::CheckIntact's; OK when parsed from memory.
  absl::Status CheckIntact() const {
    return file_ != nullptr ? file_->CheckIntact() : absl::OkStatus();
  }

  const std::string& path() const { return path_; }
  int64_t file_bytes() const { return file_bytes_; }

 private:
  SafetensorsFile() = default;

  std::optional<size_t> FindIndex(std::string_view name) const;  // into tensors_
  // Moves the checksums out of metadata_ into checksums_.
  absl::Status TakeChecksums();

  std::string path_;
  std::unique_ptr<MappedFile> file_;  // null when parsed from memory
  int64_t file_bytes_ = 0;
  std::vector<NamedTensor> tensors_;
  std::map<std::string, std::string, std::less<>> unsupported_;
  std::vector<uint64_t> checksums_;  // of tensors_, or empty
  std::map<std::string, std::string> metadata_;
};

// A tensor for WriteSafetensors: `data` when its bytes are at hand, else `produce`, which is called
// once, when the tensor's turn comes, and passes the bytes to `append` in pieces of any size,
// num_elements * ElementBytes(dtype) in all. Tensors too large to hold together in memory are
// written this way.
struct TensorToWrite {
  using Append = absl::FunctionRef<absl::Status(const void* data, int64_t num_bytes)>;

  TensorToWrite() = default;
  TensorToWrite(std::string tensor_name, const TensorView& view)
      : name(std::move(tensor_name)), dtype(view.dtype), shape(view.shape), data(view.data) {}

  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  std::function<absl::Status(Append append)> produce;
};

// Writes `tensors` to `path`, atomically (see AtomicFileWriter). The data is in canonical order,
// whatever the order of `tensors`: descending element size, then name; so every tensor is aligned
// to its element size in the file, and equal tensors give equal files. The checksum of each tensor
// is added to `metadata`. INVALID_ARGUMENT for an empty, duplicate or non-UTF-8 name, a negative
// extent, an overflowing size, or metadata that starts like a checksum's key; INTERNAL when a
// producer appends too many or too few bytes; otherwise what a producer or the file system returns.
absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_SAFETENSORS_H_
