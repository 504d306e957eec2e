#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/input.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/status.h"
#include "engine/compress/evaluate.h"
#include "engine/format/tokenizer/tokenizer_folder.h"
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
    app.add_option("--reference", reference_,
                   "Folder of another model, the dense one say: how often both hold the same token "
                   "most likely")
        ->type_name("DIR");
    DeclareDeviceOptions(app, local_);
    DeclareKvCacheType(app, local_.kv_cache_type);
    app.footer(
        "The text is tokenized at once, as the text of a request is (most models' beginning\n"
        "token in front, once), and cut into windows of context + 1 tokens at stride context.\n"
        "Every token of a window but its first is predicted.\n"
        "\nExample:\n  ultrasketch eval --model models/classics-6m --text book.txt --context 512");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const std::string text, ReadInput(text_file_, environment.stop));
    const StopFlag stop(environment.stop);
    options_.cancelled = stop.flag();
    options_.num_threads = local_.num_threads;
    options_.add_special_tokens = !no_special_tokens_;
    if (!reference_.empty()) US_RETURN_IF_ERROR(CheckReferenceTokens(text));
    std::vector<int32_t> most_likely;
    std::vector<int32_t> reference_most_likely;
    US_ASSIGN_OR_RETURN(const Evaluation evaluation, Evaluate(local_, text, most_likely));
    nlohmann::ordered_json json = {{"perplexity", evaluation.perplexity},
                                   {"nll", evaluation.nll},
                                   {"accuracy", evaluation.accuracy},
                                   {"tokens", evaluation.tokens},
                                   {"tokens_per_second", evaluation.tokens_per_second},
                                   {"seconds", evaluation.seconds},
                                   {"context", options_.context}};
    std::string sentence = absl::StrFormat(
        "perplexity %.4f, %.6f nats per token, %.1f%% of the tokens the most likely one, over %d "
        "tokens at %.0f tokens/s\n",
        evaluation.perplexity, evaluation.nll, 100 * evaluation.accuracy, evaluation.tokens,
        evaluation.tokens_per_second);
    if (!reference_.empty()) {
      LocalModelOptions reference = local_;
      reference.folder = reference_;
      US_ASSIGN_OR_RETURN(const Evaluation other, Evaluate(reference, text, reference_most_likely));
      int64_t num_equal = 0;
      for (size_t i = 0; i < most_likely.size(); ++i) {
        if (most_likely[i] == reference_most_likely[i]) ++num_equal;
      }
      const double agreement =
          static_cast<double>(num_equal) / static_cast<double>(evaluation.tokens);
      json["agreement"] = agreement;
      json["reference_perplexity"] = other.perplexity;
      json["reference_accuracy"] = other.accuracy;
      absl::StrAppendFormat(
          &sentence,
          "%s: perplexity %.4f, %.1f%% the most likely one; both hold the same token "
          "most likely in %.1f%% of the places\n",
          reference_, other.perplexity, 100 * other.accuracy, 100 * agreement);
    }
    return environment.json ? WriteJson(json) : WriteOutput(sentence);
  }

 private:
  // Models whose tokens of the text differ do not predict the same.
  absl::Status CheckReferenceTokens(const std::string& text) const {
    std::vector<std::vector<int32_t>> tokens;
    for (const std::string& folder : {local_.folder, reference_}) {
      US_ASSIGN_OR_RETURN(const FolderTokenizer loaded, LoadFolderTokenizer(folder));
      US_ASSIGN_OR_RETURN(
          tokens.emplace_back(),
          EncodeForEvaluation(*loaded.tokenizer, std::numeric_limits<int32_t>::max(), text,
                              options_.add_special_tokens));
    }
    if (tokens[0] == tokens[1]) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(reference_, ": makes other tokens of the text than ", local_.folder,
                     ": expected the model it was made from, or one of the same tokenizer"));
  }

  absl::StatusOr<Evaluation> Evaluate(const LocalModelOptions& local, const std::string& text,
                                      std::vector<int32_t>& most_likely) {
    US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(local));
    ModelOptions model_options =
        EvaluationModelOptions(parts.opened.checkpoint->config(), options_.context);
    model_options.kv_cache_type = local.kv_cache_type;
    US_ASSIGN_OR_RETURN(const auto model,
                        LoadModel(parts.opened.checkpoint, parts.backend, model_options));
    ProgressBar progress("evaluating");
    options_.progress = [&progress](const EvaluateProgress& state) {
      progress.Update(state.tokens_done, state.tokens_total, "tokens");
    };
    options_.most_likely = &most_likely;
    return EvaluateText(*model, *parts.opened.tokenizer, text, options_);
  }

  LocalModelOptions local_;
  std::string text_file_;
  std::string reference_;
  bool no_special_tokens_ = false;
  EvaluateOptions options_;
};

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace ultrasketch::cli
