// A model's folder, opened: what everything that runs a model begins with.
#ifndef ULTRASKETCH_ENGINE_MODELS_OPEN_MODEL_H_
#define ULTRASKETCH_ENGINE_MODELS_OPEN_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/format/chat/chat_template.h"
#include "engine/format/checkpoint.h"
#include "engine/format/tokenizer/tokenizer.h"

namespace ultrasketch {

struct OpenedModel {
  std::shared_ptr<const Checkpoint> checkpoint;  // its tensors are mapped, not read
  std::shared_ptr<const Tokenizer> tokenizer;    // null: see OpenModelOptions
  // How a conversation becomes a prompt. FAILED_PRECONDITION, saying why, when the model has no
  // chat template or one that cannot be used; a warning says so in the latter case.
  absl::StatusOr<std::shared_ptr<const ChatTemplate>> chat_template;
  // The tokens that end a text: those of generation_config.json or else config.json, then the
  // tokenizer's own. None is a warning.
  std::vector<int32_t> eos_token_ids;
  // What the folder's files say that contradicts each other or cannot be used, and what is done
  // instead: a sentence each, without an end of line, that names the file. To be shown once to
  // whoever opened the model. The checkpoint's own come first.
  std::vector<std::string> warnings;
  // Where transformers makes other tokens of a text (tokenizer_folder.h): a sentence each.
  std::vector<std::string> tokenizer_notes;
};

struct OpenModelOptions {
  // False, for whom only measures or rewrites weights: a folder without a usable tokenizer.json is
  // opened, too, its `tokenizer` is null then, and a warning says what was wrong with the file if
  // there is one.
  bool needs_tokenizer = true;
};

// Errors are those of Checkpoint::Open and LoadFolderTokenizer; DATA_LOSS for a tokenizer whose
// template puts a token into every text that the model has no embedding for.
absl::StatusOr<OpenedModel> OpenModel(const std::string& folder,
                                      const OpenModelOptions& options = {});

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_OPEN_MODEL_H_
