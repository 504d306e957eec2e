#include "engine/format/tokenizer/folder_tokens.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"
#include "engine/format/json.h"

namespace ultrasketch::tokenizer_internal {
namespace {

using nlohmann::json;

constexpr std::string_view kStandardNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};

constexpr const char* kDecoderKey = "added_tokens_decoder";
constexpr const char* kAdditionalKey = "additional_special_tokens";
constexpr const char* kExtraKey = "extra_special_tokens";
constexpr const char* kModelSpecificKey = "model_specific_special_tokens";

struct ClassDefault {
  std::string_view class_name;
  std::string_view token_name;
  std::string_view content;
};

// The parameters of the classes' constructors.
constexpr ClassDefault kDefaults[] = {
    {"LlamaTokenizer", "unk_token", "<unk>"},
    {"LlamaTokenizer", "bos_token", "<s>"},
    {"LlamaTokenizer", "eos_token", "</s>"},
    {"CodeLlamaTokenizer", "unk_token", "<unk>"},
    {"CodeLlamaTokenizer", "bos_token", "<s>"},
    {"CodeLlamaTokenizer", "eos_token", "</s>"},
    {"CodeLlamaTokenizer", "prefix_token", "▁<PRE>"},
    {"CodeLlamaTokenizer", "middle_token", "▁<MID>"},
    {"CodeLlamaTokenizer", "suffix_token", "▁<SUF>"},
    {"CodeLlamaTokenizer", "eot_token", "▁<EOT>"},
    {"CodeLlamaTokenizer", "fill_token", "<FILL_ME>"},
    {"Qwen2Tokenizer", "unk_token", "<|endoftext|>"},
    {"Qwen2Tokenizer", "eos_token", "<|endoftext|>"},
    {"Qwen2Tokenizer", "pad_token", "<|endoftext|>"},
    {"GPT2Tokenizer", "unk_token", "<|endoftext|>"},
    {"GPT2Tokenizer", "bos_token", "<|endoftext|>"},
    {"GPT2Tokenizer", "eos_token", "<|endoftext|>"},
    {"GPTNeoXTokenizer", "unk_token", "<|endoftext|>"},
    {"GPTNeoXTokenizer", "bos_token", "<|endoftext|>"},
    {"GPTNeoXTokenizer", "eos_token", "<|endoftext|>"},
    {"GPTNeoXTokenizer", "pad_token", "<|padding|>"},
    {"CodeGenTokenizer", "unk_token", "<|endoftext|>"},
    {"CodeGenTokenizer", "bos_token", "<|endoftext|>"},
    {"CodeGenTokenizer", "eos_token", "<|endoftext|>"},
};

bool IsStandard(std::string_view name) {
  return std::find(std::begin(kStandardNames), std::end(kStandardNames), name) !=
         std::end(kStandardNames);
}

// The value of a key, JSON's null as well; null when the key is absent.
const json* FindKey(const SideFile& file, std::string_view key) {
  if (!file.contents.is_object()) return nullptr;
  const auto member = file.contents.find(key);
  return member == file.contents.end() ? nullptr : &*member;
}

// What Python takes for false.
bool IsEmpty(const json* value) {
  return value == nullptr || value->is_null() || value->empty() || *value == "" || *value == false;
}

using NamedToken = std::pair<std::string, std::optional<StatedToken>>;

// A dict of Python: a key keeps its place when its value changes.
class NamedTokens {
 public:
  void Set(std::string_view name, std::optional<StatedToken> token) {
    for (NamedToken& entry : tokens_) {
      if (entry.first != name) continue;
      entry.second = std::move(token);
      return;
    }
    tokens_.emplace_back(std::string(name), std::move(token));
  }
  const std::vector<NamedToken>& tokens() const { return tokens_; }

 private:
  std::vector<NamedToken> tokens_;
};

class Reader {
 public:
  explicit Reader(std::vector<std::string>* warnings) : warnings_(warnings) {}

  // A spelling, or an object with it as "content". Nothing, with a warning, for another value.
  std::optional<StatedToken> Token(const json& value, std::string origin) const {
    StatedToken token;
    if (value.is_string()) {
      token.content = value.get<std::string>();
    } else if (const json* content = FindMember(value, "content");
               content != nullptr && content->is_string()) {
      token.content = content->get<std::string>();
      const auto flag = [&value](const char* key, bool otherwise) {
        const json* found = FindMember(value, key);
        return found != nullptr && found->is_boolean() ? found->get<bool>() : otherwise;
      };
      token.single_word = flag("single_word", false);
      token.lstrip = flag("lstrip", false);
      token.rstrip = flag("rstrip", false);
      token.special = flag("special", false);
      token.normalized = flag("normalized", !token.special);
    } else {
      Warn(origin, "a token's spelling, or an object with it as \"content\"", value);
      return std::nullopt;
    }
    token.origin = std::move(origin);
    return token;
  }

