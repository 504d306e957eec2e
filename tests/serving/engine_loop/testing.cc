#include "tests/serving/engine_loop/testing.h"

#include <utility>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

std::string Utf8(int code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 63))};
}

}  // namespace

std::shared_ptr<const Tokenizer> ByteTokenizer(const std::vector<std::string>& pieces,
                                               bool has_template) {
  // The spelling of bytes that are not printable begins at U+0100, in order.
  nlohmann::json vocab = nlohmann::json::object();
  int next_code_point = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                              (byte >= 0xAE && byte <= 0xFF);
    vocab[Utf8(is_printable ? byte : next_code_point++)] = byte;
  }
  int32_t next_id = kFirstPieceToken;
  for (const std::string& piece : pieces) vocab[piece] = next_id++;
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", false}};
  const nlohmann::json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const nlohmann::json special = {{"SpecialToken", {{"id", "<|end|>"}, {"type_id", 0}}}};
  const nlohmann::json with_beginning = {
      {"type", "TemplateProcessing"},
      {"single", {special, sequence}},
      {"pair", {special, sequence, sequence}},
      {"special_tokens",
       {{"<|end|>", {{"id", "<|end|>"}, {"ids", {kEndToken}}, {"tokens", {"<|end|>"}}}}}}};
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {{{"id", kEndToken},
         {"content", "<|end|>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", has_template ? with_beginning : nlohmann::json()},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}},
  };
  absl::StatusOr<std::unique_ptr<Tokenizer>> parsed =
      Tokenizer::Parse(tokenizer.dump(), "ByteTokenizer");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  US_CHECK(parsed.ok());
  return *std::move(parsed);
}

std::vector<int32_t> Bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
  return ids;
}

RecordingSink::RecordingSink(int num_completions)
    : records_(static_cast<size_t>(num_completions)) {}

void RecordingSink::OnDelta(GenerationDelta delta) {
  if (on_delta != nullptr) on_delta(delta);
  MutexLock lock(mutex_);
  Record& record = records_[static_cast<size_t>(delta.completion)];
  EXPECT_FALSE(record.result.has_value()) << "a delta after the end";
  record.text += delta.text;
  record.token_ids.insert(record.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  record.logprobs.insert(record.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
  ++record.num_deltas;
}

void RecordingSink::OnFinish(GenerationResult result) {
  if (on_finish != nullptr) on_finish(result);
  MutexLock lock(mutex_);
  Record& record = records_[static_cast<size_t>(result.completion)];
  EXPECT_FALSE(record.result.has_value()) << "a second end";
  record.result = std::move(result);
}

void RecordingSink::WaitForTokens(size_t num_tokens, int completion) {
  const auto reached = [this, num_tokens, completion]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    const Record& record = records_[static_cast<size_t>(completion)];
    return record.result.has_value() || record.token_ids.size() >= num_tokens;
  };
  MutexLock lock(mutex_);
  mutex_.Await(reached);
}

RecordingSink::Record RecordingSink::Wait(int completion) {
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (const Record& record : records_) {
      if (!record.result.has_value()) return false;
    }
    return true;
  };
  MutexLock lock(mutex_);
  mutex_.Await(ended);
  return records_[static_cast<size_t>(completion)];
}

bool RecordingSink::finished() const {
  MutexLock lock(mutex_);
  for (const Record& record : records_) {
    if (!record.result.has_value()) return false;
  }
  return true;
}

}  // namespace ultrasketch
