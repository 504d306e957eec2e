#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/backends/cpu/available_memory.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/compressor.h"

namespace ultrasketch::cli {
namespace {

std::string Describe(const CompressionReport& report, const std::string& folder) {
  std::vector<std::vector<std::string>> rows = {
      {"site", "rows", "columns", "bits/weight", "weight error", "output error"}};
  for (const CompressedSite& site : report.sites) {
    rows.push_back({site.name, absl::StrCat(site.rows), absl::StrCat(site.cols),
                    absl::StrFormat("%.4f", site.bits_per_weight),
                    absl::StrFormat("%.4f", site.relative_weight_error),
                    absl::StrFormat("%.4f", site.relative_output_error)});
  }
  return absl::StrCat(
      FormatTable(rows), "\n", folder, ": ", HumanBytes(static_cast<double>(report.bytes)), ", ",
      absl::StrFormat("%.4f bits per weight (linear), %.4f (file), in %.1f s\n",
                      report.bits_per_weight_linear, report.bits_per_weight_file, report.seconds),
      "fitted to ",
      report.calibration_source == "none"
          ? "the weights alone"
          : absl::StrCat(WithThousands(report.calibration_tokens), " tokens of ",
                         report.calibration_source == "files" ? "the calibration text"
                                                              : "text that the model wrote itself"),
      "; errors are |difference|^2 / |original|^2\n");
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
    app.add_option("--codec", options_.codec, "How weights are represented")->capture_default_str();
    app.add_option("--bits", options_.bits_per_weight,
                   "At most this many bits per weight of the linear layers, side data included")
        ->capture_default_str()
        ->type_name("BITS");
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
    app.add_flag("--overwrite", options_.overwrite, "Replace what is at --out");
    app.footer(
        "Example:\n"
        "  ultrasketch compress --model models/classics-6m --out models/classics-6m-0.5bit");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(model_));
    const StopFlag stop(environment.stop);
    options_.cancelled = stop.flag();
    const auto memory =
        static_cast<double>(EstimateCompressionMemory(checkpoint->config(), options_));
    std::cerr << "needs up to " << HumanBytes(memory) << " of memory; "
              << HumanBytes(static_cast<double>(AvailableMemoryBytes())) << " are available\n";
    absl::StatusOr<CompressionReport> report;
    {
      ProgressBar progress("compressing");
      options_.progress = [&progress](const CompressProgress& state) {
        progress.UpdateFraction(state.stage, state.fraction);
      };
      report = CompressCheckpoint(std::move(checkpoint), out_, options_);
    }
    US_RETURN_IF_ERROR(report.status());
    return environment.json ? WriteJson(nlohmann::ordered_json(ToJson(*report)))
                            : WriteOutput(Describe(*report, out_));
  }

 private:
  std::string model_;
  std::string out_;
  CompressOptions options_;
};

}  // namespace

std::unique_ptr<Command> MakeCompressCommand() { return std::make_unique<CompressCommand>(); }

}  // namespace ultrasketch::cli