  std::vector<StatedToken> List(const json& value, const std::string& origin) const {
    std::vector<StatedToken> tokens;
    if (value.is_null()) return tokens;
    if (!value.is_array()) {
      Warn(origin, "an array of tokens", value);
      return tokens;
    }
    for (const json& element : value) {
      std::optional<StatedToken> token = Token(element, origin);
      if (token.has_value()) tokens.push_back(*std::move(token));
    }
    return tokens;
  }

  void Warn(const std::string& origin, std::string_view expected, const json& found) const {
    warnings_->push_back(absl::StrCat(origin, ": expected ", A(expected), ", found ",
                                      DescribeJson(&found), "; it is not used"));
  }

 private:
  std::vector<std::string>* warnings_;
};

std::string Origin(const SideFile& file, std::string_view key) {
  return absl::StrCat(file.path, ": ", A(key));
}

// The tokens of an added token of tokenizer.json, which FromJson checks.
std::optional<StatedToken> TokenOfDocument(const json& added) {
  const json* content = FindMember(added, "content");
  if (content == nullptr || !content->is_string()) return std::nullopt;
  std::vector<std::string> ignored;
  return Reader(&ignored).Token(added, "");
}

// How the `tokenizers` library numbers added tokens.
class Numbering {
 public:
  explicit Numbering(const json& vocabulary) : vocabulary_(vocabulary) {}

  void Set(const std::string& content, int64_t id) {
    ids_[content] = id;
    last_ = std::max(last_, id);
  }
  std::optional<int64_t> Find(const std::string& content) const {
    const auto found = ids_.find(content);
    if (found == ids_.end()) return std::nullopt;
    return found->second;
  }
  bool IsInVocabulary(const std::string& content) const {
    const json* id = FindMember(vocabulary_, content);
    return id != nullptr && id->is_number_integer();
  }
  // The id that a token has or would have.
  int64_t IdFor(const std::string& content) const {
    if (const auto id = Find(content)) return *id;
    if (IsInVocabulary(content)) return vocabulary_.find(content)->get<int64_t>();
    return std::max(last_ + 1, static_cast<int64_t>(vocabulary_.size()));
  }

 private:
  const json& vocabulary_;
  absl::flat_hash_map<std::string, int64_t> ids_;
  int64_t last_ = -1;
};

// What the class adds to a tokenizer that has the tokens `existing`, in its order.
std::vector<StatedToken> TokensToAdd(const StatedTokens& tokens,
                                     const std::vector<StatedToken>& existing) {
  const auto has_content = [](const std::vector<StatedToken>& list, const std::string& content) {
    return std::any_of(list.begin(), list.end(),
                       [&](const StatedToken& token) { return token.content == content; });
  };
  std::vector<StatedToken> to_add;
  for (const auto& [id, token] : tokens.by_stated_id) {
    if (std::find(existing.begin(), existing.end(), token) == existing.end()) {
      to_add.push_back(token);
    }
  }
  const auto add_new = [&](const StatedToken& token) {
    if (!has_content(existing, token.content) && !has_content(to_add, token.content)) {
      to_add.push_back(token);
    }
  };
  for (const auto& [name, token] : tokens.named) {
    if (token.has_value()) add_new(*token);
  }
  for (const StatedToken& token : tokens.extra) add_new(token);
  for (StatedToken& token : to_add) {
    for (const auto& [name, named] : tokens.named) {
      if (named.has_value() && named->content == token.content) token.special = true;
    }
  }
  return to_add;
}

std::string FirstAndCount(const std::vector<std::string>& items) {
  return items.size() == 1 ? items[0] : absl::StrCat(items[0], " and ", items.size() - 1, " more");
}

}  // namespace

bool StatedToken::operator==(const StatedToken& other) const {
  return content == other.content && single_word == other.single_word && lstrip == other.lstrip &&
         rstrip == other.rstrip && normalized == other.normalized && special == other.special;
}

const StatedToken* StatedTokens::FindNamed(std::string_view name) const {
  for (const auto& [other, token] : named) {
    if (other == name && token.has_value()) return &*token;
  }
  return nullptr;
}

