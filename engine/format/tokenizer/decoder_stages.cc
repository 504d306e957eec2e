#include "engine/format/tokenizer/decoder_stages.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/base/strings.h"
#include "engine/format/tokenizer/byte_level.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// Clone by copying.
template <typename Stage>
class CopyableStage : public DecoderStage {
 public:
  std::unique_ptr<DecoderStage> Clone() const override {
    return std::make_unique<Stage>(static_cast<const Stage&>(*this));
  }
};

// For stages that look at whole tokens: collects the parts of one.
class TokenBuffer {
 public:
  // The whole token that `part` completes; nullopt when it is not complete. The view is valid until
  // the next call.
  std::optional<std::string_view> Add(std::string_view part, bool ends_token) {
    if (handed_out_) parts_.clear();
    handed_out_ = ends_token;
    if (ends_token && parts_.empty()) return part;
    parts_ += part;
    if (!ends_token) return std::nullopt;
    return parts_;
  }

 private:
  std::string parts_;
  bool handed_out_ = false;
};

class ByteLevelStage : public CopyableStage<ByteLevelStage> {
 public:
  explicit ByteLevelStage(IllFormedBytes ill_formed) : ill_formed_(ill_formed) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    const std::optional<std::string_view> token = token_.Add(part, ends_token);
    if (!token.has_value()) return;
    AppendBytes(*token);
    if (ill_formed_ == IllFormedBytes::kKeep) {
      out.Add(pending_, /*ends_token=*/false);
      pending_.clear();
      return;
    }
    std::string text;
    size_t position = 0;
    while (position < pending_.size()) {
      size_t length;
      const std::string_view rest = std::string_view(pending_).substr(position);
      const Utf8Prefix prefix = ClassifyUtf8Prefix(rest, &length);
      if (prefix == Utf8Prefix::kIncomplete) break;
      text += prefix == Utf8Prefix::kComplete ? rest.substr(0, length) : kReplacementCharacter;
      position += length;
    }
    pending_.erase(0, position);
    if (!text.empty()) out.Add(text, /*ends_token=*/false);
  }

  void Finish(TokenSink& out) override {
    // An incomplete character is one ill-formed sequence.
    out.Add(pending_.empty() ? std::string_view() : kReplacementCharacter, /*ends_token=*/true);
  }

 private:
  void AppendBytes(std::string_view token) {
    const size_t pending_size = pending_.size();
    for (size_t position = 0; position < token.size();) {
      const std::optional<uint8_t> byte = ByteOfCharacter(NextCodePoint(token, &position));
      if (!byte.has_value()) {
        pending_.resize(pending_size);
        pending_ += token;
        return;
      }
      pending_ += static_cast<char>(*byte);
    }
  }

  IllFormedBytes ill_formed_;
  TokenBuffer token_;
  std::string pending_;  // between calls: the beginning of a character
};

class ByteFallbackStage : public CopyableStage<ByteFallbackStage> {
 public:
  explicit ByteFallbackStage(IllFormedBytes ill_formed) : ill_formed_(ill_formed) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    const std::optional<std::string_view> token = token_.Add(part, ends_token);
    if (!token.has_value()) return;
    if (const std::optional<char> byte = SpelledByte(*token)) {
      run_ += *byte;
      if (ill_formed_ == IllFormedBytes::kKeep) EndRun(out);
      return;
    }
    EndRun(out);
    out.Add(*token, /*ends_token=*/true);
  }

  void Finish(TokenSink& out) override { EndRun(out); }

 private:
  static std::optional<char> SpelledByte(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
    std::string_view digits = token.substr(3, 2);
    if (digits[0] == '+') digits.remove_prefix(1);  // as Rust's from_str_radix has it
    uint8_t byte = 0;
    const char* end = digits.data() + digits.size();
    const auto [stopped_at, error] = std::from_chars(digits.data(), end, byte, 16);
    if (error != std::errc() || stopped_at != end) return std::nullopt;
    return static_cast<char>(byte);
  }

  void EndRun(TokenSink& out) {
    if (run_.empty()) return;
    if (ill_formed_ == IllFormedBytes::kKeep || IsValidUtf8(run_)) {
      out.Add(run_, /*ends_token=*/true);
    } else {
      for (size_t i = 0; i < run_.size(); ++i) out.Add(kReplacementCharacter, true);
    }
    run_.clear();
  }

  IllFormedBytes ill_formed_;
  TokenBuffer token_;
  std::string run_;
};

class FuseStage : public CopyableStage<FuseStage> {
 public:
  void Add(std::string_view part, bool, TokenSink& out) override {
    if (!part.empty()) out.Add(part, /*ends_token=*/false);
  }
  void Finish(TokenSink& out) override { out.Add("", /*ends_token=*/true); }
};

class ReplaceLiteralStage : public CopyableStage<ReplaceLiteralStage> {
 public:
  ReplaceLiteralStage(std::string literal, std::string content)
      : literal_(std::move(literal)), content_(std::move(content)) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    pending_ += part;
    std::string text;
    size_t position = 0;
    for (size_t match = pending_.find(literal_); match != std::string::npos;
         match = pending_.find(literal_, position)) {
      text.append(pending_, position, match - position);
      text += content_;
      position = match + literal_.size();
    }
    const size_t kept = ends_token ? 0 : LongestPartialMatch(position);
    text.append(pending_, position, pending_.size() - kept - position);
    pending_.erase(0, pending_.size() - kept);
    if (ends_token || !text.empty()) out.Add(text, ends_token);
  }

  void Finish(TokenSink&) override {}

 private:
  // The length of the longest end of pending_, from `position` on, that begins the literal.
  size_t LongestPartialMatch(size_t position) const {
    size_t length = std::min(literal_.size() - 1, pending_.size() - position);
    while (length > 0 && !pending_.ends_with(std::string_view(literal_).substr(0, length))) {
      --length;
    }
    return length;
  }

  std::string literal_;
  std::string content_;
  std::string pending_;  // between calls: what may turn out to begin the literal
};

