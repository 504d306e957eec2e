#include "engine/compress/calibration.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/text_file.h"

namespace ultrasketch {
namespace {

// Text read for a token of a window: more than texts have, so that few windows fall short.
constexpr int64_t kBytesPerToken = 8;

bool StartsCharacter(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) != 0x80; }

// Without what precedes the first line's start (or, in one long line, the first character's), and
// without a last character that may be cut off.
std::string_view WholeCharacters(std::string_view text, bool cut_start, bool cut_end) {
  if (cut_start) {
    size_t start = text.substr(0, text.size() / 4).find('\n');
    start = start == std::string_view::npos ? 0 : start + 1;
    while (start < text.size() && !StartsCharacter(text[start])) ++start;
    text.remove_prefix(start);
  }
  if (cut_end) {
    size_t end = text.size();
    while (end > 0 && !StartsCharacter(text[end - 1])) --end;
    text = text.substr(0, end > 0 ? end - 1 : 0);
  }
  return text;
}

absl::StatusOr<std::vector<int32_t>> Tokenize(const Tokenizer& tokenizer, std::string_view text,
                                              const std::string& path) {
  EncodeOptions options;
  options.add_special_tokens = false;
  auto tokens = tokenizer.Encode(text, options);
  if (!tokens.ok()) return Annotate(tokens.status(), path);
  return tokens;
}

// What the template puts before a text, which is not what it puts behind.
absl::StatusOr<std::vector<int32_t>> BeginningTokens(const Tokenizer& tokenizer) {
  constexpr std::string_view kText = "a";
  US_ASSIGN_OR_RETURN(const std::vector<int32_t> plain,
                      tokenizer.Encode(kText, {.add_special_tokens = false}));
  US_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(kText));
  ids.erase(std::search(ids.begin(), ids.end(), plain.begin(), plain.end()), ids.end());
  return ids;
}

std::string Count(int64_t count, std::string_view noun) {
  return absl::StrCat(count, " ", A(noun), count == 1 ? "" : "s");
}

class CalibrationReader {
 public:
  CalibrationReader(const Tokenizer& tokenizer, std::vector<int32_t> beginning, int64_t num_windows,
                    int64_t window_tokens)
      : tokenizer_(tokenizer),
        beginning_(std::move(beginning)),
        num_windows_(num_windows),
        window_tokens_(window_tokens),
        text_tokens_(std::max<int64_t>(window_tokens - static_cast<int64_t>(beginning_.size()), 1)),
        chunk_bytes_(std::max<int64_t>(window_tokens * kBytesPerToken, 64)) {}

  absl::StatusOr<CalibrationText> Read(const std::vector<std::string>& files) {
    std::vector<int64_t> file_bytes;
    int64_t total_bytes = 0;
    for (const std::string& path : files) {
      US_ASSIGN_OR_RETURN(const auto file, TextFile::Open(path));
      US_ASSIGN_OR_RETURN(const int64_t num_bytes, file->Skip(std::numeric_limits<int64_t>::max()));
      file_bytes.push_back(num_bytes);
      total_bytes += num_bytes;
    }
    const bool read_all = total_bytes / chunk_bytes_ <= num_windows_;
    int64_t first_byte = 0;
    for (size_t index = 0; index < files.size(); ++index) {
      if (read_all) {
        US_RETURN_IF_ERROR(AddWhole(files[index], file_bytes[index]));
      } else {
        US_RETURN_IF_ERROR(AddChunks(files[index], file_bytes[index], first_byte, total_bytes));
      }
      first_byte += file_bytes[index];
    }
    SpreadWindows();
    if (text_.windows.empty()) {
      return absl::InvalidArgumentError("the calibration files have no text");
    }
    return std::move(text_);
  }

