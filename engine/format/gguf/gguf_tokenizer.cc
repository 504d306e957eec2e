#include "engine/format/gguf/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/gguf/gguf_pre_tokenizer.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kModelKey = "tokenizer.ggml.model";
constexpr std::string_view kPreKey = "tokenizer.ggml.pre";
constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kTypesKey = "tokenizer.ggml.token_type";
constexpr std::string_view kScoresKey = "tokenizer.ggml.scores";
constexpr std::string_view kMergesKey = "tokenizer.ggml.merges";
constexpr std::string_view kTemplateKey = "tokenizer.chat_template";

// SentencePiece's space.
constexpr std::string_view kSpace = "\xe2\x96\x81";

// Composing a token costs the square of its length; real ones are far shorter.
constexpr size_t kMaxScoredTokenBytes = 1024;

// Of tokenizer.ggml.token_type.
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
};

// Tokens that end a text or a turn, whatever their type in the file.
constexpr std::array<std::string_view, 12> kEndTokens = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"};  // DeepSeek's

bool IsEndToken(std::string_view token) {
  return std::find(kEndTokens.begin(), kEndTokens.end(), token) != kEndTokens.end();
}

class Maker {
 public:
  Maker(const GgufFile& file, int64_t num_rows) : file_(file), num_rows_(num_rows) {}

  absl::StatusOr<GgufTokenizer> Make(const std::optional<std::string>& pre_tokenizer) {
    US_ASSIGN_OR_RETURN(const auto model, file_.String(kModelKey));
    if (!model.has_value()) return file_.ValueError(kModelKey, "the name of a tokenizer's model");
    const bool is_scored = *model == "llama";
    if (!is_scored && *model != "gpt2") {
      return file_.Unsupported(kModelKey, absl::StrCat("the model ", Quoted(*model),
                                                       " is not supported; supported are gpt2 and "
                                                       "llama"));
    }
    US_RETURN_IF_ERROR(ReadTokens());
    US_RETURN_IF_ERROR(ReadSpecialTokens(is_scored));
    json document = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
    document["added_tokens"] = AddedTokens();
    bool adds_bos = is_scored;
    if (is_scored) {
      US_RETURN_IF_ERROR(MakeScored(document));
    } else {
      US_RETURN_IF_ERROR(MakeByteLevel(pre_tokenizer, document, adds_bos));
    }
    document["model"]["vocab"] = Vocabulary();
    US_ASSIGN_OR_RETURN(document["post_processor"], PostProcessor(adds_bos));
    result_.tokenizer = std::move(document);
    US_RETURN_IF_ERROR(MakeConfig());
    // What is written can be read.
    US_RETURN_IF_ERROR(Tokenizer::Parse(result_.tokenizer.dump(),
                                        absl::StrCat(file_.path(), ": as tokenizer.json"))
                           .status());
    return std::move(result_);
  }

