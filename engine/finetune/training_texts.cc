#include "engine/finetune/training_texts.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/compress/evaluate.h"
#include "engine/compress/text_file.h"
#include "engine/format/tokenizer/tokenizer_folder.h"

namespace ultrasketch {
namespace {

// At most one in so many tokens is held out.
constexpr int64_t kHeldOutShare = 20;

// Of a text to evaluate on: far more than the tokens that are taken from it.
constexpr int64_t kMaxEvalBytes = int64_t{1} << 28;

absl::StatusOr<std::string> ReadText(const std::string& path) {
  US_ASSIGN_OR_RETURN(const auto file, TextFile::Open(path));
  constexpr size_t kPieceBytes = size_t{1} << 20;
  std::string text;
  for (bool at_end = false; !at_end;) {
    const size_t size = text.size();
    text.resize(size + kPieceBytes);
    US_ASSIGN_OR_RETURN(const int64_t count,
                        file->Read(text.data() + size, static_cast<int64_t>(kPieceBytes)));
    text.resize(size + static_cast<size_t>(count));
    at_end = text.size() < size + kPieceBytes;
    if (static_cast<int64_t>(text.size()) > kMaxEvalBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": expected at most ", kMaxEvalBytes, " bytes to evaluate on"));
    }
  }
  return text;
}

absl::StatusOr<std::vector<int64_t>> ReadEvalTokens(const TrainingTextsOptions& options) {
  US_ASSIGN_OR_RETURN(
      const FolderTokenizer loaded,
      LoadFolderTokenizer(
          std::filesystem::path(options.cache.tokenizer_path).parent_path().string()));
  US_ASSIGN_OR_RETURN(const std::string text, ReadText(options.eval_file));
  const absl::StatusOr<std::vector<int32_t>> ids =
      EncodeForEvaluation(*loaded.tokenizer, static_cast<int32_t>(options.vocab_size), text,
                          EvaluateOptions().add_special_tokens);
  if (!ids.ok()) return Annotate(ids.status(), options.eval_file);
  const size_t count = std::min(ids->size(), static_cast<size_t>(options.eval_max_tokens));
  return std::vector<int64_t>(ids->begin(), ids->begin() + static_cast<int64_t>(count));
}

// A token that the tokenizer has and the model lacks would be read beyond its tables.
absl::Status CheckVocabulary(const int64_t* tokens, int64_t count, int64_t vocab_size) {
  const int64_t largest = count == 0 ? 0 : *std::max_element(tokens, tokens + count);
  if (largest < vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the tokenizer gives token ", largest,
                                                 ", and the model has ", vocab_size, " of them"));
}

