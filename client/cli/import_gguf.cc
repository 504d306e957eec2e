#include "engine/format/gguf/import_gguf.h"

#include <chrono>
#include <iostream>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

class ImportGgufCommand : public Command {
 public:
  const char* name() const override { return "import-gguf"; }
  const char* summary() const override { return "Turn a GGUF file into a dense model folder"; }

  void Declare(CLI::App& app) override {
    app.add_option("file", file_, "The model; of several files (-00001-of-00004.gguf) the first")
        ->required()
        ->type_name("FILE");
    app.add_option("out", out_, "Folder to write; appears whole or not at all")
        ->required()
        ->type_name("OUT");
    app.add_option("--dtype", dtype_,
                   "How weights are stored: auto, bf16, f16 or f32; auto leaves F32, F16 and BF16 "
                   "as they are, and makes quantized weights f16, which loses least")
        ->check(CLI::IsMember({"auto", "bf16", "f16", "f32"}))
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--pre", pre_,
                   "How the tokenizer splits text (llama-bpe, qwen2, ...), for old files whose "
                   "tokenizer.ggml.pre is absent or wrong")
        ->type_name("NAME");
    app.footer(
        "Examples:\n"
        "  ultrasketch import-gguf SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-135m\n"
        "  ultrasketch compress --model models/smollm2-135m --out models/smollm2-135m-1bit --bits "
        "1");
  }

  absl::Status Run(const Environment& environment) override {
    GgufImportOptions options;
    if (dtype_ == "bf16") options.conversion.dtype = DType::kBF16;
    if (dtype_ == "f16") options.conversion.dtype = DType::kF16;
    if (dtype_ == "f32") options.conversion.dtype = DType::kF32;
    options.pre_tokenizer = pre_;
    const StopFlag stop(environment.stop);
    options.conversion.cancelled = stop.flag();
    const auto begin = std::chrono::steady_clock::now();
    absl::StatusOr<GgufImportReport> report;
    {
      ProgressBar progress("importing");
      options.conversion.progress = [&progress](int64_t done, int64_t total) {
        progress.Update(done / 1'000'000, total / 1'000'000, "MB");
      };
      report = ImportGguf(file_, out_, options);
    }
    US_RETURN_IF_ERROR(report.status());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    for (const std::string& warning : report->warnings) {
      std::cerr << "warning: " << warning << "\n";
    }
    if (environment.json) {
      return WriteJson({{"architecture", report->architecture},
                        {"model_type", report->model_type},
                        {"parameters", report->parameters},
                        {"tensors", report->tensors},
                        {"dtype", report->dtype},
                        {"bytes", report->bytes},
                        {"warnings", report->warnings},
                        {"seconds", seconds.count()}});
    }
    return WriteOutput(absl::StrCat(out_, ": ", report->model_type, ", ",
                                    WithThousands(report->parameters), " parameters in ",
                                    WithThousands(report->tensors), " tensors, ", report->dtype,
                                    ", ", HumanBytes(static_cast<double>(report->bytes)),
                                    absl::StrFormat(", in %.1f s\n", seconds.count())));
  }

 private:
  std::string file_;
  std::string out_;
  std::string dtype_ = "auto";
  std::optional<std::string> pre_;
};

}  // namespace

std::unique_ptr<Command> MakeImportGgufCommand() { return std::make_unique<ImportGgufCommand>(); }

}  // namespace ultrasketch::cli
