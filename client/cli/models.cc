#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

#include "client/cli/command.h"
#include "client/cli/connection.h"
#include "client/cli/output.h"
#include "client/client.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

nlohmann::ordered_json ToJson(const client::SketchOverhead& overhead) {
  return {{"prefill", overhead.prefill}, {"decode", overhead.decode}};
}

nlohmann::ordered_json ToJson(const client::ModelInfo& model) {
  nlohmann::ordered_json json = {
      {"name", model.name},
      {"state", model.state},
      {"architecture", model.architecture},
      {"codec", model.codec},
      {"device", model.device},
      {"parameters", model.num_parameters},
      {"bits_per_weight_linear", model.bits_per_weight_linear},
      {"bits_per_weight_file", model.bits_per_weight_file},
      {"max_context_tokens", model.max_context_tokens},
      {"chat", model.chat},
      {"vocab_size", model.vocab_size},
      {"kv_cache_type", model.kv_cache_type},
      {"memory_bytes",
       {{"weights", model.weights_bytes},
        {"embedding", model.embedding_bytes},
        {"kv_cache", model.kv_cache_bytes},
        {"workspace", model.workspace_bytes}}},
  };
  if (model.sketch_overhead.has_value()) json["sketch_overhead"] = ToJson(*model.sketch_overhead);
  if (model.evaluation.has_value()) {
    json["evaluation"] = {{"perplexity", model.evaluation->perplexity},
                          {"dense_perplexity", model.evaluation->dense_perplexity},
                          {"tokens", model.evaluation->num_tokens},
                          {"context", model.evaluation->context_tokens}};
  }
  if (!model.weights_checksum.empty()) json["weights_checksum"] = model.weights_checksum;
  if (!model.error.empty()) json["error"] = model.error;
  return json;
}

std::string ToTable(const std::vector<client::ModelInfo>& models) {
  std::vector<std::vector<std::string>> rows = {
      {"name", "state", "codec", "device", "parameters", "bits/weight", "context", "memory"}};
  for (const client::ModelInfo& model : models) {
    const int64_t bytes =
        model.weights_bytes + model.embedding_bytes + model.kv_cache_bytes + model.workspace_bytes;
    rows.push_back(
        {model.name, model.state, model.codec, model.device, WithThousands(model.num_parameters),
         absl::StrFormat("%.3f", model.bits_per_weight_linear),
         WithThousands(model.max_context_tokens), HumanBytes(static_cast<double>(bytes))});
  }
  std::string text = FormatTable(rows);
  for (const client::ModelInfo& model : models) {
    if (!model.error.empty()) absl::StrAppend(&text, "\n", model.name, ": ", model.error, "\n");
  }
  return text;
}

class ModelsCommand : public Command {
 public:
  const char* name() const override { return "models"; }
  const char* summary() const override {
    return "List, load, unload and measure a server's models";
  }

  void Declare(CLI::App& app) override {
    app.require_subcommand(1);
    app.footer("Example:\n  ultrasketch models list --target localhost:8001");
    list_ = app.add_subcommand("list", "List the models that a server hosts");
    load_ = app.add_subcommand("load", "Load a model of the server's repository");
    unload_ = app.add_subcommand("unload", "Let a model's requests finish and free its memory");
    measure_ = app.add_subcommand("measure",
                                  "Measure what a model's compression does to the time of its "
                                  "steps, against uncompressed layers on the same device");
    for (CLI::App* action : {list_, load_, unload_, measure_}) {
      connection_.Declare(*action, "The server's address")->required();
      DeclareTimeout(*action, timeout_seconds_);
      action->footer(absl::StrCat("Example:\n  ultrasketch models ", action->get_name(),
                                  action == list_ ? "" : " NAME", " --target localhost:8001"));
    }
    for (CLI::App* action : {load_, unload_, measure_}) {
      action->add_option("name", model_, "The model's name")->required()->type_name("NAME");
    }
  }

  std::string UsageError() const override { return connection_.UsageError(); }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const auto client, connection_.Connect(environment.stop));
    client::CallOptions options;
    options.stop = environment.stop;
    options.timeout = absl::Seconds(timeout_seconds_);

    if (list_->parsed()) {
      US_ASSIGN_OR_RETURN(const auto models, client->ListModels(options));
      if (!environment.json) return WriteOutput(ToTable(models));
      nlohmann::ordered_json entries = nlohmann::ordered_json::array();
      for (const auto& model : models) entries.push_back(ToJson(model));
      return WriteJson({{"models", entries}});
    }
    if (load_->parsed()) {
      US_ASSIGN_OR_RETURN(const auto model, client->LoadModel(model_, options));
      return environment.json ? WriteJson(ToJson(model)) : WriteOutput(ToTable({model}));
    }
    if (measure_->parsed()) {
      US_ASSIGN_OR_RETURN(const auto overhead, client->MeasureOverhead(model_, options));
      if (environment.json) return WriteJson(ToJson(overhead));
      return WriteOutput(
          absl::StrFormat("a prompt takes %.3f of the time of an uncompressed step, a token %.3f\n",
                          overhead.prefill, overhead.decode));
    }
    US_RETURN_IF_ERROR(client->UnloadModel(model_, options));
    return environment.json ? WriteJson({{"name", model_}, {"unloaded", true}})
                            : WriteOutput(absl::StrCat("unloaded ", model_, "\n"));
  }

 private:
  CLI::App* list_ = nullptr;
  CLI::App* load_ = nullptr;
  CLI::App* unload_ = nullptr;
  CLI::App* measure_ = nullptr;
  Connection connection_;
  std::string model_;
  double timeout_seconds_ = std::numeric_limits<double>::infinity();
};

}  // namespace

std::unique_ptr<Command> MakeModelsCommand() { return std::make_unique<ModelsCommand>(); }

}  // namespace ultrasketch::cli
