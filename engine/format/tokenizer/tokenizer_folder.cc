#include "engine/format/tokenizer/tokenizer_folder.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/json.h"
#include "engine/format/tokenizer/folder_tokens.h"
#include "engine/format/tokenizer/prefix_space.h"

namespace ultrasketch {

using nlohmann::json;
using tokenizer_internal::AddStatedTokens;
using tokenizer_internal::ClassName;
using tokenizer_internal::FindRebuildingClass;
using tokenizer_internal::HasComponentsOfClass;
using tokenizer_internal::PrefixSpaceSettings;
using tokenizer_internal::ReadStatedTokens;
using tokenizer_internal::RebuildingClass;
using tokenizer_internal::SetPrefixSpace;
using tokenizer_internal::SideFile;
using tokenizer_internal::StatedToken;
using tokenizer_internal::StatedTokens;

namespace {

// A file beside tokenizer.json, which is advice: what is wrong with it becomes a warning.
class AdviceFile {
 public:
  AdviceFile(std::string path, std::vector<std::string>* warnings)
      : path_(std::move(path)), warnings_(warnings) {
    absl::StatusOr<json> contents = ReadJsonFile(path_);
    if (!contents.ok()) {
      if (!absl::IsNotFound(contents.status())) {
        Warn(absl::StrCat(contents.status().message(), "; the file is not used"));
      }
      return;
    }
    if (!contents->is_object()) {
      Warn(absl::StrCat(path_, ": expected an object, found ", DescribeJson(&*contents),
                        "; the file is not used"));
      return;
    }
    contents_ = *std::move(contents);
  }

  std::optional<bool> Bool(std::string_view key) const {
    const json* value = FindMember(contents_, key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) {
      WarnOfType(key, "true or false", value);
      return std::nullopt;
    }
    return value->get<bool>();
  }

  // Nothing when it is something else.
  std::optional<int64_t> PositiveInteger(std::string_view key) const {
    const json* value = FindMember(contents_, key);
    if (value == nullptr || !value->is_number_unsigned() || *value == 0) return std::nullopt;
    return value->get<int64_t>();
  }

  std::string String(std::string_view key) const {
    const json* value = FindMember(contents_, key);
    if (value == nullptr) return std::string();
    if (!value->is_string()) {
      WarnOfType(key, "a string", value);
      return std::string();
    }
    return value->get<std::string>();
  }

  SideFile side_file() const { return {path_, contents_}; }

 private:
  void Warn(std::string warning) const { warnings_->push_back(std::move(warning)); }

  void WarnOfType(std::string_view key, std::string_view expected, const json* found) const {
    Warn(absl::StrCat(path_, ": ", A(key), ": expected ", A(expected), ", found ",
                      DescribeJson(found), "; it is not used"));
  }

  std::string path_;
  std::vector<std::string>* warnings_;
  json contents_;  // null when the file cannot be used
};

}  // namespace

absl::StatusOr<FolderTokenizer> LoadFolderTokenizer(const std::string& folder) {
  FolderTokenizer result;
  const std::string path = folder + "/tokenizer.json";
  US_ASSIGN_OR_RETURN(const std::string contents, ReadFile(path, kMaxTokenizerFileBytes));
  US_ASSIGN_OR_RETURN(json document, ParseJson(contents, path));

  const AdviceFile config(folder + "/tokenizer_config.json", &result.warnings);
  std::vector<std::string>
      ignored;  // whoever opens the checkpoint says what is wrong with this one
  const AdviceFile model_config(folder + "/config.json", &ignored);
  std::string stated_class = config.String("tokenizer_class");
  if (stated_class.empty()) stated_class = model_config.String("tokenizer_class");
  const PrefixSpaceSettings settings = {
      .add_prefix_space = config.Bool("add_prefix_space"),
      .legacy = config.Bool("legacy").value_or(false),
  };
  const RebuildingClass* rebuilding =
      FindRebuildingClass(stated_class, model_config.String("model_type"),
                          contents.find("\"ByteLevel\"") != std::string::npos);
  if (rebuilding != nullptr) {
    SetPrefixSpace(*rebuilding, settings, &document);
    if (!HasComponentsOfClass(*rebuilding, settings, document)) {
      result.notes.push_back(absl::StrCat(
          path, ": transformers 5 makes a ", A(ClassName(*rebuilding)),
          " of its vocabulary, with a normalizer and a pre-tokenizer of its own; here those of the "
          "file are followed, so that token ids may differ"));
    }
  }
  const AdviceFile special_tokens(folder + "/special_tokens_map.json", &result.warnings);
  const AdviceFile added_tokens(folder + "/added_tokens.json", &result.warnings);
  const std::string_view class_name =
      rebuilding != nullptr ? ClassName(*rebuilding) : std::string_view();
  const StatedTokens stated =
      ReadStatedTokens(config.side_file(), special_tokens.side_file(), added_tokens.side_file(),
                       class_name, &result.warnings);
  if (document.is_object()) {
    AddStatedTokens(stated, class_name, model_config.PositiveInteger("vocab_size"), path, &document,
                    &result.warnings, &result.notes);
  }
  US_ASSIGN_OR_RETURN(
      result.tokenizer,
      Tokenizer::FromJson(document, path, config.Bool("split_special_tokens").value_or(false)));

  const StatedToken* const eos = stated.FindNamed("eos_token");
  if (eos != nullptr && !eos->origin.empty()) {
    result.eos_token_id = result.tokenizer->TokenToId(eos->content);
  }
  return result;
}

}  // namespace ultrasketch
