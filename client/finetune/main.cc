// `ultrasketch-finetune`, what `ultrasketch finetune` runs: an executable of its own, so that
// nothing else carries LibTorch.
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <stop_token>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include <CLI/CLI.hpp>

#include "client/cli/command.h"
#include "client/cli/interrupt.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/finetune/self_text.h"
#include "engine/base/status.h"
#include "engine/finetune/finetune.h"
#include "engine/finetune/finetune_settings.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch::cli {
namespace {

constexpr char kName[] = "ultrasketch finetune";
constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

struct Arguments {
  FinetuneOptions options;
  int64_t num_tokens = 0;  // 0: num_steps says how many
  std::string from = "student";
  std::string gradient = "chosen";
  bool freeze_embedding = false;
  bool json = false;
  SelfTextRequest self_text;
};

void DeclareModels(CLI::App& app, Arguments& arguments) {
  FinetuneOptions& options = arguments.options;
  app.add_option("--teacher", options.teacher, "Folder of the dense model")
      ->required()
      ->type_name("DIR");
  app.add_option("--student", options.student, "Folder of its compressed form, to be trained")
      ->required()
      ->type_name("DIR");
  app.add_option("--text", options.text_files,
                 "Text to train on, plain or .xz; or windows that 'ultrasketch self-text' wrote "
                 "(.safetensors); or the word self: the teacher writes them first. May be repeated")
      ->required()
      ->type_name("FILE");
  app.add_option("--self-tokens", arguments.self_text.num_tokens,
                 "With --text self: how much the teacher writes")
      ->check(AtLeast<int64_t>(1))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--windows-share", options.windows_share,
                 "Where windows and other text are given: the part of what is trained on that is "
                 "windows")
      ->capture_default_str()
      ->type_name("PART");
  app.add_option("--out", options.out,
                 "Folder for the trained model, of the student's size; log, curves and checkpoints "
                 "are in DIR.training")
      ->required()
      ->type_name("DIR");
  app.add_option("--eval", options.eval_file,
                 "Text to measure the perplexity on; without it the end of the training text, "
                 "which is held out")
      ->type_name("FILE");
  app.add_option("--eval-max-tokens", options.eval_max_tokens, "Only this many tokens of it")
      ->check(AtLeast<int64_t>(2))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--eval-every", options.eval_every, "Steps between evaluations; 0: at the end")
      ->check(AtLeast<int64_t>(0))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--cache", options.cache, "File for the tokens of the text, used again next time")
      ->type_name("FILE");
}

void DeclareTraining(CLI::App& app, Arguments& arguments) {
  FinetuneOptions& options = arguments.options;
  CLI::Option* steps = app.add_option("--steps", options.num_steps, "Steps of the optimizer")
                           ->check(AtLeast<int64_t>(1))
                           ->capture_default_str()
                           ->type_name("N");
  app.add_option("--tokens", arguments.num_tokens, "The same in tokens to train on")
      ->check(AtLeast<int64_t>(1))
      ->excludes(steps)
      ->type_name("N");
  app.add_option("--batch", options.batch_windows, "Windows of text in a step")
      ->check(AtLeast<int64_t>(1))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--context", options.window_tokens, "Tokens in a window")
      ->check(AtLeast<int64_t>(2))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--lr", options.latent_learning_rate,
                 "Learning rate of the values behind the bits, which are about 1")
      ->capture_default_str()
      ->type_name("RATE");
  app.add_option("--lr-other", options.learning_rate, "Of row scales (relative), norms and biases")
      ->capture_default_str()
      ->type_name("RATE");
  app.add_option("--lr-embedding", options.table_learning_rate,
                 "Of embedding and output head (relative)")
      ->capture_default_str()
      ->type_name("RATE");
  app.add_flag("--freeze-embedding", arguments.freeze_embedding,
               "Leave embedding and output head as they are");
  app.add_option(
         "--warmup", options.warmup_steps,
         "Steps in which the learning rates rise, at most a tenth of all; they fall to zero "
         "along a cosine")
      ->check(AtLeast<int64_t>(0))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--clip", options.max_gradient_norm, "Longest gradient")
      ->capture_default_str()
      ->type_name("NORM");
  app.add_option("--hidden-loss", options.hidden_loss,
                 "Weight of the distance between the models' hidden states in the loss")
      ->capture_default_str()
      ->type_name("WEIGHT");
  app.add_option("--from", arguments.from,
                 "What the bits start from: student (as they are) or teacher (the dense weights)")
      ->check(CLI::IsMember({"student", "teacher"}))
      ->capture_default_str();
  app.add_option("--gradient", arguments.gradient,
                 "Of absmaxmin: to the bucket that was chosen, or to all weights as in the paper: "
                 "chosen or all")
      ->check(CLI::IsMember({"chosen", "all"}))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the order of the text")
      ->check(AtLeast<uint64_t>(0))
      ->capture_default_str()
      ->type_name("N");
}

