#include "engine/format/tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/format/json.h"
#include "engine/format/tokenizer/cancellation.h"
#include "engine/format/tokenizer/json_value.h"
#include "engine/format/tokenizer/pattern.h"
#include "engine/format/tokenizer/tokenizer_impl.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch {

using tokenizer_internal::AddedToken;
using tokenizer_internal::AddedVocabulary;
using tokenizer_internal::Bpe;
using tokenizer_internal::CheckNotCancelled;
using tokenizer_internal::DecoderPipeline;
using tokenizer_internal::IllFormedBytes;
using tokenizer_internal::JsonValue;
using tokenizer_internal::NormalizedText;
using tokenizer_internal::Normalizer;
using tokenizer_internal::PieceList;
using tokenizer_internal::PostProcessor;
using tokenizer_internal::PreTokenizer;
using tokenizer_internal::TextRange;
using tokenizer_internal::Utf8Length;

namespace {

std::string_view View(std::string_view text, const TextRange& range) {
  return text.substr(range.begin, range.end - range.begin);
}

}  // namespace

std::optional<std::string_view> Tokenizer::Impl::Token(int32_t id) const {
  if (const AddedToken* token = added->Find(id)) return token->content;
  return model->vocabulary().Token(id);
}

std::optional<std::string_view> Tokenizer::Impl::DecodedToken(int32_t id,
                                                              bool skip_special_tokens) const {
  const std::optional<std::string_view> token = Token(id);
  if (token.has_value() && skip_special_tokens && added->IsSpecial(*token)) return std::nullopt;
  return token;
}

