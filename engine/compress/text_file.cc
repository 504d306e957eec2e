#include "engine/compress/text_file.h"

#include <lzma.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

// A decompressor's dictionary is at most this large; xz's own largest preset takes 65 MiB.
constexpr uint64_t kMaxDecoderBytes = uint64_t{256} << 20;
constexpr int64_t kSkipBytes = 1 << 16;

class PlainFile : public TextFile {
 public:
  explicit PlainFile(std::unique_ptr<MappedFile> file) : file_(std::move(file)) {}

  absl::StatusOr<int64_t> Read(char* out, int64_t max_bytes) override {
    const int64_t count = std::min(max_bytes, file_->size() - position_);
    if (count > 0) std::copy_n(file_->data() + position_, count, out);
    position_ += count;
    return count;
  }

 private:
  std::unique_ptr<MappedFile> file_;
  int64_t position_ = 0;
};

class XzFile : public TextFile {
 public:
  explicit XzFile(std::unique_ptr<MappedFile> file) : file_(std::move(file)) {}
  ~XzFile() override { lzma_end(&stream_); }

  absl::Status Start() {
    if (lzma_stream_decoder(&stream_, kMaxDecoderBytes, LZMA_CONCATENATED) != LZMA_OK) {
      return absl::ResourceExhaustedError(
          absl::StrCat(file_->path(), ": no memory for the decompressor"));
    }
    stream_.next_in = file_->data();
    stream_.avail_in = static_cast<size_t>(file_->size());
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> Read(char* out, int64_t max_bytes) override {
    stream_.next_out = reinterpret_cast<uint8_t*>(out);
    stream_.avail_out = static_cast<size_t>(max_bytes);
    while (!ended_ && stream_.avail_out > 0) {
      const lzma_ret result = lzma_code(&stream_, LZMA_FINISH);
      if (result == LZMA_STREAM_END) {
        ended_ = true;
      } else if (result == LZMA_MEMLIMIT_ERROR || result == LZMA_MEM_ERROR) {
        return absl::ResourceExhaustedError(absl::StrCat(
            file_->path(), ": decompressing it takes more than ", kMaxDecoderBytes, " bytes"));
      } else if (result != LZMA_OK) {
        return absl::DataLossError(absl::StrCat(
            file_->path(), ": expected an xz archive, found damage or its end near byte ",
            file_->size() - static_cast<int64_t>(stream_.avail_in)));
      }
    }
    return max_bytes - static_cast<int64_t>(stream_.avail_out);
  }

 private:
  std::unique_ptr<MappedFile> file_;
  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool ended_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TextFile>> TextFile::Open(const std::string& path) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  if (!std::string_view(path).ends_with(".xz")) {
    return std::make_unique<PlainFile>(std::move(file));
  }
  auto archive = std::make_unique<XzFile>(std::move(file));
  US_RETURN_IF_ERROR(archive->Start());
  return archive;
}

absl::StatusOr<int64_t> TextFile::Skip(int64_t num_bytes) {
  std::vector<char> buffer(static_cast<size_t>(std::min(num_bytes, kSkipBytes)));
  int64_t skipped = 0;
  while (skipped < num_bytes) {
    US_ASSIGN_OR_RETURN(const int64_t count,
                        Read(buffer.data(), std::min(num_bytes - skipped, kSkipBytes)));
    if (count == 0) break;
    skipped += count;
  }
  return skipped;
}

}  // namespace ultrasketch