void DeclareRunning(CLI::App& app, Arguments& arguments) {
  FinetuneOptions& options = arguments.options;
  app.add_option("--device", options.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--precision", options.precision, "auto (bf16 on CUDA, else fp32), bf16 or fp32")
      ->check(CLI::IsMember({"auto", "bf16", "fp32"}))
      ->capture_default_str();
  app.add_option("--cuda-graph", options.cuda_graph,
                 "Replay steps as a CUDA graph: auto (where it is possible), on or off")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  app.add_option("--threads", options.num_threads, "CPU threads; 0: all that there are")
      ->check(AtLeast(0))
      ->type_name("N");
  app.add_option("--accumulate", options.accumulation,
                 "Take the windows of a step in this many parts, to save memory")
      ->check(AtLeast<int64_t>(1))
      ->capture_default_str()
      ->type_name("N");
  app.add_flag("--checkpoint-activations", options.checkpoint_activations,
               "Compute activations twice instead of keeping them, to save memory");
  app.add_option("--checkpoint-every", options.checkpoint_seconds,
                 "Time between checkpoints, which --resume goes on from")
      ->capture_default_str()
      ->type_name("SECONDS");
  app.add_option("--log-every", options.log_every, "Steps between records of the log")
      ->check(AtLeast<int64_t>(1))
      ->capture_default_str()
      ->type_name("N");
  app.add_flag("--resume", options.resume,
               "Go on after the last checkpoint of an interrupted run with the same options");
  app.add_flag("--overwrite", options.overwrite, "Replace what is at --out");
  app.add_flag("--json", arguments.json, "Write one JSON object to standard output");
}

nlohmann::ordered_json ToJson(const FinetuneReport& report) {
  return {{"perplexity_before", report.perplexity_before},
          {"perplexity_after", report.perplexity_after},
          {"perplexity_teacher", report.perplexity_teacher},
          {"perplexity_last", report.perplexity_last},
          {"best_step", report.best_step},
          {"eval_tokens", report.eval_tokens},
          {"steps", report.steps},
          {"tokens", report.tokens},
          {"tokens_per_second", report.tokens_per_second},
          {"seconds", report.seconds},
          {"loss", report.last_loss},
          {"device", report.device},
          {"precision", report.precision},
          {"cuda_graph", report.cuda_graph}};
}

std::string Describe(const FinetuneReport& report, const std::string& folder) {
  return absl::StrFormat(
      "%s: perplexity %.3f, %.3f before, the dense model's %.3f, over %s tokens\n"
      "%s steps, %s tokens in %.1f s on %s: %s tokens/s\n",
      folder, report.perplexity_after, report.perplexity_before, report.perplexity_teacher,
      WithThousands(report.eval_tokens), WithThousands(report.steps), WithThousands(report.tokens),
      report.seconds, report.device, WithThousands(static_cast<int64_t>(report.tokens_per_second)));
}

// One bar at a time: a new one for each kind of work.
class Progress {
 public:
  void Update(const FinetuneProgress& state) {
    if (bar_ == nullptr || state.stage != stage_) {
      bar_ = nullptr;
      stage_ = state.stage;
      constexpr const char* kLabels[] = {"tokenizing", "training", "evaluating"};
      bar_ = std::make_unique<ProgressBar>(kLabels[static_cast<int>(stage_)]);
    }
    if (state.stage == FinetuneProgress::Stage::kTraining && state.loss > 0) {
      bar_->UpdateFraction(
          absl::StrFormat("loss %.3f, %s tokens/s", state.loss,
                          WithThousands(static_cast<int64_t>(state.tokens_per_second))),
          static_cast<double>(state.done) / static_cast<double>(state.total));
      return;
    }
    bar_->Update(state.done, state.total,
                 state.stage == FinetuneProgress::Stage::kTokenizing ? "bytes" : "tokens");
  }
  void Clear() { bar_ = nullptr; }

 private:
  FinetuneProgress::Stage stage_ = FinetuneProgress::Stage::kTraining;
  std::unique_ptr<ProgressBar> bar_;
};

int Fail(const absl::Status& status, bool json) {
  const std::string code = absl::StatusCodeToString(status.code());
  std::cerr << kName << ": " << status.message() << " [" << code << "]\n";
  if (json) {
    WriteJson({{"error", {{"code", code}, {"message", std::string(status.message())}}}})
        .IgnoreError();
  }
  return kExitFailed;
}

// What would keep the training from beginning, found before the teacher writes for long.
absl::Status CheckBeforeSelfText(const FinetuneOptions& options) {
  US_RETURN_IF_ERROR(CheckFinetuneOptions(options));
  US_ASSIGN_OR_RETURN(const auto teacher, Checkpoint::Open(options.teacher));
  US_ASSIGN_OR_RETURN(const auto student, Checkpoint::Open(options.student));
  if (student->config().quantization_config.is_null()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.student, ": expected a compressed model, found a dense one"));
  }
  const auto extents = [](const ModelConfig& config) {
    return std::make_tuple(config.num_layers, config.hidden_size, config.intermediate_size,
                           config.vocab_size);
  };
  if (extents(teacher->config()) != extents(student->config())) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.student, ": made from another model than ", options.teacher));
  }
  std::vector<std::string> files = options.text_files;
  if (!options.eval_file.empty()) files.push_back(options.eval_file);
  bool has_self = false;
  for (const std::string& file : files) {
    if (file == kSelfText && std::exchange(has_self, true)) {
      return absl::InvalidArgumentError(absl::StrCat("--text: ", kSelfText, " is there twice"));
    }
    std::error_code error;
    if (file != kSelfText && !std::filesystem::is_regular_file(file, error)) {
      return absl::NotFoundError(absl::StrCat("cannot open ", file));
    }
  }
  const std::string checkpoint = absl::StrCat(options.out, ".training/checkpoint.safetensors");
  std::error_code error;
  if (options.resume && !std::filesystem::exists(checkpoint, error)) {
    return absl::NotFoundError(absl::StrCat("there is no checkpoint to resume from: ", checkpoint));
  }
  return absl::OkStatus();
}