 private:
  absl::Status AddWhole(const std::string& path, int64_t num_bytes) {
    US_ASSIGN_OR_RETURN(const auto file, TextFile::Open(path));
    std::string contents(static_cast<size_t>(num_bytes), '\0');
    US_ASSIGN_OR_RETURN(const int64_t count, file->Read(contents.data(), num_bytes));
    contents.resize(static_cast<size_t>(count));
    US_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, Tokenize(tokenizer_, contents, path));
    for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(text_tokens_)) {
      AddWindow(absl::MakeConstSpan(tokens).subspan(first));
    }
    return absl::OkStatus();
  }

  // The windows whose place in all files together, [first_byte, first_byte + num_bytes) of
  // `total_bytes`, is in this one.
  absl::Status AddChunks(const std::string& path, int64_t num_bytes, int64_t first_byte,
                         int64_t total_bytes) {
    US_ASSIGN_OR_RETURN(const auto file, TextFile::Open(path));
    std::string chunk;
    int64_t position = 0;
    const double stride = static_cast<double>(total_bytes) / static_cast<double>(num_windows_);
    for (int64_t window = 0; window < num_windows_; ++window) {
      const auto place = static_cast<int64_t>(stride * static_cast<double>(window));
      if (place < first_byte || place >= first_byte + num_bytes) continue;
      // At the end of a file the window lies before its place; the stride is at least a chunk, but
      // not what the last window left of it.
      const int64_t start =
          std::max(position, std::min(place - first_byte, num_bytes - chunk_bytes_));
      US_RETURN_IF_ERROR(file->Skip(start - position).status());
      chunk.resize(static_cast<size_t>(chunk_bytes_));
      US_ASSIGN_OR_RETURN(const int64_t count, file->Read(chunk.data(), chunk_bytes_));
      chunk.resize(static_cast<size_t>(count));
      position = start + count;
      const std::string_view whole = WholeCharacters(chunk, start > 0, position < num_bytes);
      US_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, Tokenize(tokenizer_, whole, path));
      AddWindow(tokens);
    }
    return absl::OkStatus();
  }

  // Of more windows than asked for, those that are spread evenly.
  void SpreadWindows() {
    const auto count = static_cast<int64_t>(text_.windows.size());
    if (count <= num_windows_) return;
    std::vector<std::vector<int32_t>> chosen;
    for (int64_t window = 0; window < num_windows_; ++window) {
      chosen.push_back(
          std::move(text_.windows[static_cast<size_t>(window * count / num_windows_)]));
    }
    text_.windows = std::move(chosen);
  }

  void AddWindow(absl::Span<const int32_t> tokens) {
    if (tokens.empty()) return;
    tokens = tokens.subspan(0, static_cast<size_t>(text_tokens_));
    std::vector<int32_t>& window = text_.windows.emplace_back(beginning_);
    window.insert(window.end(), tokens.begin(), tokens.end());
    window.resize(std::min(window.size(), static_cast<size_t>(window_tokens_)));
  }

  const Tokenizer& tokenizer_;
  const std::vector<int32_t> beginning_;  // of every window
  const int64_t num_windows_;
  const int64_t window_tokens_;
  const int64_t text_tokens_;  // of a window, what is the files' text
  const int64_t chunk_bytes_;
  CalibrationText text_;
};

}  // namespace

int64_t CalibrationText::num_tokens() const {
  int64_t count = 0;
  for (const auto& window : windows) count += static_cast<int64_t>(window.size());
  return count;
}

absl::StatusOr<CalibrationText> ReadCalibration(const std::vector<std::string>& files,
                                                const Tokenizer& tokenizer, int64_t num_windows,
                                                int64_t window_tokens, bool add_special_tokens) {
  std::vector<int32_t> beginning;
  if (add_special_tokens) {
    US_ASSIGN_OR_RETURN(beginning, BeginningTokens(tokenizer));
  }
  return CalibrationReader(tokenizer, std::move(beginning), num_windows, window_tokens).Read(files);
}

