#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "client/cli/bench_engine.h"
#include "client/cli/bench_kernel.h"
#include "client/cli/bench_serve.h"
#include "client/cli/bench_step.h"
#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/bench/model_presets.h"
#include "engine/bench/quality.h"
#include "engine/bench/synthetic_checkpoint.h"

namespace ultrasketch::cli {
namespace {

// Measurements, and what they need: each a nested command.
class BenchCommand : public Command {
 public:
  const char* name() const override { return "bench"; }
  const char* summary() const override { return "Load a server, and measure speed and quality"; }

  void Declare(CLI::App& app) override {
    app.require_subcommand(1);
    app.footer(
        "Example:\n  ultrasketch bench quality --model models/classics-6m --text book.txt "
        "--calibration train.txt.xz");
    DeclareQuality(*app.add_subcommand("quality", "Compress at several rates and compare"));
    kernel_ = app.add_subcommand("kernel", "Time the products of compressed layers on a device");
    kernel_bench_.Declare(*kernel_);
    step_ = app.add_subcommand("step", "Time whole steps, compressed and uncompressed");
    step_bench_.Declare(*step_);
    serve_ = app.add_subcommand("serve", "Load a running server and measure what its clients see");
    serve_bench_.Declare(*serve_);
    engine_ = app.add_subcommand("engine", "The same load for a model in this process");
    engine_bench_.Declare(*engine_);
    synth_ = app.add_subcommand("synth", "Write a checkpoint of random weights");
    synth_->group("");  // for other measurements, not for users
    DeclareSynth(*synth_);
  }

  std::string UsageError() const override {
    if (serve_->parsed()) return serve_bench_.UsageError();
    if (engine_->parsed()) return engine_bench_.UsageError();
    return "";
  }

  absl::Status Run(const Environment& environment) override {
    if (serve_->parsed()) return serve_bench_.Run(environment);
    if (engine_->parsed()) return engine_bench_.Run(environment);
    if (kernel_->parsed()) return kernel_bench_.Run(environment);
    if (step_->parsed()) return step_bench_.Run(environment);
    if (synth_->parsed()) {
      US_RETURN_IF_ERROR(WriteSyntheticCheckpoint(preset_, out_, synthetic_));
      return environment.json ? WriteJson({{"folder", out_}}) : absl::OkStatus();
    }
    return RunQuality(environment);
  }

 private:
  void DeclareQuality(CLI::App& app) {
    CompressOptions& compress = quality_.compress;
    app.add_option("--model", local_.folder, "Folder of the dense model")
        ->required()
        ->type_name("DIR");
    app.add_option("--text", text_file_, "Text to measure the perplexity on")
        ->required()
        ->type_name("FILE");
    app.add_option("--codecs", quality_.codecs, "Codecs, with commas between")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("NAME");
    app.add_option("--bits", quality_.bits, "Bits per weight (linear), with commas between")
        ->delimiter(',')
        ->capture_default_str()
        ->type_name("BITS");
    app.add_option("--landmarks", quality_.landmarks,
                   "Bits of weights rounded to the nearest level, with commas between")
        ->delimiter(',')
        ->check(CLI::Range(1, 8))
        ->capture_default_str()
        ->type_name("BITS");
    app.add_option("--calibration", compress.calibration_files,
                   "Text to fit to, plain or .xz; may be repeated")
        ->allow_extra_args(false)
        ->type_name("FILE");
    app.add_option("--calibration-windows", compress.calibration_windows,
                   "Windows of text to fit to")
        ->check(AtLeast<int64_t>(0))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--seed", compress.seed, "Of the hash")->check(AtLeast<uint64_t>(0));
    app.add_option("--context", quality_.evaluate.context, "Tokens in a window")
        ->check(AtLeast<int64_t>(1))
        ->capture_default_str()
        ->type_name("N");
    app.add_option("--max-tokens", quality_.evaluate.max_tokens,
                   "Only this many tokens of the text; 0: all of it")
        ->check(AtLeast<int64_t>(0))
        ->type_name("N");
    app.add_option("--work-dir", quality_.work_folder, "Where models are for a while")
        ->type_name("DIR");
    app.add_option("--out", out_,
                   "Write the results, as --json prints them, to this file, after each measurement")
        ->type_name("FILE");
    DeclareDeviceOptions(app, local_);
    app.footer(
        "Example:\n"
        "  ultrasketch bench quality --model models/classics-6m --text book.txt \\\n"
        "    --calibration train.txt.xz --bits 0.5,1 --out quality.json");
  }

  void DeclareSynth(CLI::App& app) {
    app.add_option("--preset", preset_,
                   absl::StrCat("Shapes: ", absl::StrJoin(PresetNames(), ", ")))
        ->required()
        ->type_name("NAME");
    app.add_option("--out", out_, "Folder to write")->required()->type_name("DIR");
    app.add_option("--tokenizer", synthetic_.tokenizer_folder, "Folder with a tokenizer.json")
        ->type_name("DIR");
    app.add_option("--seed", synthetic_.seed, "Of the weights")->type_name("N");
  }

