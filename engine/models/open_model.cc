#include "engine/models/open_model.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"

namespace ultrasketch {

absl::StatusOr<OpenedModel> OpenModel(const std::string& folder, const OpenModelOptions& options) {
  OpenedModel model;
  US_ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(folder));
  model.warnings = model.checkpoint->warnings();
  auto tokenizer = Tokenizer::Load(model.checkpoint->tokenizer_path());
  if (tokenizer.ok()) {
    model.tokenizer = *std::move(tokenizer);
  } else if (options.needs_tokenizer) {
    return tokenizer.status();
  } else if (!absl::IsNotFound(tokenizer.status())) {
    model.warnings.push_back(
        absl::StrCat(tokenizer.status().message(), "; no text can be given to this model"));
  }
  model.eos_token_ids = model.checkpoint->eos_token_ids();
  return model;
}

}  // namespace ultrasketch