 private:
  absl::Status ReadTokens() {
    US_ASSIGN_OR_RETURN(const auto tokens, file_.Strings(kTokensKey));
    if (!tokens.has_value() || tokens->empty()) {
      return file_.ValueError(kTokensKey, "an array of at least one string");
    }
    if (static_cast<int64_t>(tokens->size()) > num_rows_) {
      return file_.ValueError(
          kTokensKey, absl::StrCat("at most ", num_rows_, " tokens, the rows of the embedding"));
    }
    tokens_.reserve(tokens->size());
    for (size_t i = 0; i < tokens->size(); ++i) {
      const std::string_view token = (*tokens)[i];
      if (!IsValidUtf8(token)) {
        return file_.KeyError(kTokensKey, "tokens of UTF-8",
                              absl::StrCat(Quoted(token), " at place ", i));
      }
      // llama.cpp's name for it.
      tokens_.push_back(token.empty() ? absl::StrCat("[EMPTY_", i, "]") : std::string(token));
    }
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const auto [entry, is_new] = ids_.emplace(tokens_[i], static_cast<int32_t>(i));
      if (!is_new) {
        return file_.KeyError(
            kTokensKey, "tokens that differ",
            absl::StrCat(Quoted(tokens_[i]), " at places ", entry->second, " and ", i));
      }
    }
    US_ASSIGN_OR_RETURN(auto types, file_.Integers(kTypesKey, INT32_MIN, INT32_MAX));
    types_ = types.has_value() ? *std::move(types) : std::vector<int64_t>(tokens_.size(), kNormal);
    if (types_.size() < tokens_.size()) {
      return file_.ValueError(kTypesKey,
                              absl::StrCat("a type for each of ", tokens_.size(), " tokens"));
    }
    return absl::OkStatus();
  }

  // An id outside the vocabulary is not used, which is a warning: -1, as such or unsigned, is how
  // files say that there is none.
  absl::StatusOr<std::optional<int32_t>> TokenId(std::string_view name) {
    const std::string key = absl::StrCat("tokenizer.ggml.", A(name), "_token_id");
    US_ASSIGN_OR_RETURN(const auto id, file_.Integer(key, std::numeric_limits<int64_t>::min(),
                                                     std::numeric_limits<int64_t>::max()));
    if (!id.has_value()) return std::optional<int32_t>();
    const int64_t last = static_cast<int64_t>(tokens_.size()) - 1;
    if (*id < 0 || *id > last) {
      result_.warnings.push_back(
          absl::StrCat(file_.path(), ": ", key, ": expected a token id of the vocabulary, 0 to ",
                       last, ", found the number ", *id, "; it is not used"));
      return std::optional<int32_t>();
    }
    return std::optional<int32_t>(static_cast<int32_t>(*id));
  }

  absl::Status ReadSpecialTokens(bool is_scored) {
    US_ASSIGN_OR_RETURN(result_.bos_id, TokenId("bos"));
    US_ASSIGN_OR_RETURN(result_.eos_id, TokenId("eos"));
    US_ASSIGN_OR_RETURN(result_.pad_id, TokenId("padding"));
    US_ASSIGN_OR_RETURN(unknown_id_, TokenId("unknown"));
    US_ASSIGN_OR_RETURN(const auto eot_id, TokenId("eot"));
    US_ASSIGN_OR_RETURN(const auto eom_id, TokenId("eom"));
    if (is_scored) {  // SentencePiece's usual places
      const auto take = [this](int32_t id, std::optional<int32_t>& target) {
        if (!target.has_value() && id < static_cast<int32_t>(tokens_.size())) target = id;
      };
      take(0, unknown_id_);
      take(1, result_.bos_id);
      take(2, result_.eos_id);
    }
    std::vector<int32_t> others;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      const bool ends = IsEndToken(tokens_[i]) || id == eot_id || id == eom_id;
      if (ends && types_[i] != kUserDefined) types_[i] = kControl;
      if (ends && id != result_.eos_id) others.push_back(id);
    }
    if (result_.eos_id.has_value()) result_.end_ids.push_back(*result_.eos_id);
    result_.end_ids.insert(result_.end_ids.end(), others.begin(), others.end());
    return absl::OkStatus();
  }

  json AddedTokens() const {
    json added = json::array();
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const int64_t type = types_[i];
      if (type != kControl && type != kUnknown && type != kUserDefined) continue;
      added.push_back({{"id", i},
                       {"content", tokens_[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", type != kUserDefined}});
    }
    return added;
  }

  json Vocabulary() const {
    json vocabulary = json::object();
    for (size_t i = 0; i < tokens_.size(); ++i) vocabulary[tokens_[i]] = i;
    return vocabulary;
  }

  static json BpeModel() {
    return {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false}};
  }

  absl::Status MakeByteLevel(const std::optional<std::string>& wanted, json& document,
                             bool& adds_bos) {
    US_ASSIGN_OR_RETURN(const auto named, file_.String(kPreKey));
    const std::string name = wanted.value_or(std::string(named.value_or("default")));
    auto pre_tokenizer = FindGgufPreTokenizer(name);
    if (!pre_tokenizer.has_value()) {
      const std::string problem =
          absl::StrCat("the pre-tokenizer ", Quoted(name), " is not supported; supported are ",
                       SupportedGgufPreTokenizers());
      return wanted.has_value() ? absl::UnimplementedError(problem)
                                : file_.Unsupported(kPreKey, problem);
    }
    if (name == "default" && !wanted.has_value()) {
      result_.warnings.push_back(absl::StrCat(
          A(kPreKey), named.has_value() ? " is \"default\"" : " is absent",
          ": text is split as llama.cpp does then, which may not be how the model was trained"));
    }
    document["normalizer"] = std::move(pre_tokenizer->normalizer);
    document["pre_tokenizer"] = std::move(pre_tokenizer->pre_tokenizer);
    document["decoder"] = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
    document["model"] = BpeModel();
    document["model"]["ignore_merges"] = pre_tokenizer->ignore_merges;
    adds_bos = pre_tokenizer->adds_bos;
    US_ASSIGN_OR_RETURN(document["model"]["merges"], ReadMerges());
    return absl::OkStatus();
  }

  absl::StatusOr<json> ReadMerges() const {
    US_ASSIGN_OR_RETURN(const auto texts, file_.Strings(kMergesKey));
    if (!texts.has_value()) return file_.ValueError(kMergesKey, "an array of strings");
    json merges = json::array();
    for (size_t i = 0; i < texts->size(); ++i) {
      const std::string_view text = (*texts)[i];
      const auto error = [&](std::string_view expected) {
        return file_.KeyError(kMergesKey, expected, absl::StrCat(Quoted(text), " at place ", i));
      };
      const size_t space = text.find(' ', 1);
      if (space == std::string_view::npos) return error("two tokens with a space between them");
      const std::string_view left = text.substr(0, space);
      const std::string_view right = text.substr(space + 1);
      for (const std::string& token :
           {std::string(left), std::string(right), absl::StrCat(A(left), A(right))}) {
        if (ids_.contains(token)) continue;
        return error(absl::StrCat("tokens of the vocabulary, and so what they merge into; ",
                                  Quoted(token), " is none"));
      }
      merges.push_back(json::array({left, right}));
    }
    return merges;
  }

  absl::Status MakeScored(json& document) {
    US_ASSIGN_OR_RETURN(const auto add_space, file_.Bool("tokenizer.ggml.add_space_prefix"));
    const json to_spaces = {
        {"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}};
    const json from_spaces = {
        {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}};
    json decoders = json::array({to_spaces, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
    document["normalizer"] = from_spaces;
    if (add_space.value_or(true)) {
      const json prepend = {{"type", "Prepend"}, {"prepend", kSpace}};
      document["normalizer"] = {{"type", "Sequence"},
                                {"normalizers", json::array({prepend, from_spaces})}};
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    document["pre_tokenizer"] = nullptr;
    document["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
    json model = BpeModel();
    model["fuse_unk"] = true;
    model["byte_fallback"] = true;
    if (unknown_id_.has_value()) model["unk_token"] = tokens_[static_cast<size_t>(*unknown_id_)];
    US_ASSIGN_OR_RETURN(model["merges"], ComposeMerges());
    document["model"] = std::move(model);
    return absl::OkStatus();
  }

  // A merge for every way to compose a token of two. The order is by score; for equal ones as in
  // transformers' conversion of SentencePiece models: the longest left part first.
  absl::StatusOr<json> ComposeMerges() const {
    US_ASSIGN_OR_RETURN(const auto scores, file_.Numbers(kScoresKey));
    if (!scores.has_value() || scores->size() < tokens_.size()) {
      return file_.ValueError(kScoresKey,
                              absl::StrCat("a score for each of ", tokens_.size(), " tokens"));
    }
    struct Merge {
      double score;
      std::string_view left;
      std::string_view right;
      size_t left_characters;
      size_t right_characters;
    };
    std::vector<Merge> merges;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const std::string_view token = tokens_[i];
      const double score = (*scores)[i];
      if (std::isnan(score)) {
        return file_.KeyError(kScoresKey, "numbers", absl::StrCat("NaN at place ", i));
      }
      if (token.size() > kMaxScoredTokenBytes) {
        return file_.KeyError(kTokensKey,
                              absl::StrCat("tokens of at most ", kMaxScoredTokenBytes, " bytes"),
                              absl::StrCat("one of ", token.size(), " at place ", i));
      }
      const auto begins_character = [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; };
      const auto num_characters =
          static_cast<size_t>(std::count_if(token.begin(), token.end(), begins_character));
      size_t left_characters = 1;
      for (size_t cut = 1; cut < token.size(); ++cut) {
        if (!begins_character(token[cut])) continue;
        const std::string_view left = token.substr(0, cut);
        const std::string_view right = token.substr(cut);
        if (ids_.contains(A(left)) && ids_.contains(A(right))) {
          merges.push_back({score, left, right, left_characters, num_characters - left_characters});
        }
        ++left_characters;
      }
    }
    std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
      if (a.score != b.score) return a.score > b.score;
      if (a.left_characters != b.left_characters) return a.left_characters > b.left_characters;
      return a.right_characters > b.right_characters;
    });
    json pairs = json::array();
    for (const Merge& merge : merges) pairs.push_back(json::array({merge.left, merge.right}));
    return pairs;
  }

  // Adds the tokens at the beginning and the end of a text; null when there are none.
  absl::StatusOr<json> PostProcessor(bool adds_bos) const {
    US_ASSIGN_OR_RETURN(const auto add_bos, file_.Bool("tokenizer.ggml.add_bos_token"));
    US_ASSIGN_OR_RETURN(const auto add_eos, file_.Bool("tokenizer.ggml.add_eos_token"));
    json around = json::object();
    const auto special = [&](std::string_view key, const std::optional<int32_t>& id,
                             json* piece) -> absl::Status {
      if (!id.has_value()) {
        return file_.ValueError(key, "a token's id, as it is to be added to texts");
      }
      const std::string& token = tokens_[static_cast<size_t>(*id)];
      around[token] = {
          {"id", token}, {"ids", json::array({*id})}, {"tokens", json::array({token})}};
      *piece = {{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
      return absl::OkStatus();
    };
    json before;
    json after;
    if (add_bos.value_or(adds_bos)) {
      US_RETURN_IF_ERROR(special("tokenizer.ggml.bos_token_id", result_.bos_id, &before));
    }
    if (add_eos.value_or(false)) {
      US_RETURN_IF_ERROR(special("tokenizer.ggml.eos_token_id", result_.eos_id, &after));
    }
    if (before.is_null() && after.is_null()) return json();
    const auto add_text = [&](std::string_view name, json* pieces) {
      if (!before.is_null()) pieces->push_back(before);
      pieces->push_back({{"Sequence", {{"id", name}, {"type_id", name == "A" ? 0 : 1}}}});
      if (!after.is_null()) pieces->push_back(after);
    };
    json single = json::array();
    add_text("A", &single);
    json pair = single;
    add_text("B", &pair);
    return json{{"type", "TemplateProcessing"},
                {"single", single},
                {"pair", pair},
                {"special_tokens", around}};
  }

  absl::Status MakeConfig() {
    ordered_json config;
    const auto name = [&](const char* key, const std::optional<int32_t>& id) {
      if (id.has_value()) config[key] = tokens_[static_cast<size_t>(*id)];
    };
    name("bos_token", result_.bos_id);
    name("eos_token", result_.eos_id);
    name("pad_token", result_.pad_id);
    name("unk_token", unknown_id_);
    config["clean_up_tokenization_spaces"] = false;
    // The class that takes tokenizer.json as it is.
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    US_ASSIGN_OR_RETURN(ordered_json chat_template, ChatTemplate());
    if (!chat_template.is_null()) config["chat_template"] = std::move(chat_template);
    result_.tokenizer_config = std::move(config);
    return absl::OkStatus();
  }

  // A string, or where the file has several templates, their list; null when it has none.
  absl::StatusOr<ordered_json> ChatTemplate() const {
    const auto read = [this](const std::string& key) -> absl::StatusOr<std::string> {
      US_ASSIGN_OR_RETURN(const auto text, file_.String(key));
      if (!IsValidUtf8(*text)) return file_.ValueError(key, "UTF-8");
      return std::string(*text);
    };
    ordered_json list = ordered_json::array();
    for (const std::string& key : file_.KeysWithPrefix(kTemplateKey)) {
      std::string name = "default";
      if (key.size() > kTemplateKey.size()) {
        if (key[kTemplateKey.size()] != '.') continue;  // tokenizer.chat_templates, their names
        name = key.substr(kTemplateKey.size() + 1);
      }
      US_ASSIGN_OR_RETURN(std::string text, read(key));
      if (!IsValidUtf8(name)) return file_.ValueError(key, "a key of UTF-8");
      list.push_back({{"name", name}, {"template", std::move(text)}});
    }
    if (list.empty()) return ordered_json();
    if (list.size() == 1 && list[0]["name"] == "default") return list[0]["template"];
    return list;
  }

  const GgufFile& file_;
  const int64_t num_rows_;
  std::vector<std::string> tokens_;
  std::vector<int64_t> types_;
  absl::flat_hash_map<std::string, int32_t> ids_;
  std::optional<int32_t> unknown_id_;
  GgufTokenizer result_;
};

}  // namespace

absl::StatusOr<GgufTokenizer> MakeGgufTokenizer(const GgufFile& file, int64_t num_rows,
                                                const std::optional<std::string>& pre_tokenizer) {
  return Maker(file, num_rows).Make(pre_tokenizer);
}

}  // namespace ultrasketch
