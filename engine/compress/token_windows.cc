#include "engine/compress/token_windows.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/checksum.h"

namespace ultrasketch {
namespace {

constexpr char kWindowsName[] = "windows";
constexpr char kTokenizerKey[] = "ultrasketch.tokenizer";

absl::StatusOr<std::string> TokenizerChecksum(const std::string& path) {
  US_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  return ChecksumString(Crc64(file->data(), file->size()));
}

}  // namespace

bool IsTokenWindowsPath(std::string_view path) {
  constexpr std::string_view kEnd = ".safetensors";
  return path.size() > kEnd.size() && path.substr(path.size() - kEnd.size()) == kEnd;
}

absl::StatusOr<std::unique_ptr<TokenWindows>> TokenWindows::Open(const std::string& path,
                                                                 const std::string& tokenizer_path,
                                                                 ThreadPool& pool) {
  std::unique_ptr<TokenWindows> windows(new TokenWindows());
  US_ASSIGN_OR_RETURN(windows->file_, SafetensorsFile::Open(path));
  const SafetensorsFile& file = *windows->file_;
  const auto tokenizer = file.metadata().find(kTokenizerKey);
  if (tokenizer == file.metadata().end() || file.tensors().size() != 1 ||
      file.tensors()[0].name != kWindowsName || file.tensors()[0].view.shape.size() != 2 ||
      (file.tensors()[0].view.dtype != DType::kU16 &&
       file.tensors()[0].view.dtype != DType::kU32) ||
      file.tensors()[0].view.num_elements() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a file of windows that 'ultrasketch self-text' wrote, found another"));
  }
  US_ASSIGN_OR_RETURN(const std::string expected, TokenizerChecksum(tokenizer_path));
  if (tokenizer->second != expected) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": written with a tokenizer of checksum ",
                                                   tokenizer->second, ", expected that of ",
                                                   tokenizer_path, ", ", expected));
  }
  US_RETURN_IF_ERROR(file.VerifyChecksums(pool));
  windows->view_ = file.tensors()[0].view;
  windows->key_ = absl::StrCat("windows:", expected, ":", windows->view_.shape[1], ":",
                               ChecksumString(*file.FindChecksum(kWindowsName)));
  return windows;
}

void TokenWindows::Copy(int64_t window, int64_t* out) const {
  const int64_t count = window_tokens();
  const bool is_narrow = view_.dtype == DType::kU16;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t token = 0;  // little-endian: its first bytes are the narrow one's
    std::memcpy(&token, view_.data + (window * count + i) * (is_narrow ? 2 : 4), is_narrow ? 2 : 4);
    out[i] = token;
  }
}

absl::Status WriteTokenWindows(const std::string& path, const std::string& tokenizer_path,
                               absl::Span<const int32_t> tokens, int64_t window_tokens) {
  US_CHECK(window_tokens > 0 && static_cast<int64_t>(tokens.size()) % window_tokens == 0);
  US_ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerChecksum(tokenizer_path));
  TensorToWrite tensor;
  tensor.name = kWindowsName;
  tensor.shape = {static_cast<int64_t>(tokens.size()) / window_tokens, window_tokens};
  std::vector<uint16_t> narrow;
  if (tokens.empty() ||
      *std::max_element(tokens.begin(), tokens.end()) <= std::numeric_limits<uint16_t>::max()) {
    narrow.assign(tokens.begin(), tokens.end());
    tensor.dtype = DType::kU16;
    tensor.data = narrow.data();
  } else {
    tensor.dtype = DType::kU32;
    tensor.data = tokens.data();
  }
  return WriteSafetensors(path, {tensor}, {{kTokenizerKey, tokenizer}});
}

}  // namespace ultrasketch
