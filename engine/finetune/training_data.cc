#include "engine/finetune/training_data.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/compress/text_file.h"
#include "engine/format/checksum.h"
#include "engine/format/tokenizer/tokenizer_folder.h"

namespace ultrasketch {
namespace {

constexpr char kTokensName[] = "tokens";
constexpr char kKeyName[] = "ultrasketch.tokens";

// Text that is tokenized at once, and the part of it that one thread takes.
constexpr size_t kBlockBytes = size_t{32} << 20;
constexpr size_t kPieceBytes = size_t{1} << 20;

bool IsContinuation(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) == 0x80; }

bool IsSpace(char byte) { return byte == ' ' || byte == '\n' || byte == '\r' || byte == '\t'; }

// Where to cut `text` at or before `limit`, which is less than its size: where a line begins with
// something other than space, so that no token crosses the cut; or, in a text without lines,
// between two characters.
size_t CutBefore(std::string_view text, size_t limit) {
  for (size_t cut = limit; cut > limit / 2; --cut) {
    if (text[cut - 1] == '\n' && !IsSpace(text[cut])) return cut;
  }
  size_t cut = limit;
  while (cut > 1 && IsContinuation(text[cut])) --cut;
  return cut;
}

absl::StatusOr<uint64_t> ChecksumOfFile(const std::string& path) {
  US_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  return Crc64(file->data(), file->size());
}

// Identifies texts and tokenizer by their contents.
absl::StatusOr<std::string> MakeKey(const TokenCache::Options& options) {
  US_ASSIGN_OR_RETURN(const uint64_t tokenizer, ChecksumOfFile(options.tokenizer_path));
  std::string key = absl::StrCat("1:", ChecksumString(tokenizer));
  const auto folder = std::filesystem::path(options.tokenizer_path).parent_path();
  const auto config = ChecksumOfFile((folder / "tokenizer_config.json").string());
  if (config.ok()) absl::StrAppend(&key, ":", ChecksumString(*config));
  for (const std::string& path : options.text_files) {
    US_ASSIGN_OR_RETURN(const uint64_t checksum, ChecksumOfFile(path));
    absl::StrAppend(&key, ":", ChecksumString(checksum));
  }
  return key;
}

class TextTokenizer {
 public:
  TextTokenizer(const Tokenizer& tokenizer, const TokenCache::Options& options, ThreadPool& pool)
      : tokenizer_(tokenizer), options_(options), pool_(pool) {}

  absl::Status Add(const std::string& path) {
    US_ASSIGN_OR_RETURN(const auto file, TextFile::Open(path));
    std::string text;
    bool at_end = false;
    while (!at_end || !text.empty()) {
      const size_t kept = text.size();
      if (!at_end && kept < kBlockBytes) {
        text.resize(kBlockBytes);
        US_ASSIGN_OR_RETURN(
            const int64_t count,
            file->Read(text.data() + kept, static_cast<int64_t>(kBlockBytes - kept)));
        text.resize(kept + static_cast<size_t>(count));
        at_end = text.size() < kBlockBytes;
      }
      const size_t cut = at_end ? text.size() : CutBefore(text, text.size() - 1);
      US_RETURN_IF_ERROR(AddBlock(std::string_view(text).substr(0, cut), path));
      text.erase(0, cut);
    }
    return absl::OkStatus();
  }

  std::vector<int32_t> TakeTokens() { return std::move(tokens_); }

 private:
  absl::Status AddBlock(std::string_view text, const std::string& path) {
    std::vector<std::string_view> pieces;
    while (text.size() > kPieceBytes) {
      const size_t cut = CutBefore(text, kPieceBytes);
      pieces.push_back(text.substr(0, cut));
      text.remove_prefix(cut);
    }
    if (!text.empty()) pieces.push_back(text);
    std::vector<absl::StatusOr<std::vector<int32_t>>> encoded(pieces.size());
    pool_.ParallelFor(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t index = begin; index < end; ++index) {
        const auto i = static_cast<size_t>(index);
        if (options_.cancelled != nullptr && *options_.cancelled) return;
        encoded[i] = tokenizer_.Encode(pieces[i], {.add_special_tokens = false});
      }
    });
    if (options_.cancelled != nullptr && *options_.cancelled) {
      return absl::CancelledError("the text was not tokenized to its end");
    }
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (!encoded[i].ok()) {
        return Annotate(encoded[i].status(),
                        absl::StrCat(path, ": in the text from byte ", num_bytes_));
      }
      tokens_.insert(tokens_.end(), encoded[i]->begin(), encoded[i]->end());
      num_bytes_ += static_cast<int64_t>(pieces[i].size());
    }
    if (options_.progress) options_.progress(num_bytes_);
    return absl::OkStatus();
  }

  const Tokenizer& tokenizer_;
  const TokenCache::Options& options_;
  ThreadPool& pool_;
  int64_t num_bytes_ = 0;
  std::vector<int32_t> tokens_;
};

