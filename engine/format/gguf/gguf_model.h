// A model in one GGUF file or several.
#ifndef ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_MODEL_H_
#define ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_MODEL_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

#include "engine/base/strings.h"
#include "engine/format/gguf/gguf_file.h"

namespace ultrasketch {

// The files of a model. Immutable and thread-safe.
class GgufModel {
 public:
  // The file at `path`; where that is the first of several ("NAME-00001-of-00004.gguf", written by
  // llama.cpp's gguf-split), the others beside it, too. Errors are GgufFile's; INVALID_ARGUMENT for
  // another file than the first, DATA_LOSS for files that do not belong together.
  static absl::StatusOr<std::unique_ptr<GgufModel>> Open(const std::string& path);

  // A model of one file.
  static absl::StatusOr<std::unique_ptr<GgufModel>> FromFile(std::unique_ptr<GgufFile> file);

  // The first file, which has the metadata.
  const GgufFile& file() const { return *files_[0]; }

  // A tensor of any of the files; null when there is none of this name.
  const GgufTensor* Find(std::string_view name) const {
    const auto found = tensors_.find(A(name));
    return found == tensors_.end() ? nullptr : found->second;
  }

  // Of all files, in their order.
  const std::vector<const GgufTensor*>& tensors() const { return order_; }

  const std::vector<std::unique_ptr<GgufFile>>& files() const { return files_; }

 private:
  GgufModel() = default;
  absl::Status Add(std::unique_ptr<GgufFile> file);

  std::vector<std::unique_ptr<GgufFile>> files_;
  std::vector<const GgufTensor*> order_;
  absl::flat_hash_map<std::string, const GgufTensor*> tensors_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_GGUF_GGUF_MODEL_H_
