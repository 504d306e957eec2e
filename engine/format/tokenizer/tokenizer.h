// The tokenizer of a Hugging Face checkpoint (tokenizer.json): text to token ids and back.
//
// Supported: model BPE (with byte fallback, fuse_unk, ignore_merges); normalizers NFC, NFD, NFKC,
// NFKD, Prepend, Replace, Lowercase, Strip, Sequence; pre-tokenizers Split, ByteLevel, Metaspace,
// Digits, WhitespaceSplit, Sequence; post-processors TemplateProcessing, ByteLevel, Sequence;
// decoders ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence; added and special
// tokens. Anything else is refused by name at load.
//
// Ids and text agree with the `tokenizers` library (0.23), with these exceptions. "truncation" and
// "padding" are ignored. An added token has the id that the file gives it, where the library
// numbers tokens outside the model's vocabulary anew. An added token that a normalizer changes
// decodes to its spelling in the file, as in the library before 0.23.
#ifndef ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_H_
#define ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json_fwd.hpp"

namespace ultrasketch {

// Bytes [begin, end) of a text.
struct ByteRange {
  size_t begin;
  size_t end;
};

// A tokenizer.json is at most this large.
inline constexpr int64_t kMaxTokenizerFileBytes = int64_t{1} << 28;

struct EncodeOptions {
  // What the post-processor's template adds (usually the beginning-of-sequence token).
  bool add_special_tokens = true;
  // Whether "<|endoftext|>" and the like in the text become special tokens, or are plain text (what
  // transformers calls split_special_tokens; a tokenizer may be made so that they never do). Added
  // tokens that are not special are found anyway.
  bool parse_special_tokens = true;
  // Parts of the text that somebody else wrote than the author of the rest, ascending and apart
  // from each other. No added token overlaps them, special or not, except tokens that are nothing
  // but white space: a spelling there is plain text. All else is as for the text without such
  // ranges: merges and the pre-tokenizer see across the borders.
  absl::Span<const ByteRange> plain_ranges = {};
  // Another thread's way to end the encoding: soon after it turns true, Encode returns CANCELLED.
  // Null: nothing ends it.
  const std::atomic<bool>* cancelled = nullptr;
};

// Immutable after Load; every method is safe to call from several threads.
class Tokenizer {
 public:
  // `path` is a tokenizer.json. NOT_FOUND, DATA_LOSS (malformed) or UNIMPLEMENTED (a component that
  // is not supported), naming file and JSON path.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);

  // The same from contents at hand; `name` stands for the file in messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view json,
                                                          std::string_view name);
  // The same from a parsed document. With `split_special_tokens`, no special token is looked for
  // in any text.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(const nlohmann::json& document,
                                                             std::string_view name,
                                                             bool split_special_tokens = false);
  ~Tokenizer();

  // INVALID_ARGUMENT, with the byte offset, when `text` is not UTF-8. Time is O(n log n) in the
  // length of the text. CANCELLED when `options` asked for it meanwhile.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options = {}) const;

  // Ids outside the vocabulary are skipped, as the `tokenizers` library does. The result is always
  // UTF-8: ill-formed byte sequences become U+FFFD.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  // One more than the largest id, added tokens included.
  int32_t vocab_size() const;

  // The id of a token as spelled in the vocabulary or among the added tokens.
  std::optional<int32_t> TokenToId(std::string_view token) const;

  // The vocabulary's spelling; nullopt for an id without a token.
  std::optional<std::string> IdToToken(int32_t id) const;

  bool IsSpecial(int32_t id) const;

  // The ids that the template adds to every text (EncodeOptions::add_special_tokens).
  std::vector<int32_t> TemplateIds() const;

  // The bytes that the token stands for between others in a text: a word with the space before it,
  // the byte 0xE5 for "<0xE5>", the part of a character that a byte-level token is, a special
  // token's spelling. Empty for an id without a token.
  std::string TokenBytes(int32_t id) const;

  // TokenBytes for people to read: always UTF-8, with a byte that is no part of a whole character
  // in it spelled as "<0xE5>". What a list of alternatives shows; for the tokens of a text in order
  // see TokenPieceStream.
  std::string TokenText(int32_t id) const;

 private:
  friend class DetokenizerStream;
  friend class TokenPieceStream;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// INVALID_ARGUMENT when a text has become an id that the model has no embedding for: `ids` are the
// text's, the model's are those below `vocab_size`. The message begins with "text" and names the
// piece.
absl::Status CheckIdsOfText(const Tokenizer& tokenizer, absl::Span<const int32_t> ids,
                            int32_t vocab_size);

// Incremental decoding for streams. Add returns the text that the token makes certain: never part
// of a UTF-8 character, and the concatenation of all returned pieces with Finish's is what
// Tokenizer::Decode gives for all ids at once. Cost per token does not grow with the number of
// tokens before it. Text is held back only while a later token may change it: the bytes of an
// incomplete character, and a run of byte-fallback tokens until it ends (a run that turns out
// ill-formed decodes to U+FFFD for every byte). Not thread-safe; the tokenizer must outlive it.
class DetokenizerStream {
 public:
  DetokenizerStream(const Tokenizer& tokenizer, bool skip_special_tokens);
  ~DetokenizerStream();
  DetokenizerStream(DetokenizerStream&&) noexcept;
  DetokenizerStream& operator=(DetokenizerStream&&) noexcept;

  // For a continuation of a prompt: `prompt` ids are context that is not returned, but decides how
  // the first token begins (a leading space, say). What is returned afterwards is what Decode of
  // all ids has beyond Decode of the context; where the context ends inside a character, all of the
  // character.
  void Prime(absl::Span<const int32_t> prompt);

  // Ids outside the vocabulary give no text.
  std::string Add(int32_t id);

  // What is still held back, as Decode would render it (U+FFFD for an incomplete character). The
  // stream is not used any more.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What one token adds to a text.
struct TokenPiece {
  // Whole characters. Of the tokens that share a character, the last has all of it, and those
  // before it an empty text.
  std::string text;
  // As Tokenizer::TokenBytes, but for the first piece of a text, which begins as the text does.
  std::string bytes;
};

// The pieces of a text's tokens, one by one and at once (DetokenizerStream may hold text back).
// Joined, the texts are what Tokenizer::Decode gives, and the bytes the UTF-8 of it, with two
// exceptions: the bytes are kept where they are not UTF-8, and a run of byte-fallback tokens that
// is not UTF-8 as a whole keeps the characters in it. Every token has its piece, a special token
// that is skipped, too: it is spelled out in its own and changes nothing about those after it. Not
// thread-safe; the tokenizer must outlive it.
class TokenPieceStream {
 public:
  // `skip_special_tokens` as for the text that the pieces belong to. Where there is no such choice
  // (Score), true: then a text begins after a beginning token as it does without.
  TokenPieceStream(const Tokenizer& tokenizer, bool skip_special_tokens);
  ~TokenPieceStream();
  TokenPieceStream(TokenPieceStream&&) noexcept;
  TokenPieceStream& operator=(TokenPieceStream&&) noexcept;

  // What stands before the first token, as for DetokenizerStream.
  void Prime(absl::Span<const int32_t> prompt);

  // Empty for an id outside the vocabulary.
  TokenPiece Add(int32_t id);

  // The text that no token has: what Decode renders at the end for an incomplete character.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_TOKENIZER_TOKENIZER_H_
