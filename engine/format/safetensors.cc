#include "engine/format/safetensors.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/checksum.h"
#include "engine/format/git_lfs.h"
#include "engine/format/safetensors_header.h"

namespace ultrasketch {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian and its tensors are used in place");

constexpr int64_t kLengthBytes = 8;

uint64_t LoadLittleEndian64(std::string_view bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// The JSON text of the header of the file `bytes`.
absl::StatusOr<std::string_view> HeaderText(std::string_view bytes, const std::string& path) {
  if (bytes.size() < kLengthBytes) {
    return absl::DataLossError(absl::StrCat(path, ": expected at least ", kLengthBytes,
                                            " bytes of header length, found a file of ",
                                            bytes.size(), " bytes"));
  }
  const uint64_t header_bytes = LoadLittleEndian64(bytes);
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return absl::DataLossError(absl::StrCat(
        path, ": expected a header of at most ", kMaxSafetensorsHeaderBytes,
        " bytes, found a length of ", header_bytes, ": not a safetensors file, or corrupt"));
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    return absl::DataLossError(absl::StrCat(path, ": expected a header of ", header_bytes,
                                            " bytes, found only ", bytes.size() - kLengthBytes,
                                            " bytes after its length: truncated"));
  }
  return bytes.substr(kLengthBytes, header_bytes);
}

// Orders by offset; tensors without bytes come before the one that starts where they are.
bool ByOffset(const SafetensorsHeaderEntry& a, const SafetensorsHeaderEntry& b) {
  return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
}

// Every byte of the data belongs to exactly one tensor.
absl::Status CheckCoverage(std::vector<SafetensorsHeaderEntry> entries, int64_t data_bytes,
                           const std::string& path) {
  std::sort(entries.begin(), entries.end(), ByOffset);
  int64_t covered = 0;
  const std::string* previous = nullptr;
  for (const SafetensorsHeaderEntry& entry : entries) {
    const auto error = [&](const std::string& problem) {
      return absl::DataLossError(
          absl::StrCat(path, ": tensor ", Quoted(entry.name, 200), ": ", problem));
    };
    if (entry.end > data_bytes) {
      return error(absl::StrCat("expected data offsets of at most ", data_bytes,
                                ", the bytes after the header, found [", entry.begin, ", ",
                                entry.end, "]: out of range or truncated"));
    }
    if (entry.begin < covered) {
      return error(absl::StrCat("its data [", entry.begin, ", ", entry.end,
                                "] overlaps that of tensor ", Quoted(*previous, 200),
                                ", which ends at ", covered));
    }
    if (entry.begin > covered) {
      return error(absl::StrCat("expected data that begins at ", covered, ", found ", entry.begin,
                                ": a hole of ", entry.begin - covered, " bytes"));
    }
    covered = entry.end;
    previous = &entry.name;
  }
  if (covered != data_bytes) {
    return absl::DataLossError(absl::StrCat(path, ": expected ", covered,
                                            " bytes of data after the header, found ", data_bytes,
                                            ": ", data_bytes - covered, " belong to no tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> mapped, MappedFile::Open(path));
  const std::string_view bytes(reinterpret_cast<const char*>(mapped->data()),
                               static_cast<size_t>(mapped->size()));
  US_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, Parse(bytes, path));
  file->file_ = std::move(mapped);
  return file;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Parse(std::string_view bytes,
                                                                        std::string description) {
  US_RETURN_IF_ERROR(RefuseGitLfsPointer(bytes, description));
  US_ASSIGN_OR_RETURN(const std::string_view header_text, HeaderText(bytes, description));
  US_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(header_text, description));
  const std::string_view data = bytes.substr(kLengthBytes + header_text.size());
  US_RETURN_IF_ERROR(CheckCoverage(header.entries, static_cast<int64_t>(data.size()), description));

  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile());
  file->path_ = std::move(description);
  file->file_bytes_ = static_cast<int64_t>(bytes.size());
  file->metadata_ = std::move(header.metadata);
  file->tensors_.reserve(header.entries.size());
  for (SafetensorsHeaderEntry& entry : header.entries) {
    if (!entry.unsupported_dtype.empty()) {
      file->unsupported_.emplace(std::move(entry.name), std::move(entry.unsupported_dtype));
      continue;
    }
    TensorView view;
    view.dtype = entry.dtype;
    view.shape = std::move(entry.shape);
    view.data = reinterpret_cast<const uint8_t*>(data.data()) + entry.begin;
    file->tensors_.push_back({std::move(entry.name), std::move(view)});
  }
  std::sort(file->tensors_.begin(), file->tensors_.end(),
            [](const NamedTensor& a, const NamedTensor& b) { return a.name < b.name; });
  US_RETURN_IF_ERROR(file->TakeChecksums());
  return file;
}

absl::Status SafetensorsFile::TakeChecksums() {
  const std::string prefix(kChecksumKeyPrefix);
  const auto begin = metadata_.lower_bound(prefix);
  auto end = begin;
  for (; end != metadata_.end() && end->first.starts_with(prefix); ++end) {
    const std::string name = end->first.substr(prefix.size());
    if (Find(name) != nullptr || unsupported_.contains(name)) continue;
    return absl::DataLossError(absl::StrCat(path_, ": found a checksum for tensor ",
                                            Quoted(name, 200), ", but no such tensor"));
  }
  if (begin == end) return absl::OkStatus();
  for (const NamedTensor& tensor : tensors_) {
    const auto error = [&](const std::string& expected, const std::string& found) {
      return absl::DataLossError(absl::StrCat(path_, ": tensor ", Quoted(tensor.name, 200),
                                              ": expected ", expected, ", found ", found));
    };
    const auto entry = metadata_.find(prefix + tensor.name);
    if (entry == metadata_.end()) return error("a checksum, as other tensors have", "none");
    uint64_t checksum = 0;
    if (!ParseChecksum(entry->second, &checksum)) {
      return error("a checksum of 16 lower-case hexadecimal digits", Quoted(entry->second));
    }
    checksums_.push_back(checksum);
  }
  metadata_.erase(begin, end);
  return absl::OkStatus();
}

absl::Status SafetensorsFile::VerifyChecksums(ThreadPool& pool) const {
  if (!has_checksums()) return absl::OkStatus();
  const std::vector<uint64_t> found = TensorChecksums(tensors_, pool);
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i] == checksums_[i]) continue;
    return absl::DataLossError(absl::StrCat(path_, ": tensor ", Quoted(tensors_[i].name, 200),
                                            ": expected the checksum ",
                                            ChecksumString(checksums_[i]), ", found ",
                                            ChecksumString(found[i]), ": the file is corrupt"));
  }
  return absl::OkStatus();
}

const TensorView* SafetensorsFile::Find(std::string_view name) const {
  const std::optional<size_t> index = FindIndex(name);
  return index.has_value() ? &tensors_[*index].view : nullptr;
}

std::optional<uint64_t> SafetensorsFile::FindChecksum(std::string_view name) const {
  const std::optional<size_t> index = FindIndex(name);
  if (!index.has_value() || checksums_.empty()) return std::nullopt;
  return checksums_[*index];
}

std::optional<size_t> SafetensorsFile::FindIndex(std::string_view name) const {
  const auto position = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const NamedTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  if (position == tensors_.end() || position->name != name) return std::nullopt;
  return static_cast<size_t>(position - tensors_.begin());
}

std::string SafetensorsFile::Describe(std::string_view) const { return path_; }

absl::Status SafetensorsFile::Missing(std::string_view name) const {
  const auto unsupported = unsupported_.find(name);
  if (unsupported == unsupported_.end()) return TensorSource::Missing(name);
  return absl::UnimplementedError(absl::StrCat(path_, ": tensor ", Quoted(name, 200), ": dtype ",
                                               Quoted(unsupported->second), " is not supported"));
}

}  // namespace ultrasketch