absl::Status CheckVocabulary(const TokenCache& tokens, int64_t vocab_size) {
  std::vector<int64_t> some(1 << 16);
  for (int64_t first = 0; first < tokens.size(); first += static_cast<int64_t>(some.size())) {
    const int64_t count = std::min(static_cast<int64_t>(some.size()), tokens.size() - first);
    tokens.Copy(first, count, some.data());
    US_RETURN_IF_ERROR(CheckVocabulary(some.data(), count, vocab_size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingTexts>> TrainingTexts::Open(
    const TrainingTextsOptions& options, ThreadPool& pool) {
  std::unique_ptr<TrainingTexts> texts(new TrainingTexts());
  texts->window_tokens_ = options.window_tokens;
  US_RETURN_IF_ERROR(texts->OpenWindows(options, pool));
  if (!options.cache.text_files.empty() || texts->windows_.empty()) {
    US_ASSIGN_OR_RETURN(texts->tokens_, TokenCache::Open(options.cache, pool));
    US_RETURN_IF_ERROR(CheckVocabulary(*texts->tokens_, options.vocab_size));
    texts->key_ = absl::StrCat(texts->tokens_->key(), texts->key_);
  }
  if (options.eval_file.empty()) {
    texts->HoldOut(options);
  } else {
    US_ASSIGN_OR_RETURN(texts->eval_tokens_, ReadEvalTokens(options));
    US_RETURN_IF_ERROR(CheckVocabulary(texts->eval_tokens_.data(),
                                       static_cast<int64_t>(texts->eval_tokens_.size()),
                                       options.vocab_size));
  }
  if (texts->eval_tokens_.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.eval_file.empty() ? "the text to train on" : options.eval_file,
                     ": too short to evaluate the model on: ", texts->eval_tokens_.size(),
                     " tokens; expected 2"));
  }
  if (texts->tokens_ != nullptr) {
    US_ASSIGN_OR_RETURN(texts->order_,
                        WindowOrder::Make(texts->tokens_->size() - texts->num_held_out_,
                                          options.window_tokens, options.seed));
  }
  if (!texts->windows_.empty()) {
    texts->windows_share_ = texts->tokens_ != nullptr ? options.windows_share : 1;
    US_ASSIGN_OR_RETURN(texts->windows_order_,
                        WindowOrder::OfWindows(texts->num_windows_, options.seed));
  }
  return texts;
}

absl::Status TrainingTexts::OpenWindows(const TrainingTextsOptions& options, ThreadPool& pool) {
  std::vector<int64_t> window(static_cast<size_t>(options.window_tokens));
  for (const std::string& path : options.window_files) {
    US_ASSIGN_OR_RETURN(std::unique_ptr<TokenWindows> file,
                        TokenWindows::Open(path, options.cache.tokenizer_path, pool));
    if (file->window_tokens() != options.window_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": has windows of ",
                                                     file->window_tokens(), " tokens, expected ",
                                                     options.window_tokens, " (--context)"));
    }
    for (int64_t i = 0; i < file->num_windows(); ++i) {
      file->Copy(i, window.data());
      US_RETURN_IF_ERROR(CheckVocabulary(window.data(), options.window_tokens, options.vocab_size));
    }
    num_windows_ += file->num_windows();
    absl::StrAppend(&key_, "+", file->key());
    windows_.push_back(std::move(file));
  }
  return absl::OkStatus();
}

void TrainingTexts::HoldOut(const TrainingTextsOptions& options) {
  if (tokens_ != nullptr) {
    num_held_out_ = std::min(options.eval_max_tokens, tokens_->size() / kHeldOutShare);
    eval_tokens_.resize(static_cast<size_t>(num_held_out_));
    tokens_->Copy(tokens_->size() - num_held_out_, num_held_out_, eval_tokens_.data());
    return;
  }
  const int64_t count =
      std::min(options.eval_max_tokens / window_tokens_, num_windows_ / kHeldOutShare);
  num_windows_ -= count;
  num_held_out_ = count * window_tokens_;
  eval_tokens_.resize(static_cast<size_t>(num_held_out_));
  for (int64_t i = 0; i < count; ++i) {
    CopyWindow(num_windows_ + i, eval_tokens_.data() + i * window_tokens_);
  }
}

void TrainingTexts::CopyWindow(int64_t window, int64_t* out) const {
  for (const auto& file : windows_) {
    if (window < file->num_windows()) return file->Copy(window, out);
    window -= file->num_windows();
  }
}

void TrainingTexts::CopyWindows(int64_t first, int64_t count, int64_t* out) {
  for (int64_t index = first; index < first + count; ++index, out += window_tokens_) {
    // Of the first `index`, so many were windows.
    const auto windows_before =
        static_cast<int64_t>(std::floor(windows_share_ * static_cast<double>(index)));
    const auto windows_then =
        static_cast<int64_t>(std::floor(windows_share_ * static_cast<double>(index + 1)));
    if (windows_then > windows_before) {
      CopyWindow(windows_order_->Starts(windows_before, 1)[0], out);
    } else {
      tokens_->Copy(order_->Starts(index - windows_before, 1)[0], window_tokens_, out);
    }
  }
}

}  // namespace ultrasketch
