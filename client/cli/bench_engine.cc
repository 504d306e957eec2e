#include "client/cli/bench_engine.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "engine/base/status.h"
#include "engine/bench/load/engine_load.h"
#include "engine/bench/load/load_page.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/memory_plan.h"
#include "engine/models/model.h"

namespace ultrasketch::cli {
namespace {

std::string FolderName(const std::string& folder) {
  const std::filesystem::path path(folder);
  // Of "models/classics/" the last part is empty.
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

}  // namespace

void EngineBench::Declare(CLI::App& app) {
  app.add_option("--model", local_.folder, "Model folder")->required()->type_name("DIR");
  flags_.DeclareCommon(app);
  app.add_option("--max-running-sequences", engine_.max_running_sequences,
                 "That are computed together")
      ->check(AtLeast<int32_t>(1))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--max-step-tokens", engine_.max_step_tokens, "Most tokens of a step")
      ->check(AtLeast<int32_t>(1))
      ->capture_default_str()
      ->type_name("N");
  DeclareDeviceOptions(app, local_);
  app.footer(
      "The load of 'bench serve', without a server: what a server could reach at most. Options of\n"
      "the engine have the server's defaults.\n"
      "Example:\n"
      "  ultrasketch bench engine --model models/classics-6m --concurrency 1,64 --duration 20s");
}

std::string EngineBench::UsageError() const {
  if (std::string error = flags_.UsageError(); !error.empty()) return error;
  return flags_.HasClosedLoop() ? "" : "--concurrency is required";
}

absl::Status EngineBench::Run(const Environment& environment) {
  US_ASSIGN_OR_RETURN(LocalModelParts parts, OpenLocalModelParts(local_));
  const std::shared_ptr<const Checkpoint>& checkpoint = parts.opened.checkpoint;
  const ModelConfig& config = checkpoint->config();
  US_RETURN_IF_ERROR(
      flags_.Prepare(config.vocab_size, config.max_position_embeddings, environment.stop,
                     [&](std::string_view piece) {
                       return parts.opened.tokenizer->Encode(
                           piece, {.add_special_tokens = false, .parse_special_tokens = false});
                     }));
  // As the server does it.
  ModelOptions model_options;
  model_options.max_step_tokens = engine_.max_step_tokens;
  US_ASSIGN_OR_RETURN(
      model_options.kv_cache_tokens,
      PlanKvCacheTokens(*checkpoint, model_options, *parts.backend,
                        {parts.backend->available_bytes(), engine_.max_running_sequences}));
  US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(*checkpoint));
  const std::string device(parts.backend->name());
  US_ASSIGN_OR_RETURN(auto model, LoadModel(checkpoint, parts.backend, model_options));

  const std::vector<SchedulePlan> plans = flags_.Plans();
  for (const SchedulePlan& plan : plans) {
    // None of what is to be in flight is refused.
    engine_.max_queued_requests =
        std::max(engine_.max_queued_requests, static_cast<int32_t>(plan.concurrency));
    engine_.max_queued_tokens = std::max<int64_t>(
        engine_.max_queued_tokens, plan.concurrency * config.max_position_embeddings);
  }
  const auto loop = EngineLoop::Start(std::move(model), parts.opened.tokenizer, engine_);
  EngineLoadOptions options;
  options.temperature = flags_.temperature();
  options.stop = environment.stop;
  std::vector<LoadSummary> runs;
  for (size_t i = 0; i < plans.size(); ++i) {
    absl::StatusOr<RunRecord> record;
    {
      ProgressBar progress(NameLoad(plans[i]));
      options.progress = [&](int64_t num_ended, double seconds) {
        ShowProgress(plans[i], num_ended, seconds, progress);
      };
      record = RunEngineLoad(*loop, flags_.WorkloadOf(i), plans[i], options);
    }
    US_RETURN_IF_ERROR(record.status());
    runs.push_back(flags_.Summarize(*record));
    US_RETURN_IF_ERROR(CheckSomeSucceeded(runs.back()));
  }
  const std::string name = FolderName(local_.folder);
  const nlohmann::ordered_json head = {{"model",
                                        {{"name", name},
                                         {"architecture", config.model_type},
                                         {"codec", codec},
                                         {"device", device},
                                         {"max_context_tokens", config.max_position_embeddings}}}};
  return flags_.Write(head, absl::StrCat(name, " in the engine alone"),
                      absl::StrFormat("%s, codec %s, on %s", config.model_type, codec, device),
                      runs, environment);
}

}  // namespace ultrasketch::cli
