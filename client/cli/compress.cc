#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/backends/cpu/available_memory.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/compressor.h"
#include "engine/compress/evaluate.h"
#include "engine/format/recorded_evaluation.h"
#include "engine/format/tokenizer/tokenizer_folder.h"
#include "engine/report/compression_page.h"

namespace ultrasketch::cli {
namespace {

// The last part of a path to a folder, which may end in a separator.
std::string FolderName(const std::string& folder) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(folder, error);
  return error ? folder : path.filename().string();
}

nlohmann::ordered_json ToJson(const CompressionSummary& summary) {
  nlohmann::ordered_json json(ultrasketch::ToJson(summary.report));
  if (summary.evaluation.has_value()) {
    json["perplexity_before"] = summary.evaluation->dense.perplexity;
    json["perplexity_after"] = summary.evaluation->compressed.perplexity;
    json["eval_tokens"] = summary.evaluation->compressed.tokens;
  }
  return json;
}

std::string DescribeEvaluation(const CompressionSummary& summary) {
  if (!summary.evaluation.has_value()) return "";
  const EvaluationPair& pair = *summary.evaluation;
  return absl::StrFormat("perplexity %.4f dense, %.4f compressed, over %d tokens of %s\n",
                         pair.dense.perplexity, pair.compressed.perplexity, pair.dense.tokens,
                         pair.text_name);
}

// An error as the table shows it: "-" for one that was not measured.
std::string FormatError(double error) {
  if (!std::isfinite(error)) return "-";
  return error > 0 && error < 0.00005 ? absl::StrFormat("%.1e", error)
                                      : absl::StrFormat("%.4f", error);
}

std::string DescribeErrors(const CompressionReport& report) {
  constexpr const char* kDefinition = "errors are |difference|^2 / |original|^2";
  const bool measured = std::any_of(
      report.sites.begin(), report.sites.end(),
      [](const CompressedSite& site) { return std::isfinite(site.relative_output_error); });
  return absl::StrCat(kDefinition, measured ? "" : "; output errors were not measured", "\n");
}

std::string Describe(const CompressionSummary& summary, const std::string& folder) {
  const CompressionReport& report = summary.report;
  std::vector<std::vector<std::string>> rows = {
      {"site", "rows", "columns", "bits/weight", "weight error", "output error"}};
  for (const CompressedSite& site : report.sites) {
    rows.push_back({site.name, absl::StrCat(site.rows), absl::StrCat(site.cols),
                    absl::StrFormat("%.4f", site.bits_per_weight),
                    FormatError(site.relative_weight_error),
                    FormatError(site.relative_output_error)});
  }
  return absl::StrCat(
      FormatTable(rows), "\n", folder, ": ", HumanBytes(static_cast<double>(report.bytes)), ", ",
      absl::StrFormat("%.4f bits per weight (linear), %.4f (file), in %.1f s\n",
                      report.bits_per_weight_linear, report.bits_per_weight_file, report.seconds),
      "fitted to ",
      report.calibration_source == "none"
          ? "the weights alone"
          : absl::StrCat(WithThousands(report.calibration_tokens),
                         report.calibration_tokens == 1 ? " token of " : " tokens of ",
                         report.calibration_source == "files" ? "the calibration text"
                                                              : "text that the model wrote itself"),
      "; ", DescribeErrors(report), DescribeEvaluation(summary));
}

class CompressCommand : public Command {
 public:
  const char* name() const override { return "compress"; }
  const char* summary() const override {
    return "Compress a model to a fraction of a bit per weight";
  }