  absl::Status RunQuality(const Environment& environment) {
    US_ASSIGN_OR_RETURN(const LocalModelParts parts, OpenLocalModelParts(local_));
    US_ASSIGN_OR_RETURN(const std::string text, ReadFile(text_file_));
    US_ASSIGN_OR_RETURN(
        const std::vector<int32_t> tokens,
        EncodeForEvaluation(*parts.opened.tokenizer, parts.opened.checkpoint->config().vocab_size,
                            text, quality_.evaluate.add_special_tokens));
    US_RETURN_IF_ERROR(
        CheckEvaluation(parts.opened.checkpoint->config(), tokens, quality_.evaluate));
    if (quality_.work_folder.empty()) {
      std::error_code error;
      quality_.work_folder = std::filesystem::temp_directory_path(error).string();
      if (error) return ErrnoStatus(error.value(), "the folder for temporary files");
    }
    // Refused now rather than after hours.
    if (!out_.empty()) US_RETURN_IF_ERROR(AtomicFileWriter::Create(out_).status());
    const StopFlag stop(environment.stop);
    quality_.device = local_.device;
    quality_.compress.cancelled = stop.flag();
    quality_.compress.num_threads = local_.num_threads;
    quality_.evaluate.cancelled = stop.flag();
    quality_.evaluate.num_threads = local_.num_threads;
    if (!out_.empty()) {
      quality_.on_point = [&](absl::Span<const QualityPoint> points) {
        return WriteFileAtomically(
            out_, FormatJson(QualityJson(parts.opened.checkpoint->folder(), points)));
      };
    }
    absl::StatusOr<std::vector<QualityPoint>> points;
    {
      ProgressBar progress("measuring");
      quality_.progress = [&progress](std::string_view stage, double fraction) {
        progress.UpdateFraction(stage, fraction);
      };
      points = MeasureQuality(parts.opened.checkpoint, tokens, quality_);
    }
    US_RETURN_IF_ERROR(points.status());
    return environment.json ? WriteJson(QualityJson(parts.opened.checkpoint->folder(), *points))
                            : WriteOutput(Describe(*points));
  }

  nlohmann::ordered_json QualityJson(const std::string& folder,
                                     absl::Span<const QualityPoint> points) const {
    return {{"model", std::filesystem::path(folder).filename().string()},
            {"text", std::filesystem::path(text_file_).filename().string()},
            {"context", quality_.evaluate.context},
            {"max_tokens", quality_.evaluate.max_tokens},
            {"calibration", CalibrationNames()},
            {"calibration_windows", quality_.compress.calibration_windows},
            {"seed", quality_.compress.seed},
            {"points", ToJson(points)}};
  }

  std::vector<std::string> CalibrationNames() const {
    std::vector<std::string> names;
    for (const std::string& file : quality_.compress.calibration_files) {
      names.push_back(std::filesystem::path(file).filename().string());
    }
    return names;
  }

  static std::string Describe(absl::Span<const QualityPoint> points) {
    std::vector<std::vector<std::string>> rows = {
        {"codec", "bits/weight (linear)", "(file)", "bytes", "perplexity", "of dense", "seconds"}};
    std::string errors;
    for (const QualityPoint& point : points) {
      if (!point.error.empty()) {
        absl::StrAppend(&errors, absl::StrFormat("%s at %g bits: %s\n", point.codec,
                                                 point.target_bits, point.error));
        continue;
      }
      rows.push_back({point.codec, absl::StrFormat("%.4f", point.bits_per_weight_linear),
                      absl::StrFormat("%.3f", point.bits_per_weight_file),
                      HumanBytes(static_cast<double>(point.bytes)),
                      absl::StrFormat("%.2f", point.perplexity),
                      absl::StrFormat("%.3f", point.ratio_to_dense),
                      point.target_bits > 0 ? absl::StrFormat("%.1f", point.compress_seconds)
                                            : std::string()});
    }
    return absl::StrCat(FormatTable(rows), errors);
  }

  CLI::App* kernel_ = nullptr;
  KernelBench kernel_bench_;
  CLI::App* step_ = nullptr;
  StepBench step_bench_;
  CLI::App* serve_ = nullptr;
  ServeBench serve_bench_;
  CLI::App* engine_ = nullptr;
  EngineBench engine_bench_;
  CLI::App* synth_ = nullptr;
  LocalModelOptions local_;
  std::string text_file_;
  QualityOptions quality_;
  std::string preset_;
  std::string out_;
  SyntheticOptions synthetic_;
};

}  // namespace

std::unique_ptr<Command> MakeBenchCommand() { return std::make_unique<BenchCommand>(); }

}  // namespace ultrasketch::cli