std::string CalibrationWarning(const CalibrationText& text, int64_t asked_windows,
                               int64_t asked_window_tokens) {
  const int64_t tokens = text.num_tokens();
  const auto windows = static_cast<int64_t>(text.windows.size());
  const int64_t asked_tokens = asked_windows * asked_window_tokens;
  std::string warning =
      absl::StrCat(Count(tokens, "token"), " of calibration text in ", Count(windows, "window"));
  // A window that ends a few tokens early, because its bytes held no more, is nothing to act on.
  const bool is_less = windows < asked_windows || tokens < asked_tokens - asked_tokens / 20;
  if (!is_less && tokens >= kFewCalibrationTokens) return std::string();
  if (is_less) {
    absl::StrAppend(&warning, "; asked for were ", Count(asked_tokens, "token"), " in ",
                    Count(asked_windows, "window"));
  }
  if (tokens < kFewCalibrationTokens) {
    absl::StrAppend(&warning, "; a fit to fewer than ", kFewCalibrationTokens,
                    " tokens follows those few and not the language: perplexity may be many times "
                    "what the same size can have");
  }
  return warning;
}

absl::StatusOr<CalibrationText> SampleCalibration(Model& model,
                                                  absl::Span<const int32_t> eos_token_ids,
                                                  uint64_t seed, int64_t num_windows,
                                                  int64_t window_tokens,
                                                  const std::atomic<bool>* cancelled) {
  const ModelConfig& config = model.config();
  const KvCacheLayout& layout = model.cache_layout();
  const int64_t blocks_per_window = layout.BlocksForTokens(window_tokens);
  const int64_t windows_at_once =
      std::min({layout.num_blocks / blocks_per_window, model.options().max_step_tokens,
                model.options().max_step_logits});
  if (windows_at_once < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a calibration window of ", window_tokens, " tokens takes ", blocks_per_window,
                     " blocks of KV cache, the model has ", layout.num_blocks));
  }
  std::vector<BlockId> blocks(static_cast<size_t>(layout.num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);

  SamplingParams params;
  params.seed = seed;
  CalibrationText text;
  for (int64_t first = 0; first < num_windows; first += windows_at_once) {
    const int64_t count = std::min(windows_at_once, num_windows - first);
    std::vector<std::vector<int32_t>> windows(static_cast<size_t>(count));
    for (int64_t index = 0; index < count; ++index) {
      const auto random_id =
          static_cast<int32_t>(RandomWord(seed, static_cast<uint64_t>(first + index), 0) %
                               static_cast<uint64_t>(config.vocab_size));
      windows[static_cast<size_t>(index)].push_back(
          config.bos_token_id.value_or(eos_token_ids.empty() ? random_id : eos_token_ids[0]));
    }
    for (int64_t position = 0; position + 1 < window_tokens; ++position) {
      if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
        return absl::CancelledError("compression was cancelled");
      }
      std::vector<SequenceSlice> sequences;
      std::vector<SampleRequest> requests;
      for (int64_t index = 0; index < count; ++index) {
        sequences.push_back(
            {absl::MakeConstSpan(windows[static_cast<size_t>(index)]).last(1), position,
             absl::MakeConstSpan(blocks).subspan(static_cast<size_t>(index * blocks_per_window),
                                                 static_cast<size_t>(blocks_per_window)),
             1});
        SampleRequest request;
        request.logits_row = index;
        request.params = &params;
        request.stream = static_cast<uint64_t>(first + index);
        request.index = static_cast<uint64_t>(position);
        requests.push_back(request);
      }
      std::vector<SampledToken> tokens(static_cast<size_t>(count));
      US_RETURN_IF_ERROR(model.Forward(sequences));
      US_RETURN_IF_ERROR(model.Sample(requests, absl::MakeSpan(tokens)));
      for (size_t index = 0; index < windows.size(); ++index) {
        windows[index].push_back(tokens[index].id);
      }
    }
    for (auto& window : windows) text.windows.push_back(std::move(window));
  }
  return text;
}

}  // namespace ultrasketch
