#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/accounting.h"

namespace ultrasketch::cli {
namespace {

nlohmann::ordered_json ToJson(const OpenedModel& opened, const std::string& codec,
                              const ModelSize& size) {
  const ModelConfig& config = opened.checkpoint->config();
  nlohmann::ordered_json sites = nlohmann::ordered_json::array();
  for (const SiteSize& site : size.sites) {
    sites.push_back({{"name", site.site.name},
                     {"rows", site.site.rows},
                     {"cols", site.site.cols},
                     {"codec", site.codec},
                     {"bytes", site.bytes},
                     {"bits_per_weight", site.bits_per_weight}});
  }
  nlohmann::ordered_json tables = nlohmann::ordered_json::array();
  for (const TableSize& table : size.tables) {
    tables.push_back({{"name", table.name}, {"type", table.type}, {"bytes", table.bytes}});
  }
  return {
      {"architecture", config.model_type},
      {"codec", codec},
      {"parameters", size.parameters},
      {"bits_per_weight_linear", size.bits_per_weight_linear},
      {"bits_per_weight_file", size.bits_per_weight_file},
      {"bytes", size.file_bytes},
      {"linear_weights", size.linear_weights},
      {"linear_bytes", size.linear_bytes},
      {"layers", config.num_layers},
      {"hidden_size", config.hidden_size},
      {"vocab_size", config.vocab_size},
      {"max_context_tokens", config.max_position_embeddings},
      {"warnings", opened.warnings},
      {"tokenizer_notes", opened.tokenizer_notes},
      {"tables", tables},
      {"sites", sites},
  };
}

std::string Describe(const OpenedModel& opened, const std::string& codec, const ModelSize& size) {
  const ModelConfig& config = opened.checkpoint->config();
  std::vector<std::vector<std::string>> rows = {
      {"site", "rows", "columns", "codec", "bytes", "bits/weight"}};
  for (const SiteSize& site : size.sites) {
    rows.push_back({site.site.name, absl::StrCat(site.site.rows), absl::StrCat(site.site.cols),
                    site.codec, WithThousands(site.bytes),
                    absl::StrFormat("%.4f", site.bits_per_weight)});
  }
  for (const TableSize& table : size.tables) {
    const double weights = static_cast<double>(config.vocab_size) * config.hidden_size;
    rows.push_back({table.name, absl::StrCat(config.vocab_size), absl::StrCat(config.hidden_size),
                    table.type, WithThousands(table.bytes),
                    absl::StrFormat("%.4f", 8.0 * static_cast<double>(table.bytes) / weights)});
  }
  std::string notes;
  for (const std::string& note : opened.tokenizer_notes) absl::StrAppend(&notes, note, "\n");
  return absl::StrCat(config.model_type, ", ", codec, ": ", WithThousands(size.parameters),
                      " parameters, ", config.num_layers, " layers, hidden size ",
                      config.hidden_size, ", vocabulary ", WithThousands(config.vocab_size),
                      ", context ", WithThousands(config.max_position_embeddings), "\n",
                      HumanBytes(static_cast<double>(size.file_bytes)), " on disk, of which ",
                      HumanBytes(static_cast<double>(size.linear_bytes)), " stand in for ",
                      WithThousands(size.linear_weights), " weights of linear layers\n",
                      absl::StrFormat("%.4f bits per weight (linear), %.4f (file)\n\n",
                                      size.bits_per_weight_linear, size.bits_per_weight_file),
                      notes, notes.empty() ? "" : "\n", FormatTable(rows));
}

class InspectCommand : public Command {
 public:
  const char* name() const override { return "inspect"; }
  const char* summary() const override { return "Show a model's sizes, site by site"; }

  void Declare(CLI::App& app) override {
    app.add_option("model", model_, "Model folder, dense or compressed")
        ->required()
        ->type_name("DIR");
    app.footer("Example:\n  ultrasketch inspect models/classics-6m-0.5bit");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const OpenedModel opened,
                        OpenLocalModel(model_, {.needs_tokenizer = false}));
    const auto& checkpoint = opened.checkpoint;
    US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(*checkpoint));
    US_ASSIGN_OR_RETURN(const ModelSize size, MeasureModel(*checkpoint));
    return environment.json ? WriteJson(ToJson(opened, codec, size))
                            : WriteOutput(Describe(opened, codec, size));
  }

 private:
  std::string model_;
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand() { return std::make_unique<InspectCommand>(); }

}  // namespace ultrasketch::cli
