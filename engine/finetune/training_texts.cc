#include "engine/finetune/training_texts.h"

#include <algorithm>
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
  US_ASSIGN_OR_RETURN(std::unique_ptr<TokenCache> tokens, TokenCache::Open(options.cache, pool));
  US_RETURN_IF_ERROR(CheckVocabulary(*tokens, options.vocab_size));
  std::vector<int64_t> eval_tokens;
  int64_t num_held_out = 0;
  if (options.eval_file.empty()) {
    num_held_out = std::min(options.eval_max_tokens, tokens->size() / kHeldOutShare);
    eval_tokens.resize(static_cast<size_t>(num_held_out));
    tokens->Copy(tokens->size() - num_held_out, num_held_out, eval_tokens.data());
  } else {
    US_ASSIGN_OR_RETURN(eval_tokens, ReadEvalTokens(options));
    US_RETURN_IF_ERROR(CheckVocabulary(eval_tokens.data(), static_cast<int64_t>(eval_tokens.size()),
                                       options.vocab_size));
  }
  if (eval_tokens.size() < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.eval_file.empty() ? "the text to train on" : options.eval_file,
        ": too short to evaluate the model on: ", eval_tokens.size(), " tokens; expected 2"));
  }
  US_ASSIGN_OR_RETURN(WindowOrder order, WindowOrder::Make(tokens->size() - num_held_out,
                                                           options.window_tokens, options.seed));
  std::unique_ptr<TrainingTexts> texts(
      new TrainingTexts(std::move(tokens), std::move(order), options.window_tokens));
  texts->num_held_out_ = num_held_out;
  texts->eval_tokens_ = std::move(eval_tokens);
  return texts;
}

void TrainingTexts::CopyWindows(int64_t first, int64_t count, int64_t* out) {
  for (const int64_t start : order_.Starts(first, count)) {
    tokens_->Copy(start, window_tokens_, out);
    out += window_tokens_;
  }
}

}  // namespace ultrasketch
