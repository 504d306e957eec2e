#include "engine/models/open_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/format/tokenizer/tokenizer_folder.h"

namespace ultrasketch {
namespace {

std::string DescribeRows(int32_t vocab_size) {
  return absl::StrCat("the model's embedding has ", vocab_size, " rows, 0 to ", vocab_size - 1);
}

// DATA_LOSS when no text can be given to the model: its template needs a token that the model
// lacks.
absl::Status CheckTemplate(const Tokenizer& tokenizer, const Checkpoint& checkpoint) {
  const int32_t vocab_size = checkpoint.config().vocab_size;
  for (const int32_t id : tokenizer.TemplateIds()) {
    if (id < vocab_size) continue;
    return absl::DataLossError(
        absl::StrCat(checkpoint.tokenizer_path(), ": the template puts token ", id, ", ",
                     Quoted(tokenizer.IdToToken(id).value_or("")), ", into every text, and ",
                     DescribeRows(vocab_size), ": no text can be given to this model"));
  }
  return absl::OkStatus();
}

void WarnOfTokensBeyond(const Tokenizer& tokenizer, const Checkpoint& checkpoint,
                        std::vector<std::string>* warnings) {
  const int32_t vocab_size = checkpoint.config().vocab_size;
  int32_t first = 0;
  int32_t count = 0;
  for (int32_t id = vocab_size; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.IdToToken(id).has_value()) continue;
    if (count++ == 0) first = id;
  }
  if (count == 0) return;
  warnings->push_back(absl::StrCat(
      checkpoint.tokenizer_path(), ": ", count, count == 1 ? " token is" : " tokens are",
      " beyond the model's vocabulary, ", count == 1 ? "" : "the first of them ", "token ", first,
      ", ", Quoted(tokenizer.TokenText(first)), ": ", DescribeRows(vocab_size),
      "; a text that contains one is refused"));
}

// Adds the tokenizer's end token to those that the model has already.
void AddEndToken(std::optional<int32_t> id, OpenedModel* model) {
  std::vector<int32_t>& ids = model->eos_token_ids;
  const int32_t vocab_size = model->checkpoint->config().vocab_size;
  if (id.has_value() && *id >= vocab_size) {
    model->warnings.push_back(absl::StrCat(model->checkpoint->folder(),
                                           "/tokenizer_config.json: eos_token is token ", *id,
                                           ", and ", DescribeRows(vocab_size), "; it is not used"));
  } else if (id.has_value() && std::find(ids.begin(), ids.end(), *id) == ids.end()) {
    ids.push_back(*id);
  }
  if (ids.empty()) {
    model->warnings.push_back(absl::StrCat(
        model->checkpoint->folder(), ": no end token in generation_config.json (eos_token_id), ",
        "config.json (eos_token_id) or tokenizer_config.json (eos_token); texts end where a "
        "request "
        "says so, at max_tokens, or where the context is full"));
  }
}

// Sets `chat_template` and adds the warning.
void OpenChatTemplate(const std::string& folder, OpenedModel* model) {
  absl::StatusOr<std::unique_ptr<ChatTemplate>> loaded = ChatTemplate::Load(folder);
  if (!loaded.ok()) {
    model->chat_template = absl::FailedPreconditionError(
        absl::StrCat("the model's chat template cannot be used: ", loaded.status().message()));
    model->warnings.push_back(
        absl::StrCat(loaded.status().message(), "; the model takes no conversations"));
  } else if (*loaded == nullptr) {
    model->chat_template = absl::FailedPreconditionError(
        "the model has no chat template: neither chat_template.jinja nor \"chat_template\" in "
        "tokenizer_config.json");
  } else {
    model->chat_template = std::shared_ptr<const ChatTemplate>(*std::move(loaded));
  }
}

}  // namespace

absl::StatusOr<OpenedModel> OpenModel(const std::string& folder, const OpenModelOptions& options) {
  OpenedModel model;
  US_ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(folder));
  model.warnings = model.checkpoint->warnings();
  OpenChatTemplate(folder, &model);
  model.eos_token_ids = model.checkpoint->eos_token_ids();
  absl::StatusOr<FolderTokenizer> loaded = LoadFolderTokenizer(folder);
  const absl::Status usable =
      loaded.ok() ? CheckTemplate(*loaded->tokenizer, *model.checkpoint) : loaded.status();
  if (!usable.ok() && options.needs_tokenizer) return usable;
  if (!loaded.ok()) {
    if (!absl::IsNotFound(usable)) {
      model.warnings.push_back(
          absl::StrCat(usable.message(), "; no text can be given to this model"));
    }
    return model;
  }
  if (!usable.ok()) model.warnings.emplace_back(usable.message());
  model.tokenizer = std::move(loaded->tokenizer);
  model.tokenizer_notes = std::move(loaded->notes);
  for (std::string& warning : loaded->warnings) model.warnings.push_back(std::move(warning));
  WarnOfTokensBeyond(*model.tokenizer, *model.checkpoint, &model.warnings);
  AddEndToken(loaded->eos_token_id, &model);
  return model;
}

}  // namespace ultrasketch
