#include "engine/compress/fit_journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include <sys/file.h>

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/base/thread_pool.h"
#include "engine/format/json.h"
#include "engine/format/safetensors.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kDescriptionFile[] = "description.json";
constexpr char kPreparationFile[] = "preparation.safetensors";
constexpr char kLockFile[] = "lock";
constexpr char kModelFolder[] = "model";
constexpr char kErrorsKey[] = "errors";

constexpr char kAdvice[] = "; without --resume the work starts again";

absl::Status WithAdvice(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(status.message(), kAdvice));
}

// Whether a journal makes what has this name; files half written have longer ones.
bool IsOurs(std::string_view name) {
  return name == kLockFile || name == kModelFolder || name == absl::StrCat(kModelFolder, ".old") ||
         name.starts_with(kDescriptionFile) || name.starts_with(kPreparationFile) ||
         (name.starts_with("layer-") && name.find(".safetensors") != name.npos);
}

// FAILED_PRECONDITION when there is something at `folder` that is not a journal's.
absl::Status CheckIsOurs(const std::string& folder) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(folder, error);
  if (!fs::exists(status)) return absl::OkStatus();
  if (!fs::is_directory(status)) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": expected a folder for what is finished, found something else"));
  }
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (IsOurs(name)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": expected nothing but what an interrupted compression left, found ",
                     Quoted(name), "; move it away"));
  }
  return error ? ErrnoStatus(error.value(), folder) : absl::OkStatus();
}

// Removes what is a journal's, but for the file that locks it.
absl::Status RemoveContents(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> paths;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (IsOurs(name) && name != kLockFile) paths.push_back(entry->path());
  }
  if (error) return ErrnoStatus(error.value(), folder);
  for (const fs::path& path : paths) {
    fs::remove_all(path, error);
    if (error) return ErrnoStatus(error.value(), path.string());
  }
  return absl::OkStatus();
}

// The first key whose values differ, with both.
std::string Difference(const json& expected, const json& found) {
  for (const auto& [key, value] : expected.items()) {
    const json* other = FindMember(found, key);
    if (other == nullptr || *other != value) {
      return absl::StrCat(key, " is ", DescribeJson(other), " there and ", DescribeJson(&value),
                          " now");
    }
  }
  return "it has keys that are not known";
}

json NumberOrNull(double value) { return std::isfinite(value) ? json(value) : json(); }

double NumberOrNan(const json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenVerified(const std::string& path) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  ThreadPool pool(1);
  US_RETURN_IF_ERROR(file->VerifyChecksums(pool));
  return file;
}

template <typename T>
TensorView VectorView(const std::vector<T>& values, DType dtype) {
  return {dtype,
          {static_cast<int64_t>(values.size())},
          reinterpret_cast<const uint8_t*>(values.data())};
}

template <typename T>
absl::StatusOr<std::vector<T>> ReadVectorOf(const SafetensorsFile& file, const std::string& name,
                                            DType dtype) {
  US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(file, name, {dtype}, {-1}));
  std::vector<T> values(static_cast<size_t>(view.shape[0]));
  std::memcpy(values.data(), view.data, values.size() * sizeof(T));
  return values;
}

}  // namespace

std::string FitJournal::PathOf(const std::string& name) const {
  return (fs::path(folder_) / name).string();
}

std::string FitJournal::model_folder() const { return PathOf(kModelFolder); }

std::string FitJournal::LayerPath(int layer) const {
  return PathOf(absl::StrFormat("layer-%05d.safetensors", layer));
}

absl::StatusOr<std::unique_ptr<FitJournal>> FitJournal::Open(const std::string& folder,
                                                             const json& description, bool resume) {
  US_RETURN_IF_ERROR(CheckIsOurs(folder));
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), folder);
  std::unique_ptr<FitJournal> journal(new FitJournal(folder));
  const std::string lock_path = journal->PathOf(kLockFile);
  journal->lock_ = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (journal->lock_ < 0) return ErrnoStatus(errno, lock_path);
  if (flock(journal->lock_, LOCK_EX | LOCK_NB) != 0) {
    journal->removed_ = true;  // not ours to remove
    return absl::UnavailableError(
        absl::StrCat(folder, ": another process is compressing to the same place"));
  }
  if (resume && fs::exists(journal->PathOf(kDescriptionFile), error)) {
    const absl::Status loaded = journal->Load(description);
    if (!loaded.ok()) {
      journal->removed_ = true;  // kept for whom it was made
      return loaded;
    }
    fs::remove_all(journal->model_folder(), error);
    if (error) return ErrnoStatus(error.value(), journal->model_folder());
    return journal;
  }
  US_RETURN_IF_ERROR(RemoveContents(folder));
  US_RETURN_IF_ERROR(
      WriteFileAtomically(journal->PathOf(kDescriptionFile), description.dump(2) + "\n"));
  return journal;
}

absl::Status FitJournal::Load(const json& description) {
  const absl::StatusOr<json> read = ReadJsonFile(PathOf(kDescriptionFile));
  if (!read.ok()) return WithAdvice(read.status());
  const json& found = *read;
  if (found != description) {
    return absl::FailedPreconditionError(absl::StrCat(
        folder_, ": it was made by another compression: ", Difference(description, found),
        kAdvice));
  }
  std::error_code error;
  if (!fs::exists(PathOf(kPreparationFile), error)) return absl::OkStatus();
  if (const absl::Status status = ReadPreparation(); !status.ok()) return WithAdvice(status);
  // A damaged layer is one that is not finished.
  while (fs::exists(LayerPath(num_layers_), error) && OpenVerified(LayerPath(num_layers_)).ok()) {
    ++num_layers_;
  }
  return absl::OkStatus();
}