class ReplaceRegexStage : public CopyableStage<ReplaceRegexStage> {
 public:
  ReplaceRegexStage(std::shared_ptr<const Pattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    const std::optional<std::string_view> token = token_.Add(part, ends_token);
    if (!token.has_value()) return;
    const absl::StatusOr<std::string> replaced = pattern_->ReplaceAll(*token, content_, &matches_);
    out.Add(replaced.ok() ? std::string_view(*replaced) : *token, /*ends_token=*/true);
  }

  void Finish(TokenSink&) override {}

 private:
  std::shared_ptr<const Pattern> pattern_;
  std::string content_;
  TokenBuffer token_;
  std::vector<TextRange> matches_;
};

class StripStage : public CopyableStage<StripStage> {
 public:
  StripStage(std::string character, int64_t start, int64_t stop)
      : character_(std::move(character)), start_(start), stop_(stop), start_left_(start) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    while (start_left_ > 0 && part.starts_with(character_)) {
      part.remove_prefix(character_.size());
      --start_left_;
    }
    if (!part.empty()) start_left_ = 0;

    // Of the characters at the end that may be stripped, `stop_` are held back until the token
    // ends.
    int64_t num_trailing = 0;
    std::string_view body = part;
    while (num_trailing < stop_ && body.ends_with(character_)) {
      body.remove_suffix(character_.size());
      ++num_trailing;
    }
    std::string text;
    const int64_t num_released =
        body.empty() ? std::max<int64_t>(num_held_ + num_trailing - stop_, 0) : num_held_;
    for (int64_t i = 0; i < num_released; ++i) text += character_;
    text += body;
    num_held_ += num_trailing - num_released;
    if (ends_token) {
      num_held_ = 0;
      start_left_ = start_;
    }
    if (ends_token || !text.empty()) out.Add(text, ends_token);
  }

  void Finish(TokenSink&) override {}

 private:
  std::string character_;
  int64_t start_;
  int64_t stop_;
  int64_t start_left_;    // to strip from the beginning of the token at hand
  int64_t num_held_ = 0;  // characters at its end that are held back
};

class MetaspaceStage : public CopyableStage<MetaspaceStage> {
 public:
  explicit MetaspaceStage(MetaspaceOptions options) : options_(std::move(options)) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    const bool drops = is_first_token_ && options_.prepend_scheme != PrependScheme::kNever;
    const std::string& replacement = options_.replacement;
    std::string text;
    size_t position = 0;
    for (size_t match = part.find(replacement); match != std::string_view::npos;
         match = part.find(replacement, position)) {
      text += part.substr(position, match - position);
      if (!drops) text += ' ';
      position = match + replacement.size();
    }
    text += part.substr(position);
    if (ends_token) is_first_token_ = false;
    out.Add(text, ends_token);
  }

  void Finish(TokenSink&) override {}

 private:
  MetaspaceOptions options_;
  bool is_first_token_ = true;
};

class JoinStage : public CopyableStage<JoinStage> {
 public:
  explicit JoinStage(std::string separator) : separator_(std::move(separator)) {}

  void Add(std::string_view part, bool ends_token, TokenSink& out) override {
    if (starts_token_ && !is_first_token_) out.Add(separator_, /*ends_token=*/true);
    starts_token_ = ends_token;
    is_first_token_ = false;
    out.Add(part, ends_token);
  }

  void Finish(TokenSink&) override {}

 private:
  std::string separator_;
  bool starts_token_ = true;
  bool is_first_token_ = true;
};

}  // namespace

std::unique_ptr<DecoderStage> MakeByteLevelStage(IllFormedBytes ill_formed) {
  return std::make_unique<ByteLevelStage>(ill_formed);
}

std::unique_ptr<DecoderStage> MakeByteFallbackStage(IllFormedBytes ill_formed) {
  return std::make_unique<ByteFallbackStage>(ill_formed);
}

std::unique_ptr<DecoderStage> MakeFuseStage() { return std::make_unique<FuseStage>(); }

std::unique_ptr<DecoderStage> MakeReplaceLiteralStage(std::string literal, std::string content) {
  return std::make_unique<ReplaceLiteralStage>(std::move(literal), std::move(content));
}

std::unique_ptr<DecoderStage> MakeReplaceRegexStage(std::shared_ptr<const Pattern> pattern,
                                                    std::string content) {
  return std::make_unique<ReplaceRegexStage>(std::move(pattern), std::move(content));
}

std::unique_ptr<DecoderStage> MakeStripStage(uint32_t character, int64_t start, int64_t stop) {
  std::string text;
  AppendUtf8(character, &text);
  return std::make_unique<StripStage>(std::move(text), start, stop);
}

std::unique_ptr<DecoderStage> MakeMetaspaceStage(MetaspaceOptions options) {
  return std::make_unique<MetaspaceStage>(std::move(options));
}

std::unique_ptr<DecoderStage> MakeJoinStage(std::string separator) {
  return std::make_unique<JoinStage>(std::move(separator));
}

}  // namespace ultrasketch::tokenizer_internal
