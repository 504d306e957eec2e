#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/compress/evaluate.h"
#include "engine/models/model.h"

namespace ultrasketch::cli {
namespace {

class EvalCommand : public Command {
 public:
  const char* name() const override { return "eval"; }
  const char* summary() const override { return "Measure a model's perplexity on a text"; }

  void Declare(CLI::App& app) override {
    app.add_option("--model", local_.folder, "Model folder, dense or compressed")
        ->required()
        ->type_name("DIR");
    app.add_option("--text", text_file_, "Text file, UTF-8")->required()->type_name("FILE");
    app.add_option("--context", options_.context, "Tokens in a window")
        ->check(AtLeast<int64_t>(1))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--max-tokens", options_.max_tokens,
                   "Only this many tokens of the text; 0: all of it")
        ->check(AtLeast<int64_t>(0))
        ->type_name("N");
    app.add_flag("--no-special-tokens,--no-add-special-tokens", no_special_tokens_,
                 "Do not add the tokens that the model expects around a text");
    DeclareDeviceOptions(app, local_);
    DeclareKvCacheType(app, local_.kv_cache_type);
    app.footer(
        "The text is tokenized at once, as the text of a request is (most models' beginning\n"
        "token in front, once), and cut into windows of context + 1 tokens at stride context.\n"
        "Every token of a window but its first is predicted.\n"
        "\nExample:\n  ultrasketch eval --model models/classics-6m --text book.txt --context 512");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(local_));
    US_ASSIGN_OR_RETURN(const std::string text, ReadFile(text_file_));
    ModelOptions model_options =
        EvaluationModelOptions(parts.opened.checkpoint->config(), options_.context);
    model_options.kv_cache_type = local_.kv_cache_type;
    US_ASSIGN_OR_RETURN(const auto model,
                        LoadModel(parts.opened.checkpoint, parts.backend, model_options));
    const StopFlag stop(environment.stop);
    options_.cancelled = stop.flag();
    options_.num_threads = local_.num_threads;
    options_.add_special_tokens = !no_special_tokens_;
    absl::StatusOr<Evaluation> evaluation;
    {
      ProgressBar progress("evaluating");
      options_.progress = [&progress](const EvaluateProgress& state) {
        progress.Update(state.tokens_done, state.tokens_total, "tokens");
      };
      evaluation = EvaluateText(*model, *parts.opened.tokenizer, text, options_);
    }
    US_RETURN_IF_ERROR(evaluation.status());
    if (!environment.json) {
      return WriteOutput(
          absl::StrFormat("perplexity %.4f, %.6f nats per token, over %d tokens at %.0f tokens/s\n",
                          evaluation->perplexity, evaluation->nll, evaluation->tokens,
                          evaluation->tokens_per_second));
    }
    return WriteJson({{"perplexity", evaluation->perplexity},
                      {"nll", evaluation->nll},
                      {"tokens", evaluation->tokens},
                      {"tokens_per_second", evaluation->tokens_per_second},
                      {"seconds", evaluation->seconds},
                      {"context", options_.context}});
  }

 private:
  LocalModelOptions local_;
  std::string text_file_;
  bool no_special_tokens_ = false;
  EvaluateOptions options_;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace ultrasketch::cli
