#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "client/cli/command.h"
#include "client/cli/output.h"
#include "engine/base/status.h"
#include "engine/bench/model_presets.h"
#include "engine/bench/synthetic_checkpoint.h"

namespace ultrasketch::cli {
namespace {

// Measurements, and what they need: each a nested command.
class BenchCommand : public Command {
 public:
  const char* name() const override { return "bench"; }
  const char* summary() const override { return "Measure quality and speed"; }

  void Declare(CLI::App& app) override {
    app.require_subcommand(1);
    synth_ = app.add_subcommand("synth", "Write a checkpoint of random weights");
    synth_->group("");  // a tool for measurements, not for users
    synth_
        ->add_option("--preset", preset_,
                     absl::StrCat("Shapes: ", absl::StrJoin(PresetNames(), ", ")))
        ->required()
        ->type_name("NAME");
    synth_->add_option("--out", out_, "Folder to write")->required()->type_name("DIR");
    synth_->add_option("--tokenizer", synthetic_.tokenizer_folder, "Folder with a tokenizer.json")
        ->type_name("DIR");
    synth_->add_option("--seed", synthetic_.seed, "Of the weights")->type_name("N");
  }

  absl::Status Run(const Environment& environment) override {
    US_RETURN_IF_ERROR(WriteSyntheticCheckpoint(preset_, out_, synthetic_));
    return environment.json ? WriteJson({{"folder", out_}}) : absl::OkStatus();
  }

 private:
  CLI::App* synth_ = nullptr;
  std::string preset_;
  std::string out_;
  SyntheticOptions synthetic_;
};

}  // namespace

std::unique_ptr<Command> MakeBenchCommand() { return std::make_unique<BenchCommand>(); }

}  // namespace ultrasketch::cli