// Puts a file of windows in the place of the word "self" among the texts.
absl::Status PrepareSelfText(Arguments& arguments, const std::stop_token& stop) {
  FinetuneOptions& options = arguments.options;
  const auto self = std::find(options.text_files.begin(), options.text_files.end(), kSelfText);
  if (self == options.text_files.end()) return absl::OkStatus();
  // A folder's name with a slash at its end is that folder's.
  std::filesystem::path out = std::filesystem::path(options.out).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();
  options.out = out.string();
  US_RETURN_IF_ERROR(CheckBeforeSelfText(options));
  SelfTextRequest& request = arguments.self_text;
  request.teacher = options.teacher;
  request.training_folder = options.out + ".training";
  request.window_tokens = options.window_tokens;
  request.device = options.device;
  request.num_threads = options.num_threads;
  request.seed = options.seed;
  request.reuse = options.resume;
  const absl::StatusOr<std::string> path = WriteSelfTextFile(request, stop);
  if (!path.ok()) return path.status();
  *self = *path;
  return absl::OkStatus();
}

int Run(Arguments& arguments) {
  FinetuneOptions& options = arguments.options;
  const InterruptGuard interrupt;
  const StopFlag stop(interrupt.stop());
  Progress progress;
  options.cancelled = stop.flag();
  const absl::Status prepared = PrepareSelfText(arguments, interrupt.stop());
  if (!prepared.ok()) return Fail(prepared, arguments.json);
  options.progress = [&progress](const FinetuneProgress& state) { progress.Update(state); };
  options.note = [&progress](const std::string& line) {
    progress.Clear();
    std::cerr << line << "\n";
  };
  const absl::StatusOr<FinetuneReport> report = Finetune(options);
  progress.Clear();
  if (!report.ok()) return Fail(report.status(), arguments.json);
  if (!report->is_main_process) return kExitOk;
  if (report->interrupted) {
    return Fail(absl::CancelledError(
                    absl::StrCat("interrupted after step ", report->steps, "; ", options.out,
                                 " has the best model so far, and --resume goes on from here")),
                arguments.json);
  }
  const absl::Status written =
      arguments.json ? WriteJson(ToJson(*report)) : WriteOutput(Describe(*report, options.out));
  return written.ok() ? kExitOk : kExitFailed;
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  Arguments arguments;
  CLI::App app("Trains a compressed model to predict what the dense one does, at the same size.",
               kName);
  app.set_help_flag("-h,--help", "Show this help and exit");
  app.get_formatter()->column_width(34);
  DeclareModels(app, arguments);
  DeclareTraining(app, arguments);
  DeclareRunning(app, arguments);
  app.footer(
      "Example:\n"
      "  ultrasketch finetune --teacher classics-20m --student classics-20m-0.5bit \\\n"
      "    --text train-0.txt.xz train-1.txt.xz --eval valid.txt --out classics-20m-sketch \\\n"
      "    --tokens 50000000\n"
      "Several GPUs: torchrun --no-python --nproc-per-node 4 ultrasketch-finetune ...\n"
      "Exit codes: 0 ok, 1 failed or interrupted, 2 usage.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {
    app.exit(request);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    std::cerr << kName << ": " << error.what() << "\nTry '" << kName << " --help'.\n";
    return kExitUsage;
  }
  FinetuneOptions& options = arguments.options;
  options.train_tables = !arguments.freeze_embedding;
  options.start_from_teacher = arguments.from == "teacher";
  options.gradient_to_all = arguments.gradient == "all";
  if (arguments.num_tokens > 0) {
    const int64_t step_tokens = options.batch_windows * options.window_tokens;
    options.num_steps = (arguments.num_tokens + step_tokens - 1) / step_tokens;
  }
  return Run(arguments);
}

}  // namespace
}  // namespace ultrasketch::cli

int main(int argc, char** argv) { return ultrasketch::cli::Main(argc, argv); }