absl::Status Tokenizer::Impl::EncodeSegment(std::string_view segment, bool is_start_of_input,
                                            bool parse_special,
                                            absl::Span<const ByteRange> plain_ranges,
                                            Bpe::Session* session,
                                            std::vector<int32_t>* ids) const {
  US_RETURN_IF_ERROR(CheckNotCancelled(session->cancelled()));
  NormalizedText normalized{std::string(segment), {plain_ranges.begin(), plain_ranges.end()}};
  if (normalizer != nullptr) {
    US_RETURN_IF_ERROR(normalizer->Apply(&normalized));
    if (normalized.lost_start) is_start_of_input = false;
  }
  const std::string& text = normalized.text;
  std::vector<AddedVocabulary::Segment> segments;
  added->FindSegments(text, AddedVocabulary::Side::kNormalized, parse_special,
                      normalized.plain_ranges, &segments);
  for (const AddedVocabulary::Segment& part : segments) {
    if (part.token != nullptr) {
      ids->push_back(part.token->id);
      continue;
    }
    PieceList list;
    list.text = View(text, part.range);
    list.pieces.push_back({0, list.text.size()});
    list.is_start_of_input = is_start_of_input && part.range.begin == 0;
    list.cancelled = session->cancelled();
    if (pre_tokenizer != nullptr) US_RETURN_IF_ERROR(pre_tokenizer->Apply(&list));
    for (const TextRange& piece : list.pieces) {
      US_RETURN_IF_ERROR(plain_ranges.empty() ? session->Encode(list.View(piece), ids)
                                              : EncodePlainPiece(list.View(piece), session, ids));
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::EncodePlainPiece(std::string_view piece, Bpe::Session* session,
                                               std::vector<int32_t>* ids) const {
  const size_t num_ids = ids->size();
  US_RETURN_IF_ERROR(session->Encode(piece, ids));
  // The token for what is unknown is an added token, too, but its spelling is not in the piece.
  for (size_t i = num_ids; i < ids->size(); ++i) {
    const AddedToken* token = added->Find((*ids)[i]);
    if (token == nullptr || token->content.size() == Utf8Length(token->content[0])) continue;
    size_t found = piece.find(token->content);
    if (found == std::string_view::npos) continue;
    ids->resize(num_ids);
    size_t begin = 0;
    while (found != std::string_view::npos) {
      const size_t end = found + Utf8Length(piece[found]);
      US_RETURN_IF_ERROR(EncodePlainPiece(piece.substr(begin, end - begin), session, ids));
      begin = end;
      found = piece.find(token->content, begin);
    }
    return EncodePlainPiece(piece.substr(begin), session, ids);
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  US_ASSIGN_OR_RETURN(const std::string contents, ReadFile(path, kMaxTokenizerFileBytes));
  return Parse(contents, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view json,
                                                            std::string_view name) {
  US_ASSIGN_OR_RETURN(const nlohmann::json document, ParseJson(json, name));
  return FromJson(document, name);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(const nlohmann::json& document,
                                                               std::string_view name,
                                                               bool split_special_tokens) {
  const JsonValue root(document, name);
  auto impl = std::make_unique<Impl>();
  impl->split_special_tokens = split_special_tokens;
  US_ASSIGN_OR_RETURN(const auto normalizer, root.OptionalMember("normalizer"));
  if (normalizer.has_value()) {
    US_ASSIGN_OR_RETURN(impl->normalizer, Normalizer::FromJson(*normalizer));
  }
  US_ASSIGN_OR_RETURN(const auto pre_tokenizer, root.OptionalMember("pre_tokenizer"));
  if (pre_tokenizer.has_value()) {
    US_ASSIGN_OR_RETURN(impl->pre_tokenizer, PreTokenizer::FromJson(*pre_tokenizer));
  }
  US_ASSIGN_OR_RETURN(const JsonValue model, root.Member("model"));
  US_ASSIGN_OR_RETURN(impl->model, Bpe::FromJson(model));
  US_ASSIGN_OR_RETURN(const auto added, root.OptionalMember("added_tokens"));
  US_ASSIGN_OR_RETURN(impl->added,
                      AddedVocabulary::FromJson(added.has_value() ? &*added : nullptr,
                                                impl->model->vocabulary(), impl->normalizer.get()));
  US_ASSIGN_OR_RETURN(const auto decoder, root.OptionalMember("decoder"));
  if (decoder.has_value()) {
    US_ASSIGN_OR_RETURN(impl->decoder,
                        DecoderPipeline::FromJson(*decoder, IllFormedBytes::kReplace));
    US_ASSIGN_OR_RETURN(impl->byte_decoder,
                        DecoderPipeline::FromJson(*decoder, IllFormedBytes::kKeep));
  }
  US_ASSIGN_OR_RETURN(const auto post_processor, root.OptionalMember("post_processor"));
  if (post_processor.has_value()) {
    US_ASSIGN_OR_RETURN(impl->post_processor, PostProcessor::FromJson(*post_processor));
    for (const int32_t id : impl->post_processor.AddedIds()) {
      if (!impl->Token(id).has_value()) {
        return post_processor->DataLoss(absl::StrCat("no token has the template's id ", id));
      }
    }
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  if (text.size() > tokenizer_internal::kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", HumanBytes(text.size()), "; at most 1 GiB can be tokenized"));
  }
  const size_t valid_end = tokenizer_internal::FirstInvalidUtf8(text);
  if (valid_end < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", valid_end));
  }
  const bool parse_special = options.parse_special_tokens && !impl_->split_special_tokens;
  std::vector<AddedVocabulary::Segment> segments;
  impl_->added->FindSegments(text, AddedVocabulary::Side::kRaw, parse_special, options.plain_ranges,
                             &segments);
  std::vector<int32_t> ids;
  std::vector<ByteRange> plain_ranges;
  size_t next_range = 0;
  Bpe::Session session(*impl_->model, options.cancelled);
  for (const AddedVocabulary::Segment& segment : segments) {
    if (segment.token != nullptr) {
      ids.push_back(segment.token->id);
      continue;
    }
    plain_ranges.clear();  // relative to the segment
    for (; next_range < options.plain_ranges.size(); ++next_range) {
      const ByteRange& range = options.plain_ranges[next_range];
      const size_t begin = std::max(range.begin, segment.range.begin);
      const size_t end = std::min(range.end, segment.range.end);
      if (begin < end) {
        plain_ranges.push_back({begin - segment.range.begin, end - segment.range.begin});
      }
      if (range.end > segment.range.end) break;
    }
    US_RETURN_IF_ERROR(impl_->EncodeSegment(View(text, segment.range), segment.range.begin == 0,
                                            parse_special, plain_ranges, &session, &ids));
  }
  if (!options.add_special_tokens) return ids;
  return impl_->post_processor.Apply(std::move(ids));
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  DecoderPipeline decoder = impl_->decoder;
  std::string text;
  for (const int32_t id : ids) {
    const auto token = impl_->DecodedToken(id, skip_special_tokens);
    if (token.has_value()) decoder.Add(*token, &text);
  }
  decoder.Finish(&text);
  return text;
}

int32_t Tokenizer::vocab_size() const {
  return std::max(impl_->model->vocabulary().size(), impl_->added->size());
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  if (const std::optional<int32_t> id = impl_->added->FindId(token)) return id;
  return impl_->model->vocabulary().Find(token);
}

std::optional<std::string> Tokenizer::IdToToken(int32_t id) const {
  const std::optional<std::string_view> token = impl_->Token(id);
  if (!token.has_value()) return std::nullopt;
  return std::string(*token);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  const std::optional<std::string_view> token = impl_->Token(id);
  return token.has_value() && impl_->added->IsSpecial(*token);
}

std::vector<int32_t> Tokenizer::TemplateIds() const { return impl_->post_processor.AddedIds(); }

absl::Status CheckIdsOfText(const Tokenizer& tokenizer, absl::Span<const int32_t> ids,
                            int32_t vocab_size) {
  for (const int32_t id : ids) {
    if (id < vocab_size) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "text: ", Quoted(tokenizer.TokenText(id)), " is token ", id,
        " for the tokenizer; the model has ", vocab_size, " tokens, 0 to ", vocab_size - 1));
  }
  return absl::OkStatus();
}

}  // namespace ultrasketch