StatedTokens ReadStatedTokens(const SideFile& config, const SideFile& special_tokens_map,
                              const SideFile& added_tokens, std::string_view class_name,
                              std::vector<std::string>* warnings) {
  const Reader reader(warnings);
  const json* const decoder = FindKey(config, kDecoderKey);
  static const SideFile none;
  const SideFile& map = decoder == nullptr ? special_tokens_map : none;

  // A class's parameters: its defaults, then what the files say.
  NamedTokens standard;
  NamedTokens of_model;  // found by the end of their names
  for (const std::string_view name : kStandardNames) standard.Set(name, std::nullopt);
  for (const ClassDefault& by_default : kDefaults) {
    if (by_default.class_name != class_name) continue;
    NamedTokens& named = IsStandard(by_default.token_name) ? standard : of_model;
    named.Set(by_default.token_name, StatedToken{.content = std::string(by_default.content)});
  }
  NamedTokens explicit_of_model;  // these count before the others
  const auto read_named = [&](const SideFile& file, std::string_view name, const json& value) {
    if (value.is_null()) {
      (IsStandard(name) ? standard : of_model).Set(name, std::nullopt);
      return;
    }
    std::optional<StatedToken> token = reader.Token(value, Origin(file, name));
    if (!token.has_value()) return;
    if (&file == &map && value.is_object()) token->special = true;
    if (IsStandard(name)) {
      standard.Set(name, std::move(token));
    } else if (&file == &config && value.is_string()) {
      explicit_of_model.Set(name, std::move(token));
    } else {
      of_model.Set(name, std::move(token));
    }
  };
  const auto read_dict = [&](const SideFile& file, const char* key) {
    const json* const dict = FindKey(file, key);
    if (dict == nullptr || !dict->is_object()) return;
    for (const auto& [name, value] : dict->items()) {
      std::optional<StatedToken> token = reader.Token(value, Origin(file, key));
      if (token.has_value()) explicit_of_model.Set(name, std::move(token));
    }
  };
  for (const SideFile* file : {&config, &map}) {
    if (!file->contents.is_object()) continue;
    for (const auto& [name, value] : file->contents.items()) {
      if (!std::string_view(name).ends_with("_token")) continue;
      const bool may_be_token =
          IsStandard(name) || value.is_string() || value.is_object() || value.is_null();
      if (may_be_token) read_named(*file, name, value);  // others are flags: "add_bos_token"
    }
    read_dict(*file, kExtraKey);
  }
  if (explicit_of_model.tokens().empty()) read_dict(config, kModelSpecificKey);

  StatedTokens tokens;
  for (const auto& [name, token] : explicit_of_model.tokens()) of_model.Set(name, token);
  tokens.named = standard.tokens();
  tokens.named.insert(tokens.named.end(), of_model.tokens().begin(), of_model.tokens().end());

  // The newer key's list, where it has any, else the older's; the map's are merged into the former.
  const json* const extra = FindKey(config, kExtraKey);
  const json* const additional = FindKey(config, kAdditionalKey);
  const json* const map_extra = FindKey(map, kExtraKey);
  const json* const map_additional = FindKey(map, kAdditionalKey);
  bool has_extra = true;
  if (!IsEmpty(extra) && !extra->is_object()) {
    tokens.extra = reader.List(*extra, Origin(config, kExtraKey));
  } else if (IsEmpty(extra) && additional != nullptr) {
    tokens.extra = reader.List(*additional, Origin(config, kAdditionalKey));
  } else {
    has_extra = extra != nullptr && !extra->is_object();
  }
  if (map_extra != nullptr && !map_extra->is_object()) {
    has_extra = true;
    for (StatedToken& token : reader.List(*map_extra, Origin(map, kExtraKey))) {
      tokens.extra.push_back(std::move(token));
    }
  }
  if (!has_extra && map_additional != nullptr) {
    tokens.extra = reader.List(*map_additional, Origin(map, kAdditionalKey));
  }

  if (decoder != nullptr) {
    const std::string origin = Origin(config, kDecoderKey);
    if (!decoder->is_object()) {
      if (!decoder->is_null()) reader.Warn(origin, "an object", *decoder);
      return tokens;
    }
    for (const auto& [key, value] : decoder->items()) {
      int64_t id = 0;
      if (!absl::SimpleAtoi(key, &id)) {
        reader.Warn(origin, "token ids as keys", json(key));
        continue;
      }
      std::optional<StatedToken> token = reader.Token(value, origin);
      if (token.has_value()) tokens.by_stated_id.insert_or_assign(id, *std::move(token));
    }
  } else if (added_tokens.contents.is_object()) {
    for (const auto& [content, id] : added_tokens.contents.items()) {
      const std::string origin = absl::StrCat(added_tokens.path, ": ", Quoted(content));
      if (!id.is_number_integer()) {
        reader.Warn(origin, "a token id, an integer", id);
        continue;
      }
      const auto is_it = [&content = content](const StatedToken& token) {
        return token.content == content;
      };
      // The seven only: transformers looks before it knows of the model's own.
      bool special = std::any_of(tokens.extra.begin(), tokens.extra.end(), is_it);
      for (const auto& [name, token] : standard.tokens()) {
        special = special || (token.has_value() && !token->origin.empty() && is_it(*token));
      }
      tokens.by_stated_id.insert_or_assign(
          id.get<int64_t>(),
          StatedToken{
              .content = content, .normalized = !special, .special = special, .origin = origin});
    }
  }
  return tokens;
}

