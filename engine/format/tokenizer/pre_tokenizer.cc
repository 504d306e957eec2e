#include "engine/format/tokenizer/pre_tokenizer.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "unicode/uchar.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/byte_level.h"
#include "engine/format/tokenizer/cancellation.h"
#include "engine/format/tokenizer/metaspace.h"
#include "engine/format/tokenizer/pattern.h"
#include "engine/format/tokenizer/splitter.h"
#include "engine/format/tokenizer/unicode_additions.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

// GPT-2's pattern: contractions, words, numbers and other characters, each with the space before
// it; of white space before a word all but the last character.
constexpr std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Splits every piece at the matches that `find` appends for its text.
template <typename Find>
absl::Status SplitPieces(PieceList* list, SplitBehavior behavior, bool invert, const Find& find) {
  std::vector<TextRange> matches;
  std::vector<TextRange> pieces;
  for (const TextRange& piece : list->pieces) {
    US_RETURN_IF_ERROR(CheckNotCancelled(list->cancelled));
    US_RETURN_IF_ERROR(find(list->View(piece), &matches));
    SplitAtMatches(piece.begin, piece.end, matches, behavior, invert, &pieces);
  }
  if (pieces.empty() || pieces[0].begin != list->pieces[0].begin) list->is_start_of_input = false;
  list->pieces = std::move(pieces);
  return absl::OkStatus();
}

// Writes a new text: append(piece, is_start_of_input, out) appends what becomes of each piece.
template <typename Append>
void RewritePieces(PieceList* list, const Append& append) {
  std::string text;
  text.reserve(list->text.size() + list->text.size() / 4);
  bool is_start_of_input = list->is_start_of_input;
  for (TextRange& piece : list->pieces) {
    const size_t begin = text.size();
    append(list->View(piece), is_start_of_input, &text);
    piece = {begin, text.size()};
    is_start_of_input = false;
  }
  list->text = std::move(text);
}

// Matches every character for which `predicate` is true.
template <typename Predicate>
absl::Status FindCharacters(std::string_view text, const Predicate& predicate,
                            std::vector<TextRange>* matches) {
  matches->clear();
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    if (predicate(NextCodePoint(text, &position))) matches->push_back({begin, position});
  }
  return absl::OkStatus();
}

class Split : public PreTokenizer {
 public:
  Split(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  absl::Status Apply(PieceList* list) const override {
    return SplitPieces(list, behavior_, invert_,
                       [this, list](std::string_view text, std::vector<TextRange>* matches) {
                         return pattern_.FindAll(text, matches, list->cancelled);
                       });
  }

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class ByteLevel : public PreTokenizer {
 public:
  // `split` is null when the pieces are not to be split.
  ByteLevel(bool add_prefix_space, std::unique_ptr<Split> split)
      : add_prefix_space_(add_prefix_space), split_(std::move(split)) {}

  absl::Status Apply(PieceList* list) const override {
    if (add_prefix_space_) {
      RewritePieces(list, [](std::string_view piece, bool, std::string* out) {
        if (piece[0] != ' ') *out += ' ';
        *out += piece;
      });
    }
    if (split_ != nullptr) US_RETURN_IF_ERROR(split_->Apply(list));
    RewritePieces(list, [](std::string_view piece, bool, std::string* out) {
      AppendByteAlphabet(piece, out);
    });
    return absl::OkStatus();
  }

 private:
  bool add_prefix_space_;
  std::unique_ptr<Split> split_;
};

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(const MetaspaceOptions& options)
      : options_(options),
        split_(Pattern::Literal(options.replacement), SplitBehavior::kMergedWithNext,
               /*invert=*/false) {}

  absl::Status Apply(PieceList* list) const override {
    const std::string& replacement = options_.replacement;
    RewritePieces(list, [&](std::string_view piece, bool is_start_of_input, std::string* out) {
      const bool prepends = options_.prepend_scheme == PrependScheme::kAlways ||
                            (options_.prepend_scheme == PrependScheme::kFirst && is_start_of_input);
      if (prepends && piece[0] != ' ' && !piece.starts_with(replacement)) *out += replacement;
      for (const char c : piece) {
        if (c == ' ') {
          *out += replacement;
        } else {
          *out += c;
        }
      }
    });
    return options_.split ? split_.Apply(list) : absl::OkStatus();
  }

 private:
  MetaspaceOptions options_;
  Split split_;
};

// The categories Nd, Nl and No.
bool IsNumber(uint32_t code_point) {
  return (U_GET_GC_MASK(static_cast<UChar32>(code_point)) & U_GC_N_MASK) != 0 ||
         AddedCategory(code_point).starts_with('N');
}

bool IsWhiteSpace(uint32_t code_point) { return u_isUWhiteSpace(static_cast<UChar32>(code_point)); }

class Digits : public PreTokenizer {
 public:
  explicit Digits(bool individual)
      : behavior_(individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous) {}