absl::Status CheckNumWindows(int64_t num_windows) {
  if (num_windows <= std::numeric_limits<uint32_t>::max()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the text has ", num_windows, " windows; expected fewer than 2^32"));
}

absl::Status WriteCache(const TokenCache::Options& options, const std::string& key,
                        ThreadPool& pool) {
  US_ASSIGN_OR_RETURN(
      const FolderTokenizer loaded,
      LoadFolderTokenizer(std::filesystem::path(options.tokenizer_path).parent_path().string()));
  const std::unique_ptr<Tokenizer>& tokenizer = loaded.tokenizer;
  TextTokenizer text_tokenizer(*tokenizer, options, pool);
  for (const std::string& path : options.text_files) {
    US_RETURN_IF_ERROR(text_tokenizer.Add(path));
  }
  const std::vector<int32_t> tokens = text_tokenizer.TakeTokens();
  const std::filesystem::path folder = std::filesystem::path(options.cache_path).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), folder.string());
  TensorToWrite tensor;
  tensor.name = kTokensName;
  tensor.shape = {static_cast<int64_t>(tokens.size())};
  std::vector<uint16_t> narrow;
  if (tokenizer->vocab_size() <= 1 << 16) {
    narrow.assign(tokens.begin(), tokens.end());
    tensor.dtype = DType::kU16;
    tensor.data = narrow.data();
  } else {
    tensor.dtype = DType::kU32;
    tensor.data = tokens.data();
  }
  return WriteSafetensors(options.cache_path, {tensor}, {{kKeyName, key}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenCache>> TokenCache::Open(const Options& options,
                                                             ThreadPool& pool) {
  if (options.text_files.empty()) return absl::InvalidArgumentError("there is no text");
  std::unique_ptr<TokenCache> cache(new TokenCache());
  US_ASSIGN_OR_RETURN(cache->key_, MakeKey(options));
  for (const bool may_write : {true, false}) {
    auto file = SafetensorsFile::Open(options.cache_path);
    if (!file.ok() && !absl::IsNotFound(file.status())) return file.status();
    if (file.ok()) {
      const auto& metadata = (*file)->metadata();
      const auto key = metadata.find(kKeyName);
      if (key == metadata.end()) {
        return absl::DataLossError(
            absl::StrCat(options.cache_path, ": expected a file of tokens, found another file"));
      }
      if (key->second == cache->key_) {
        cache->file_ = *std::move(file);
        break;
      }
    }
    if (!may_write) return absl::DataLossError(absl::StrCat(options.cache_path, ": was replaced"));
    US_RETURN_IF_ERROR(WriteCache(options, cache->key_, pool));
  }
  US_RETURN_IF_ERROR(cache->file_->VerifyChecksums(pool));
  const std::vector<NamedTensor>& tensors = cache->file_->tensors();
  if (tensors.size() != 1 || tensors[0].name != kTokensName || tensors[0].view.shape.size() != 1 ||
      (tensors[0].view.dtype != DType::kU16 && tensors[0].view.dtype != DType::kU32)) {
    return absl::DataLossError(
        absl::StrCat(options.cache_path, ": expected one tensor of U16 or U32, 'tokens'"));
  }
  cache->view_ = tensors[0].view;
  return cache;
}

void TokenCache::Copy(int64_t first, int64_t count, int64_t* out) const {
  if (view_.dtype == DType::kU16) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t token;
      std::memcpy(&token, view_.data + (first + i) * 2, sizeof(token));
      out[i] = token;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t token;
      std::memcpy(&token, view_.data + (first + i) * 4, sizeof(token));
      out[i] = token;
    }
  }
}

absl::StatusOr<WindowOrder> WindowOrder::Make(int64_t num_tokens, int64_t window_tokens,
                                              uint64_t seed) {
  // One window less, so that there is room for the offset.
  const int64_t num_windows = num_tokens / window_tokens - 1;
  if (num_windows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("the text to train on has ", num_tokens,
                                                   " tokens; expected at least ", 2 * window_tokens,
                                                   ", two windows"));
  }
  US_RETURN_IF_ERROR(CheckNumWindows(num_windows));
  return WindowOrder(num_windows, window_tokens, seed);
}

absl::StatusOr<WindowOrder> WindowOrder::OfWindows(int64_t num_windows, uint64_t seed) {
  if (num_windows < 1) return absl::InvalidArgumentError("there are no windows to train on");
  US_RETURN_IF_ERROR(CheckNumWindows(num_windows));
  return WindowOrder(num_windows, /*window_tokens=*/1, seed);
}

void WindowOrder::ShuffleFor(int64_t epoch) {
  if (epoch == epoch_) return;
  epoch_ = epoch;
  const auto stream = static_cast<uint64_t>(epoch);
  const auto count = static_cast<size_t>(num_windows_);
  std::vector<uint64_t> keys(count);
  for (size_t i = 0; i < count; ++i) keys[i] = RandomWord(seed_, stream, i);
  order_.resize(count);
  std::iota(order_.begin(), order_.end(), 0u);
  std::sort(order_.begin(), order_.end(),
            [&](uint32_t a, uint32_t b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  offset_ = static_cast<int64_t>(RandomWord(seed_, stream, std::numeric_limits<uint64_t>::max()) %
                                 static_cast<uint64_t>(window_tokens_));
}

std::vector<int64_t> WindowOrder::Starts(int64_t first, int64_t count) {
  std::vector<int64_t> starts;
  for (int64_t index = first; index < first + count; ++index) {
    ShuffleFor(index / num_windows_);
    starts.push_back(offset_ +
                     window_tokens_ * int64_t{order_[static_cast<size_t>(index % num_windows_)]});
  }
  return starts;
}

}  // namespace ultrasketch
