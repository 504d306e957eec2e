// The parts of a tokenizer, for tokenizer.cc and detokenizer_stream.cc.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_IMPL_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_IMPL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

#include "engine/format/tokenizer/added_vocabulary.h"
#include "engine/format/tokenizer/bpe.h"
#include "engine/format/tokenizer/decoder.h"
#include "engine/format/tokenizer/normalizer.h"
#include "engine/format/tokenizer/post_processor.h"
#include "engine/format/tokenizer/pre_tokenizer.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {

struct Tokenizer::Impl {
  std::unique_ptr<tokenizer_internal::Normalizer> normalizer;       // may be null
  std::unique_ptr<tokenizer_internal::PreTokenizer> pre_tokenizer;  // may be null
  std::unique_ptr<tokenizer_internal::Bpe> model;
  std::unique_ptr<tokenizer_internal::AddedVocabulary> added;
  tokenizer_internal::PostProcessor post_processor;
  tokenizer_internal::DecoderPipeline decoder;  // before its first token
  // The same, with ill-formed bytes kept.
  tokenizer_internal::DecoderPipeline byte_decoder;

  bool split_special_tokens = false;  // no special token is found in a text

  // nullopt for an id without a token.
  std::optional<std::string_view> Token(int32_t id) const;

  // The token's part in decoded text; nullopt when it has none.
  std::optional<std::string_view> DecodedToken(int32_t id, bool skip_special_tokens) const;

  // Appends the ids of a part of the text that has no added token matched in raw text.
  // `plain_ranges` are relative to the segment.
  absl::Status EncodeSegment(std::string_view segment, bool is_start_of_input, bool parse_special,
                             absl::Span<const ByteRange> plain_ranges,
                             tokenizer_internal::Bpe::Session* session,
                             std::vector<int32_t>* ids) const;

  // Appends the ids of a piece none of which is an added token's: where merges would make up the
  // spelling of one, they stop within it.
  absl::Status EncodePlainPiece(std::string_view piece, tokenizer_internal::Bpe::Session* session,
                                std::vector<int32_t>* ids) const;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_IMPL_H_