FitJournal::~FitJournal() {
  if (!removed_ && num_layers_ == 0) Remove().IgnoreError();
  if (lock_ >= 0) close(lock_);
}

absl::Status FitJournal::ReadPreparation() {
  US_ASSIGN_OR_RETURN(const auto file, OpenVerified(PathOf(kPreparationFile)));
  US_ASSIGN_OR_RETURN(const auto ids, ReadVectorOf<int32_t>(*file, "token_ids", DType::kI32));
  US_ASSIGN_OR_RETURN(const auto sizes, ReadVectorOf<int64_t>(*file, "windows", DType::kI64));
  US_ASSIGN_OR_RETURN(importance_, ReadVectorOf<double>(*file, "importance", DType::kF64));
  size_t first = 0;
  for (const int64_t size : sizes) {
    if (size < 1 || static_cast<uint64_t>(size) > ids.size() - first) {
      return absl::DataLossError(
          absl::StrCat(file->path(), ": the windows do not add up to the token ids"));
    }
    const auto begin = ids.begin() + static_cast<int64_t>(first);
    text_.windows.emplace_back(begin, begin + size);
    first += static_cast<size_t>(size);
  }
  return absl::OkStatus();
}

absl::Status FitJournal::SetPreparation(CalibrationText text, std::vector<double> importance) {
  US_CHECK(!importance.empty());
  std::vector<int32_t> ids;
  std::vector<int64_t> sizes;
  for (const std::vector<int32_t>& window : text.windows) {
    ids.insert(ids.end(), window.begin(), window.end());
    sizes.push_back(static_cast<int64_t>(window.size()));
  }
  US_RETURN_IF_ERROR(WriteSafetensors(PathOf(kPreparationFile),
                                      {{"token_ids", VectorView(ids, DType::kI32)},
                                       {"windows", VectorView(sizes, DType::kI64)},
                                       {"importance", VectorView(importance, DType::kF64)}}));
  text_ = std::move(text);
  importance_ = std::move(importance);
  return absl::OkStatus();
}

absl::Status FitJournal::AppendLayer(const FittedLayer& layer) {
  std::vector<TensorToWrite> tensors;
  json errors = json::array();
  for (const FittedSite& site : layer.sites) {
    for (const NamedTensor& tensor : site.encoded->StoredTensors()) {
      tensors.emplace_back(tensor.name, tensor.view);
    }
    errors.push_back({NumberOrNull(site.relative_weight_error),
                      NumberOrNull(site.relative_output_error),
                      NumberOrNull(site.relative_residual_error)});
  }
  for (const ReplacedTensor& norm : layer.norms) {
    tensors.emplace_back(norm.name, TensorView{norm.dtype, norm.shape, norm.bytes.data()});
  }
  US_RETURN_IF_ERROR(
      WriteSafetensors(LayerPath(num_layers_), tensors, {{kErrorsKey, errors.dump()}}));
  ++num_layers_;
  return absl::OkStatus();
}

absl::StatusOr<FittedLayer> FitJournal::ReadLayer(int layer, absl::Span<const LinearSite> sites,
                                                  const json& quantization_config) const {
  US_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, OpenVerified(LayerPath(layer)));
  const auto entry = file->metadata().find(kErrorsKey);
  const json errors = entry == file->metadata().end()
                          ? json()
                          : json::parse(entry->second, nullptr, /*allow_exceptions=*/false);
  if (!errors.is_array() || errors.size() != sites.size()) {
    return absl::DataLossError(absl::StrCat(file->path(), ": expected the errors of ", sites.size(),
                                            " sites in the metadata"));
  }
  const Codec* codec = FindCodec(quantization_config["codec"].get<std::string>());
  US_CHECK(codec != nullptr);
  FittedLayer fitted;
  for (size_t index = 0; index < sites.size(); ++index) {
    FittedSite site;
    US_ASSIGN_OR_RETURN(site.encoded, codec->Load(sites[index], *file, quantization_config));
    if (errors[index].is_array() && errors[index].size() == 3) {
      site.relative_weight_error = NumberOrNan(errors[index][0]);
      site.relative_output_error = NumberOrNan(errors[index][1]);
      site.relative_residual_error = NumberOrNan(errors[index][2]);
    }
    fitted.sites.push_back(std::move(site));
  }
  for (const LayerRow& row : kLayerTable) {
    if (row.reads != SiteReads::kNormalized) continue;
    const std::string tensor = LayerVectorName(layer, row.norm);
    US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(*file, tensor, {}, {-1}));
    fitted.norms.push_back(
        {tensor, view.dtype, view.shape, {view.data, view.data + view.num_bytes()}});
  }
  fitted.source = std::move(file);
  return fitted;
}

absl::Status FitJournal::Remove() {
  removed_ = true;
  US_RETURN_IF_ERROR(RemoveContents(folder_));
  std::error_code error;
  fs::remove(PathOf(kLockFile), error);
  fs::remove(folder_, error);
  // What somebody else put there in the meantime stays.
  return !error || error == std::errc::directory_not_empty ? absl::OkStatus()
                                                           : ErrnoStatus(error.value(), folder_);
}

}  // namespace ultrasketch