  void Declare(CLI::App& app) override {
    app.add_option("--model", model_, "Folder of the model to compress")
        ->required()
        ->type_name("DIR");
    app.add_option("--out", out_, "Folder to write; appears whole or not at all")
        ->required()
        ->type_name("DIR");
    app.add_option("--codec", options_.codec, "How weights are represented: fold or absmaxmin")
        ->capture_default_str();
    app.add_option("--bits", options_.bits_per_weight,
                   "At most this many bits per weight of the linear layers, side data included")
        ->check(CLI::Validator(
            [](const std::string& text) {
              double bits = 0;
              return absl::SimpleAtod(text, &bits) ? std::string()
                                                   : absl::StrCat("'", text, "' is not a number");
            },
            ""))
        ->capture_default_str()
        ->type_name("BITS");
    app.add_option(
           "--embedding", options_.embedding,
           "How the token embedding is stored: auto, keep, int8 or int4; auto is int8 where "
           "--bits is below 2, else keep (as it is)")
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--head", options_.head,
                   "How an output head that is not the embedding is stored: the same words")
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--hash-rows", options_.absmaxmin_hash_rows,
                   "Of absmaxmin: hash rows of the buckets that columns share")
        ->capture_default_str()
        ->type_name("D");
    app.add_option("--bucket-bits", options_.absmaxmin_bucket_bits,
                   "Of absmaxmin: bits of a bucket, 2 to 8; 0: what suits --bits")
        ->capture_default_str()
        ->type_name("Q");
    app.add_option("--own-share", options_.absmaxmin_own_share,
                   "Of absmaxmin: the part of the bits for important columns with buckets of their "
                   "own; 0: all columns share, as in the paper without allocation")
        ->check(NumberIn(0.0, 1.0))
        ->capture_default_str()
        ->type_name("PART");
    app.add_option("--calibration", options_.calibration_files,
                   "Text to fit to, plain or .xz; may be repeated. Without it the model writes its "
                   "own")
        ->allow_extra_args(false)
        ->type_name("FILE");
    app.add_option("--calibration-windows", options_.calibration_windows,
                   "Windows of text to fit to; 0: fit to the weights alone")
        ->check(AtLeast<int64_t>(0))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--calibration-window-tokens", options_.calibration_window_tokens,
                   "Tokens in a window")
        ->check(AtLeast<int64_t>(1))
        ->capture_default_str()
        ->type_name("N");
    app.add_flag("--no-special-tokens,--no-add-special-tokens", no_special_tokens_,
                 "Neither windows of --calibration nor the text of --eval get the tokens that the "
                 "model expects around a text");
    app.add_option("--device", options_.device,
                   "Where to compute: auto, cpu, cuda or cuda:N; auto is a GPU where there is one")
        ->capture_default_str()
        ->type_name("DEVICE");
    app.add_option("--seed", options_.seed, "Of the hash")
        ->check(AtLeast<uint64_t>(0))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--threads", options_.num_threads, "CPU threads; 0: all that there are")
        ->check(AtLeast(0))
        ->type_name("N");
    app.add_flag(
        "--resume", options_.resume,
        "Go on after the last layer that an interrupted run with the same options finished");
    app.add_flag("--overwrite", options_.overwrite, "Replace the compressed model at --out");
    app.add_option("--report", report_,
                   "Write a page about the result to FILE.html and its data to FILE.json (an "
                   ".html or .json at the end of FILE is left out first)")
        ->type_name("FILE");
    app.add_option("--eval", eval_file_,
                   "Text to measure the perplexity on, before and after; the model's config.json "
                   "records it")
        ->type_name("FILE");
    app.add_option("--eval-context", eval_.context, "Tokens in a window, as in 'ultrasketch eval'")
        ->check(AtLeast<int64_t>(1))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--eval-max-tokens", eval_.max_tokens,
                   "Only this many tokens of the text; 0: all of it")
        ->check(AtLeast<int64_t>(0))
        ->type_name("N");
    app.footer(
        "Examples:\n"
        "  ultrasketch compress --model models/classics-6m --out models/classics-6m-0.5bit\n"
        "  ultrasketch compress --model llama --out llama-1bit --bits 1 --calibration text.xz \\\n"
        "    --report llama-1bit --eval book.txt --eval-max-tokens 20000");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const OpenedModel opened,
                        OpenLocalModel(model_, {.needs_tokenizer = false}));
    options_.add_special_tokens = eval_.add_special_tokens = !no_special_tokens_;
    const std::shared_ptr<const Checkpoint>& checkpoint = opened.checkpoint;
    const StopFlag stop(environment.stop);
    options_.cancelled = stop.flag();
    // Whatever can fail for report and evaluation fails before the work.
    const ReportFiles files = NameReportFiles(report_);
    if (!report_.empty()) US_RETURN_IF_ERROR(CheckReportFiles(files));
    std::vector<int32_t> eval_tokens;
    if (!eval_file_.empty()) {
      US_ASSIGN_OR_RETURN(eval_tokens, ReadEvaluationText(*checkpoint));
    }
    options_.on_start = [](const CompressionStart& start) {
      const auto human = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
      std::cerr << "needs up to " << human(start.memory.host_bytes) << " of memory; "
                << human(AvailableMemoryBytes()) << " are available\n";
      if (start.memory.device_bytes == 0) return;
      std::cerr << start.device << " (" << start.device_description << "): needs up to "
                << human(start.memory.device_bytes) << " of its memory; "
                << human(start.device_available_bytes) << " are available\n";
    };
    options_.on_warning = [](std::string_view warning) {
      std::cerr << "warning: " << warning << "\n";
    };
    absl::StatusOr<CompressionReport> report;
    {
      ProgressBar progress("compressing");
      options_.progress = [&progress](const CompressProgress& state) {
        progress.UpdateFraction(state.stage, state.fraction);
      };
      report = CompressCheckpoint(checkpoint, out_, options_);
    }
    US_RETURN_IF_ERROR(report.status());

    CompressionSummary summary = {.model_name = FolderName(model_),
                                  .compressed_name = FolderName(out_),
                                  .config = checkpoint->config(),
                                  .options = options_,
                                  .dense_bytes = checkpoint->file_bytes(),
                                  .report = *std::move(report),
                                  .evaluation = std::nullopt};
    absl::Status evaluated;
    if (!eval_file_.empty()) {
      auto evaluation = Evaluate(checkpoint, eval_tokens);
      evaluated = evaluation.status();
      if (evaluation.ok()) {
        summary.evaluation = *std::move(evaluation);
        evaluated = RecordResult(summary);
      }
    }
    if (!report_.empty()) US_RETURN_IF_ERROR(WriteCompressionReport(summary, files));
    if (!evaluated.ok()) {
      return absl::Status(evaluated.code(),
                          absl::StrCat(evaluated.message(), "; the model in ", out_,
                                       " is complete: 'ultrasketch eval' evaluates it"));
    }
    return environment.json ? WriteJson(ToJson(summary)) : WriteOutput(Describe(summary, out_));
  }

 private:
  absl::StatusOr<std::vector<int32_t>> ReadEvaluationText(const Checkpoint& checkpoint) {
    US_ASSIGN_OR_RETURN(const FolderTokenizer loaded, LoadFolderTokenizer(checkpoint.folder()));
    US_ASSIGN_OR_RETURN(const std::string text, ReadFile(eval_file_));
    auto tokens = EncodeForEvaluation(*loaded.tokenizer, checkpoint.config().vocab_size, text,
                                      eval_.add_special_tokens);
    US_RETURN_IF_ERROR(Annotate(tokens.status(), eval_file_));
    US_RETURN_IF_ERROR(Annotate(CheckEvaluation(checkpoint.config(), *tokens, eval_), eval_file_));
    return tokens;
  }

  // The dense model and the one that has been written.
  absl::StatusOr<EvaluationPair> Evaluate(const std::shared_ptr<const Checkpoint>& dense,
                                          const std::vector<int32_t>& tokens) {
    US_ASSIGN_OR_RETURN(const auto compressed, Checkpoint::Open(out_));
    eval_.cancelled = options_.cancelled;
    eval_.num_threads = options_.num_threads;
    EvaluationPair pair = {.text_name = std::filesystem::path(eval_file_).filename().string(),
                           .context = eval_.context,
                           .dense = {},
                           .compressed = {}};
    const auto evaluate = [&](const std::shared_ptr<const Checkpoint>& checkpoint,
                              const char* label) {
      ProgressBar progress(label);
      eval_.progress = [&progress](const EvaluateProgress& state) {
        progress.Update(state.tokens_done, state.tokens_total, "tokens");
      };
      return EvaluateCheckpoint(checkpoint, "auto", tokens, eval_);
    };
    US_ASSIGN_OR_RETURN(pair.dense, evaluate(dense, "evaluating the dense model"));
    US_ASSIGN_OR_RETURN(pair.compressed, evaluate(compressed, "evaluating the compressed model"));
    return pair;
  }

  // Into the folder that has been written, which grows by it.
  absl::Status RecordResult(CompressionSummary& summary) {
    const EvaluationPair& pair = *summary.evaluation;
    US_RETURN_IF_ERROR(RecordEvaluation(out_, {.perplexity = pair.compressed.perplexity,
                                               .dense_perplexity = pair.dense.perplexity,
                                               .tokens = pair.compressed.tokens,
                                               .context_tokens = pair.context}));
    US_ASSIGN_OR_RETURN(const auto written, Checkpoint::Open(out_));
    summary.report.bytes = written->file_bytes();
    summary.report.bits_per_weight_file = 8.0 * static_cast<double>(written->file_bytes()) /
                                          static_cast<double>(summary.report.parameters);
    return absl::OkStatus();
  }

  std::string model_;
  std::string out_;
  CompressOptions options_;
  bool no_special_tokens_ = false;
  std::string report_;
  std::string eval_file_;
  EvaluateOptions eval_;
};

}  // namespace

std::unique_ptr<Command> MakeCompressCommand() { return std::make_unique<CompressCommand>(); }

}  // namespace ultrasketch::cli
