#include "engine/compress/fit_description.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/checksum.h"

namespace ultrasketch {
namespace {

using nlohmann::json;

// Grows with every change that makes the same options give other layers.
constexpr int kFitVersion = 1;

constexpr size_t kBytesAtOnce = size_t{1} << 20;

absl::StatusOr<std::string> ModelChecksum(const Checkpoint& checkpoint, ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(const std::string config, ReadFile(checkpoint.folder() + "/config.json"));
  std::vector<NamedTensor> tensors;
  for (const std::string& name : checkpoint.tensor_names()) {
    tensors.push_back({name, *checkpoint.Find(name)});
  }
  const std::vector<uint64_t> checksums = TensorChecksums(tensors, pool);
  uint64_t checksum = Crc64(config.data(), static_cast<int64_t>(config.size()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string entry = tensors[i].name + "=" + ChecksumString(checksums[i]);
    checksum = Crc64(entry.data(), static_cast<int64_t>(entry.size()), checksum);
  }
  return ChecksumString(checksum);
}

absl::StatusOr<std::string> FileChecksum(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::vector<char> buffer(kBytesAtOnce);
  uint64_t checksum = 0;
  while (file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    checksum = Crc64(buffer.data(), file.gcount(), checksum);
  }
  // Ends with eof unless opening or reading failed.
  if (!file.eof()) return ErrnoStatus(errno != 0 ? errno : EIO, path);
  return ChecksumString(checksum);
}

}  // namespace

absl::StatusOr<json> DescribeFit(const Checkpoint& checkpoint, const CompressOptions& options,
                                 std::string_view device, ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(const std::string model, ModelChecksum(checkpoint, pool));
  json files = json::array();
  for (const std::string& path : options.calibration_files) {
    US_ASSIGN_OR_RETURN(const std::string checksum, FileChecksum(path));
    files.push_back(checksum);
  }
  json description = {{"fit_version", kFitVersion},
                      {"model", model},
                      {"codec", options.codec},
                      // Without its number: "cpu", "cuda".
                      {"device", std::string(device.substr(0, device.find(':')))},
                      {"bits", options.bits_per_weight},
                      {"embedding", options.embedding},
                      {"head", options.head},
                      {"seed", options.seed},
                      {"calibration_files", files},
                      {"calibration_windows", options.calibration_windows},
                      {"calibration_window_tokens", options.calibration_window_tokens},
                      {"add_special_tokens", options.add_special_tokens}};
  if (options.codec == "absmaxmin") {
    description["hash_rows"] = options.absmaxmin_hash_rows;
    description["bucket_bits"] = options.absmaxmin_bucket_bits;
    description["own_share"] = options.absmaxmin_own_share;
  }
  return description;
}

}  // namespace ultrasketch
