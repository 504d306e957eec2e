#include "engine/format/gguf/gguf_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "engine/base/status.h"

namespace ultrasketch {
namespace {

constexpr std::string_view kCountKey = "split.count";
constexpr std::string_view kNumberKey = "split.no";
constexpr std::string_view kTensorCountKey = "split.tensors.count";
constexpr int64_t kMaxFiles = 65535;

std::string FileSuffix(int64_t number, int64_t count) {
  return absl::StrFormat("-%05d-of-%05d.gguf", number + 1, count);
}

}  // namespace

absl::Status GgufModel::Add(std::unique_ptr<GgufFile> file) {
  for (const GgufTensor& tensor : file->tensors()) {
    if (!tensors_.emplace(tensor.name, &tensor).second) {
      return absl::DataLossError(absl::StrCat(file->path(), ": tensor ", Quoted(tensor.name, 200),
                                              " is in a file before it, too"));
    }
    order_.push_back(&tensor);
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GgufModel>> GgufModel::FromFile(std::unique_ptr<GgufFile> file) {
  std::unique_ptr<GgufModel> model(new GgufModel());
  US_RETURN_IF_ERROR(model->Add(std::move(file)));
  return model;
}

absl::StatusOr<std::unique_ptr<GgufModel>> GgufModel::Open(const std::string& path) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> first, GgufFile::Open(path));
  US_ASSIGN_OR_RETURN(const auto count, first->Integer(kCountKey, 0, kMaxFiles));
  US_ASSIGN_OR_RETURN(const auto number, first->Integer(kNumberKey, 0, kMaxFiles));
  US_ASSIGN_OR_RETURN(const auto num_tensors, first->Integer(kTensorCountKey, 0, INT64_MAX));
  US_ASSIGN_OR_RETURN(std::unique_ptr<GgufModel> model, FromFile(std::move(first)));
  if (count.value_or(1) <= 1) return model;

  const std::string suffix = FileSuffix(0, *count);
  if (number.value_or(0) != 0 || !path.ends_with(suffix)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected the first of the model's ", *count,
                     " files, with a name that ends in ", suffix, ", found ",
                     number.value_or(0) != 0 ? absl::StrCat("file ", *number + 1)
                                             : std::string("another name")));
  }
  const std::string stem = path.substr(0, path.size() - suffix.size());
  for (int64_t i = 1; i < *count; ++i) {
    const std::string next_path = stem + FileSuffix(i, *count);
    US_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> next, GgufFile::Open(next_path));
    US_ASSIGN_OR_RETURN(const auto next_number, next->Integer(kNumberKey, 0, kMaxFiles));
    US_ASSIGN_OR_RETURN(const auto next_count, next->Integer(kCountKey, 0, kMaxFiles));
    if (next_number != i) return next->ValueError(kNumberKey, absl::StrCat(i));
    if (next_count != count) return next->ValueError(kCountKey, absl::StrCat(*count));
    US_RETURN_IF_ERROR(model->Add(std::move(next)));
  }
  if (num_tensors.has_value() && *num_tensors != static_cast<int64_t>(model->order_.size())) {
    return model->file().ValueError(
        kTensorCountKey,
        absl::StrCat(model->order_.size(), ", the tensors of all ", *count, " files"));
  }
  return model;
}

}  // namespace ultrasketch