void AddStatedTokens(const StatedTokens& stated, std::string_view class_name,
                     std::optional<int64_t> num_rows, const std::string& path, json* tokenizer,
                     std::vector<std::string>* warnings, std::vector<std::string>* notes) {
  const json* const model = FindMember(*tokenizer, "model");
  const json* const found = model != nullptr ? FindMember(*model, "vocab") : nullptr;
  if (found == nullptr || !found->is_object()) return;  // which is an error elsewhere
  const json& vocabulary = *found;
  Numbering ours(vocabulary);
  std::vector<StatedToken> existing;
  StatedTokens tokens = stated;
  json& added = (*tokenizer)["added_tokens"];
  if (added.is_null()) added = json::array();
  if (!added.is_array()) return;
  absl::flat_hash_map<std::string, size_t> places;  // in `added`
  // Without a decoder in tokenizer_config.json the file's own tokens count as one.
  const bool decoder_is_file =
      std::none_of(stated.by_stated_id.begin(), stated.by_stated_id.end(),
                   [](const auto& entry) { return entry.second.origin.ends_with(kDecoderKey); });
  for (size_t i = 0; i < added.size(); ++i) {
    const std::optional<StatedToken> token = TokenOfDocument(added[i]);
    const json* const id = FindMember(added[i], "id");
    if (!token.has_value() || id == nullptr || !id->is_number_integer()) return;
    existing.push_back(*token);
    places.emplace(token->content, i);
    ours.Set(token->content, id->get<int64_t>());
    if (decoder_is_file) tokens.by_stated_id.insert_or_assign(id->get<int64_t>(), *token);
  }

  const auto set = [&](const StatedToken& token, int64_t id) {
    const auto [place, is_new] = places.emplace(token.content, added.size());
    if (is_new) added.push_back(json::object());
    added[place->second] = {{"id", id},
                            {"content", token.content},
                            {"single_word", token.single_word},
                            {"lstrip", token.lstrip},
                            {"rstrip", token.rstrip},
                            {"normalized", token.normalized},
                            {"special", token.special}};
    ours.Set(token.content, id);
  };
  std::vector<std::string> without_row;
  for (const StatedToken& token : TokensToAdd(tokens, existing)) {
    if (token.content.empty()) continue;
    const int64_t id = ours.IdFor(token.content);
    const bool is_new =
        !ours.Find(token.content).has_value() && !ours.IsInVocabulary(token.content);
    if (is_new && num_rows.has_value() && id >= *num_rows) {
      if (!token.origin.empty()) {
        without_row.push_back(absl::StrCat(token.origin, ": ", Quoted(token.content)));
      }
      continue;
    }
    set(token, id);
  }
  if (class_name == "Qwen2Tokenizer") {
    // Its named tokens have no properties but that they are special.
    for (const auto& [name, token] : tokens.named) {
      if (!token.has_value()) continue;
      const std::optional<int64_t> id = ours.Find(token->content);
      if (id.has_value()) set(StatedToken{.content = token->content}, *id);
    }
  }
  if (!without_row.empty()) {
    warnings->push_back(absl::StrCat(FirstAndCount(without_row), ": a token that ", path,
                                     " does not have, and the model's ", *num_rows,
                                     " tokens leave no id for it; it is not used"));
  }

  std::vector<std::string> renumbered;
  for (const auto& [id, token] : tokens.by_stated_id) {
    const std::optional<int64_t> used = ours.Find(token.content);
    if (token.origin.empty() || !used.has_value() || *used == id) continue;
    renumbered.push_back(absl::StrCat(token.origin, ": gives ", Quoted(token.content), " the id ",
                                      id, ", it has ", *used));
  }
  if (!renumbered.empty()) {
    warnings->push_back(absl::StrCat(FirstAndCount(renumbered), ", as in transformers"));
  }

  if (class_name.empty()) return;
  // The class begins with the vocabulary alone.
  Numbering theirs(vocabulary);
  for (const StatedToken& token : TokensToAdd(tokens, {})) {
    theirs.Set(token.content, theirs.IdFor(token.content));
  }
  std::vector<std::string> different;
  for (const json& token : added) {
    const auto content = token["content"].get<std::string>();
    const std::optional<int64_t> id = theirs.Find(content);
    if (id.has_value() ? *id == token["id"] : ours.IsInVocabulary(content)) continue;
    different.push_back(absl::StrCat(Quoted(content), ", ", token["id"].get<int64_t>(), " here, ",
                                     id.has_value() ? absl::StrCat(*id) : "no token", " there"));
  }
  if (!different.empty()) {
    notes->push_back(absl::StrCat(path, ": transformers 5 numbers added tokens anew for a ",
                                  A(class_name), ": ", FirstAndCount(different)));
  }
}

}  // namespace ultrasketch::tokenizer_internal
