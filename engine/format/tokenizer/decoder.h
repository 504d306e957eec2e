// The "decoder" of a tokenizer file: tokens to text. Decoders work on a stream of tokens, so that
// decoding everything at once and decoding as tokens arrive are the same code.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_DECODER_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_DECODER_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/format/tokenizer/json_value.h"

namespace ultrasketch::tokenizer_internal {

// What a decoder makes of bytes that are not UTF-8 (yet).
enum class IllFormedBytes {
  kReplace,  // U+FFFD, as the library does; bytes that may become a character are held back
  kKeep,     // the bytes themselves, at once
};

// What takes tokens. A token comes in one part or more, each of whole characters (unless ill-formed
// bytes are kept); the last has `ends_token`.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void Add(std::string_view part, bool ends_token) = 0;
};

// One decoder at work: it turns the tokens that it is given into other tokens, as soon as they are
// certain. Not thread-safe.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;

  virtual void Add(std::string_view part, bool ends_token, TokenSink& out) = 0;

  // No token follows: hands out what was held back. The stage is not used any more.
  virtual void Finish(TokenSink& out) = 0;

  // A stage in the same state.
  virtual std::unique_ptr<DecoderStage> Clone() const = 0;
};

// The stages of a file's decoder. Copyable: a copy goes on by itself.
class DecoderPipeline {
 public:
  // Without a decoder in the file tokens are joined by spaces.
  DecoderPipeline();

  // UNIMPLEMENTED, by name, when a decoder is not one of those in tokenizer.h.
  static absl::StatusOr<DecoderPipeline> FromJson(const JsonValue& json, IllFormedBytes ill_formed);

  DecoderPipeline(const DecoderPipeline& other);
  DecoderPipeline& operator=(const DecoderPipeline& other);
  DecoderPipeline(DecoderPipeline&&) = default;
  DecoderPipeline& operator=(DecoderPipeline&&) = default;

  // Appends to `text` what `token` makes certain: whole characters only, unless ill-formed bytes
  // are kept.
  void Add(std::string_view token, std::string* text);

  // Appends what is left. The pipeline is not used any more.
  void Finish(std::string* text);

 private:
  friend class StageSink;
  absl::Status Append(const JsonValue& json, IllFormedBytes ill_formed);

  std::vector<std::unique_ptr<DecoderStage>> stages_;
};

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_DECODER_H_
