// The decoders that a pipeline is made of (see decoder.h for what a stage does).
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_DECODER_STAGES_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_DECODER_STAGES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "engine/format/tokenizer/decoder.h"
#include "engine/format/tokenizer/metaspace.h"
#include "engine/format/tokenizer/pattern.h"

namespace ultrasketch::tokenizer_internal {

// All tokens become one: the bytes that their characters stand for, with U+FFFD in the place of
// ill-formed UTF-8 unless it is kept. A token with a character outside the byte alphabet stands for
// its own bytes.
std::unique_ptr<DecoderStage> MakeByteLevelStage(IllFormedBytes ill_formed);

// Tokens "<0xHH>" become the bytes that they spell. A run of them that is not well-formed UTF-8
// becomes one U+FFFD for each byte: whether it is, is known only where the run ends, so that a run
// is held back until then. With ill-formed bytes kept, every byte comes at once.
std::unique_ptr<DecoderStage> MakeByteFallbackStage(IllFormedBytes ill_formed);

// All tokens become one.
std::unique_ptr<DecoderStage> MakeFuseStage();

// Puts `content` in the place of `literal`, which is not empty, in every token.
std::unique_ptr<DecoderStage> MakeReplaceLiteralStage(std::string literal, std::string content);

// The same for a regular expression. Needs a token as a whole: after a stage that makes one token
// of all, nothing comes out before Finish. A token on which matching fails stays as it is.
std::unique_ptr<DecoderStage> MakeReplaceRegexStage(std::shared_ptr<const Pattern> pattern,
                                                    std::string content);

// Takes up to `start` times `character` from the beginning of every token, and up to `stop` times
// from its end.
std::unique_ptr<DecoderStage> MakeStripStage(uint32_t character, int64_t start, int64_t stop);

// The replacement character becomes a space; in the first token it is dropped unless the prepend
// scheme is "never".
std::unique_ptr<DecoderStage> MakeMetaspaceStage(MetaspaceOptions options);

// Puts `separator` between tokens.
std::unique_ptr<DecoderStage> MakeJoinStage(std::string separator);

}  // namespace ultrasketch::tokenizer_internal

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_DECODER_STAGES_H_