  absl::Status Apply(PieceList* list) const override {
    return SplitPieces(list, behavior_, /*invert=*/false,
                       [](std::string_view text, std::vector<TextRange>* matches) {
                         return FindCharacters(text, IsNumber, matches);
                       });
  }

 private:
  SplitBehavior behavior_;
};

class WhitespaceSplit : public PreTokenizer {
 public:
  absl::Status Apply(PieceList* list) const override {
    return SplitPieces(list, SplitBehavior::kRemoved, /*invert=*/false,
                       [](std::string_view text, std::vector<TextRange>* matches) {
                         return FindCharacters(text, IsWhiteSpace, matches);
                       });
  }
};

class PreTokenizerSequence : public PreTokenizer {
 public:
  explicit PreTokenizerSequence(std::vector<std::unique_ptr<PreTokenizer>> pre_tokenizers)
      : pre_tokenizers_(std::move(pre_tokenizers)) {}

  absl::Status Apply(PieceList* list) const override {
    for (const auto& pre_tokenizer : pre_tokenizers_) {
      US_RETURN_IF_ERROR(pre_tokenizer->Apply(list));
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> pre_tokenizers_;
};

using Result = absl::StatusOr<std::unique_ptr<PreTokenizer>>;

Result SplitFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue pattern_json, json.Member("pattern"));
  US_ASSIGN_OR_RETURN(Pattern pattern, Pattern::FromJson(pattern_json));
  US_ASSIGN_OR_RETURN(const JsonValue behavior_json, json.Member("behavior"));
  US_ASSIGN_OR_RETURN(const SplitBehavior behavior, SplitBehaviorFromJson(behavior_json));
  US_ASSIGN_OR_RETURN(const bool invert, json.BoolMember("invert", false));
  return std::make_unique<Split>(std::move(pattern), behavior, invert);
}

Result ByteLevelFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const bool add_prefix_space, json.BoolMember("add_prefix_space", true));
  US_ASSIGN_OR_RETURN(const bool use_regex, json.BoolMember("use_regex", true));
  std::unique_ptr<Split> split;
  if (use_regex) {
    US_ASSIGN_OR_RETURN(Pattern pattern, Pattern::FromRegex(kGpt2Regex));
    split = std::make_unique<Split>(std::move(pattern), SplitBehavior::kIsolated, false);
  }
  return std::make_unique<ByteLevel>(add_prefix_space, std::move(split));
}

Result SequenceFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue list, json.Member("pretokenizers"));
  US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, list.Elements());
  std::vector<std::unique_ptr<PreTokenizer>> pre_tokenizers;
  for (const JsonValue& element : elements) {
    US_ASSIGN_OR_RETURN(pre_tokenizers.emplace_back(), PreTokenizer::FromJson(element));
  }
  return std::make_unique<PreTokenizerSequence>(std::move(pre_tokenizers));
}

}  // namespace

Result PreTokenizer::FromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const std::string type, json.Type());
  if (type == "Sequence") return SequenceFromJson(json);
  if (type == "Split") return SplitFromJson(json);
  if (type == "ByteLevel") return ByteLevelFromJson(json);
  if (type == "Metaspace") {
    US_ASSIGN_OR_RETURN(const MetaspaceOptions options, MetaspaceOptionsFromJson(json));
    return std::make_unique<Metaspace>(options);
  }
  if (type == "Digits") {
    US_ASSIGN_OR_RETURN(const bool individual, json.BoolMember("individual_digits", false));
    return std::make_unique<Digits>(individual);
  }
  if (type == "WhitespaceSplit") return std::make_unique<WhitespaceSplit>();
  return json.Unimplemented(absl::StrCat("pre-tokenizer ", Quoted(type), " is not supported"));
}

}  // namespace ultrasketch::tokenizer_internal
