#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/checksum.h"
#include "engine/format/safetensors.h"
#include "engine/format/safetensors_header.h"

namespace ultrasketch {
namespace {

constexpr size_t kHeaderAlignment = 8;

// `text`, which is valid UTF-8, as a JSON string.
std::string JsonString(std::string_view text) { return nlohmann::json(text).dump(); }

std::string LittleEndian64(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
  return bytes;
}

absl::Status CheckNames(const std::string& path, absl::Span<const TensorToWrite> tensors,
                        const std::map<std::string, std::string>& metadata) {
  absl::flat_hash_set<absl::string_view> names;
  for (const TensorToWrite& tensor : tensors) {
    const bool usable =
        !tensor.name.empty() && tensor.name != "__metadata__" && IsValidUtf8(tensor.name);
    if (!usable) {
      return absl::InvalidArgumentError(absl::StrCat(path,
                                                     ": expected a name of UTF-8 for a tensor, "
                                                     "found ",
                                                     Quoted(tensor.name, 200)));
    }
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quoted(tensor.name, 200), " is given twice"));
    }
  }
  for (const auto& [key, value] : metadata) {
    if (key.starts_with(kChecksumKeyPrefix)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": metadata ", Quoted(key, 200), ": the key is reserved for a tensor's checksum"));
    }
    if (IsValidUtf8(key) && IsValidUtf8(value)) continue;
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected metadata of UTF-8, found ",
                                                   Quoted(key), ": ", Quoted(value)));
  }
  return absl::OkStatus();
}

// The header of `tensors` in their order in the file, padded so that the data is aligned. Its
// length does not depend on the checksums.
absl::StatusOr<std::string> ComposeHeader(const std::string& path,
                                          const std::vector<const TensorToWrite*>& tensors,
                                          const std::vector<uint64_t>& checksums,
                                          std::map<std::string, std::string> metadata) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    metadata[absl::StrCat(A(kChecksumKeyPrefix), tensors[i]->name)] = ChecksumString(checksums[i]);
  }
  std::vector<std::string> members;
  if (!metadata.empty()) {
    const auto append = [](std::string* out, const auto& entry) {
      absl::StrAppend(out, JsonString(entry.first), ":", JsonString(entry.second));
    };
    members.push_back(
        absl::StrCat("\"__metadata__\":{", absl::StrJoin(metadata, ",", append), "}"));
  }
  int64_t offset = 0;
  for (const TensorToWrite* tensor : tensors) {
    const int64_t num_bytes = CheckedTensorBytes(tensor->shape, ElementBytes(tensor->dtype));
    int64_t end = 0;
    if (num_bytes < 0 || __builtin_add_overflow(offset, num_bytes, &end)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quoted(tensor->name, 200),
                       ": expected non-negative extents and a size below 2^63 bytes, found ",
                       A(DTypeName(tensor->dtype)), " ", ShapeString(tensor->shape)));
    }
    members.push_back(absl::StrCat(
        JsonString(tensor->name), ":{\"dtype\":\"", A(DTypeName(tensor->dtype)), "\",\"shape\":[",
        absl::StrJoin(tensor->shape, ","), "],\"data_offsets\":[", offset, ",", end, "]}"));
    offset = end;
  }
  std::string header = absl::StrCat("{", absl::StrJoin(members, ","), "}");
  header.append((kHeaderAlignment - header.size() % kHeaderAlignment) % kHeaderAlignment, ' ');
  if (static_cast<int64_t>(header.size()) > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a header of at most ", kMaxSafetensorsHeaderBytes,
                     " bytes, found one of ", header.size(), " for ", tensors.size(), " tensors"));
  }
  return header;
}

// Sets `checksum` to that of the tensor.
absl::Status AppendTensor(const std::string& path, const TensorToWrite& tensor,
                          AtomicFileWriter& writer, uint64_t& checksum) {
  checksum = TensorChecksumStart(tensor.dtype, tensor.shape);
  const auto append = [&](const void* data, int64_t count) {
    checksum = Crc64(data, count, checksum);
    return writer.Append(data, count);
  };
  const int64_t num_bytes = CheckedTensorBytes(tensor.shape, ElementBytes(tensor.dtype));
  if (num_bytes == 0) return absl::OkStatus();
  if (tensor.data != nullptr) return append(tensor.data, num_bytes);
  const auto error = [&](const std::string& found) {
    return absl::InternalError(absl::StrCat(path, ": tensor ", Quoted(tensor.name, 200),
                                            ": expected ", num_bytes, " bytes of data, found ",
                                            found));
  };
  if (!tensor.produce) return error("none");
  int64_t appended = 0;
  US_RETURN_IF_ERROR(tensor.produce([&](const void* data, int64_t count) -> absl::Status {
    if (count > num_bytes - appended) return error("more");
    appended += count;
    return append(data, count);
  }));
  return appended == num_bytes ? absl::OkStatus() : error(absl::StrCat("only ", appended));
}

}  // namespace

absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  US_RETURN_IF_ERROR(CheckNames(path, tensors, metadata));
  std::vector<const TensorToWrite*> order;
  order.reserve(tensors.size());
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    const int a_bytes = ElementBytes(a->dtype);
    const int b_bytes = ElementBytes(b->dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a->name < b->name;
  });
  std::vector<uint64_t> checksums(order.size(), 0);
  US_ASSIGN_OR_RETURN(std::string header, ComposeHeader(path, order, checksums, metadata));

  US_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFileWriter> writer,
                      AtomicFileWriter::Create(path));
  const std::string header_length = LittleEndian64(header.size());
  US_RETURN_IF_ERROR(writer->Append(header_length));
  US_RETURN_IF_ERROR(writer->Append(header));
  for (size_t i = 0; i < order.size(); ++i) {
    US_RETURN_IF_ERROR(AppendTensor(path, *order[i], *writer, checksums[i]));
  }
  // The checksums are known only when all data has been produced.
  US_ASSIGN_OR_RETURN(header, ComposeHeader(path, order, checksums, metadata));
  US_RETURN_IF_ERROR(writer->Overwrite(static_cast<int64_t>(header_length.size()), header));
  return writer->Commit();
}

}  // namespace ultrasketch
