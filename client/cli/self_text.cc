#include "engine/compress/self_text.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/compress/token_windows.h"
#include "engine/models/model.h"

namespace ultrasketch::cli {
namespace {

class SelfTextCommand : public Command {
 public:
  const char* name() const override { return "self-text"; }
  const char* summary() const override {
    return "Let a model write the text that its compressed form is finetuned on";
  }

  void Declare(CLI::App& app) override {
    app.add_option("--model", local_.folder, "Model folder, the dense one")
        ->required()
        ->type_name("DIR");
    app.add_option(
           "--out", out_,
           "File to write: of tokens, for 'finetune --text', where it ends in .safetensors, "
           "else of text")
        ->required()
        ->type_name("FILE");
    app.add_option("--tokens", num_tokens_, "How much, in whole windows")
        ->check(AtLeast<int64_t>(1))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--context", options_.window_tokens, "Tokens in a window")
        ->check(AtLeast<int64_t>(2))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--batch", windows_at_once_, "Windows written at once")
        ->check(AtLeast<int64_t>(1))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--free-share", options_.free_share,
                   "Of a chat model: the part of the windows that begin with the beginning token "
                   "alone, and not with a conversation's beginning as the chat template writes it")
        ->check(NumberIn(0.0, 1.0))
        ->capture_default_str()
        ->type_name("PART");
    app.add_option("--temperature", options_.temperatures,
                   "A window's temperature is one of these; may be repeated")
        ->capture_default_str()
        ->type_name("T");
    app.add_option("--min-p", options_.min_p, "Drop tokens below this share of the most likely")
        ->capture_default_str()
        ->type_name("P");
    app.add_option("--seed", options_.seed, "Same seed and model, same text")
        ->check(AtLeast<uint64_t>(0))
        ->capture_default_str()
        ->type_name("N");
    app.add_flag("--overwrite", overwrite_, "Replace what is at --out");
    DeclareDeviceOptions(app, local_);
    app.footer(
        "Where the model has a chat template, windows are conversations from their beginning: the\n"
        "model writes the user's messages, then its answers. Without one it writes from its\n"
        "beginning token.\n"
        "\nExample:\n  ultrasketch self-text --model smollm2 --out self.safetensors --tokens "
        "20000000");
  }

  absl::Status Run(const Environment& environment) override {
    std::error_code error;
    if (!overwrite_ && std::filesystem::exists(out_, error)) {
      return absl::AlreadyExistsError(absl::StrCat(out_, " exists: --overwrite replaces it"));
    }
    US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(local_));
    const OpenedModel& opened = parts.opened;
    options_.num_windows = (num_tokens_ + options_.window_tokens - 1) / options_.window_tokens;
    options_.eos_token_ids = opened.eos_token_ids;
    if (opened.chat_template.ok()) {
      US_ASSIGN_OR_RETURN(options_.conversation,
                          FindConversationTokens(**opened.chat_template, *opened.tokenizer));
    }
    windows_at_once_ = std::min(windows_at_once_, options_.num_windows);
    ModelOptions model_options;
    model_options.max_step_tokens = model_options.max_step_logits = windows_at_once_;
    model_options.kv_cache_tokens = windows_at_once_ *
                                    (options_.window_tokens + model_options.block_size - 1) /
                                    model_options.block_size * model_options.block_size;
    US_ASSIGN_OR_RETURN(const auto model,
                        LoadModel(opened.checkpoint, parts.backend, model_options));
    const StopFlag stop(environment.stop);
    options_.cancelled = stop.flag();
    const absl::Time start = absl::Now();
    absl::StatusOr<std::vector<int32_t>> tokens;
    {
      ProgressBar progress("writing");
      options_.progress = [&progress](int64_t done, int64_t total) {
        progress.Update(done, total, "tokens");
      };
      tokens = WriteSelfText(*model, options_);
    }
    US_RETURN_IF_ERROR(tokens.status());
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    US_RETURN_IF_ERROR(Save(opened, *tokens));
    const auto count = static_cast<int64_t>(tokens->size());
    const double rate = static_cast<double>(count) / seconds;
    if (!environment.json) {
      return WriteOutput(absl::StrFormat(
          "%s: %s windows, %s tokens, %s, at %s tokens/s\n", out_,
          WithThousands(options_.num_windows), WithThousands(count),
          options_.conversation.has_value() ? "conversations" : "text without a chat template",
          WithThousands(static_cast<int64_t>(rate))));
    }
    return WriteJson({{"windows", options_.num_windows},
                      {"tokens", count},
                      {"conversations", options_.conversation.has_value()},
                      {"seconds", seconds},
                      {"tokens_per_second", rate}});
  }

 private:
  absl::Status Save(const OpenedModel& opened, const std::vector<int32_t>& tokens) const {
    if (IsTokenWindowsPath(out_)) {
      return WriteTokenWindows(out_, opened.checkpoint->tokenizer_path(), tokens,
                               options_.window_tokens);
    }
    std::string text;
    const absl::Span<const int32_t> all = tokens;
    const auto window = static_cast<size_t>(options_.window_tokens);
    for (size_t first = 0; first < all.size(); first += window) {
      absl::StrAppend(
          &text,
          opened.tokenizer->Decode(all.subspan(first, window), /*skip_special_tokens=*/false),
          "\n");
    }
    return WriteFileAtomically(out_, text);
  }

  LocalModelOptions local_;
  std::string out_;
  int64_t num_tokens_ = 1'000'000;
  int64_t windows_at_once_ = 256;
  bool overwrite_ = false;
  SelfTextOptions options_;
};

}  // namespace

std::unique_ptr<Command> MakeSelfTextCommand() { return std::make_unique<SelfTextCommand>(); }

}  // namespace ultrasketch::cli
