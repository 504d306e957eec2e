#include "server/model_loader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

#include "engine/backends/backend.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/accounting.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/memory_plan.h"
#include "engine/models/open_model.h"
#include "server/log.h"

namespace ultrasketch {
namespace {

// What is left on the backend's device for one more model that needs `workspace_bytes` of
// workspace, of which it shares what the others have.
int64_t AvailableBytes(const Backend& backend, int64_t memory_limit_bytes,
                       const std::vector<std::shared_ptr<const HostedModel>>& held,
                       int64_t workspace_bytes) {
  const auto without_workspace = [](const MemoryUsage& usage) {
    return usage.total() - usage.workspace;
  };
  int64_t planned = 0;
  int64_t resident = 0;
  int64_t planned_workspace = 0;
  int64_t resident_workspace = 0;
  for (const std::shared_ptr<const HostedModel>& model : held) {
    if (model->device != backend.name()) continue;
    const MemoryUsage usage = model->engine_loop->memory_usage();
    resident += without_workspace(usage);
    planned += std::max(without_workspace(usage), without_workspace(model->planned_memory));
    resident_workspace = std::max(resident_workspace, usage.workspace);
    planned_workspace =
        std::max({planned_workspace, usage.workspace, model->planned_memory.workspace});
  }
  planned += planned_workspace;
  resident += resident_workspace;
  int64_t available = backend.available_bytes() - (planned - resident);
  if (memory_limit_bytes > 0) available = std::min(available, memory_limit_bytes - planned);
  return std::max<int64_t>(available + std::min(planned_workspace, workspace_bytes), 0);
}

// Sets options.kv_cache_tokens where it is for us to choose, and checks that all of it fits.
absl::Status PlanMemory(const Checkpoint& checkpoint, const ModelLoadOptions& load,
                        const std::vector<std::shared_ptr<const HostedModel>>& held,
                        const Backend& backend, ModelOptions& options) {
  const int64_t available = AvailableBytes(backend, load.memory_limit_bytes, held,
                                           EstimateMemory(checkpoint, options, backend).workspace);
  if (!load.kv_cache_tokens.has_value()) {
    US_ASSIGN_OR_RETURN(options.kv_cache_tokens,
                        PlanKvCacheTokens(checkpoint, options, backend,
                                          {available, load.engine_loop.max_running_sequences}));
    return absl::OkStatus();
  }
  options.kv_cache_tokens = *load.kv_cache_tokens;
  return CheckFits(EstimateMemory(checkpoint, options, backend), available);
}

// Of a model that is in memory; null when there is none.
std::shared_ptr<Backend> FindBackend(const std::vector<std::shared_ptr<const HostedModel>>& held) {
  for (const std::shared_ptr<const HostedModel>& model : held) {
    if (auto backend = model->backend.lock()) return backend;
  }
  return nullptr;
}

void LogLoaded(const HostedModel& model, absl::Duration duration) {
  const MemoryUsage memory = model.engine_loop->memory_usage();
  LogEvent(
      LogLevel::kInfo, "model_loaded",
      {{"model", model.name},
       {"architecture", model.architecture},
       {"codec", model.codec},
       {"device", model.device},
       {"parameters", LogNumber(model.num_parameters)},
       {"bits_per_weight_linear", LogNumber(absl::StrFormat("%.3f", model.bits_per_weight_linear))},
       {"bits_per_weight_file", LogNumber(absl::StrFormat("%.3f", model.bits_per_weight_file))},
       {"memory", HumanBytes(static_cast<double>(memory.total()))},
       {"kv_cache_tokens", LogNumber(model.kv_cache_tokens)},
       {"kv_cache_type", KvCacheTypeName(model.kv_cache_type)},
       {"kv_cache_limit", HumanBytes(static_cast<double>(model.planned_memory.kv_cache))},
       {"context_tokens", LogNumber(model.max_context_tokens)},
       {"load_seconds", LogNumber(absl::StrFormat("%.3f", absl::ToDoubleSeconds(duration)))}});
}

}  // namespace

absl::StatusOr<std::shared_ptr<HostedModel>> ModelLoader::TryLoad(
    const ModelSource& source, const std::vector<std::shared_ptr<const HostedModel>>& others) {
  US_ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(source.folder));
  for (const std::string& warning : opened.warnings) {
    LogEvent(LogLevel::kWarning, "model_warning", {{"model", source.name}, {"message", warning}});
  }
  const std::shared_ptr<const Checkpoint>& checkpoint = opened.checkpoint;
  // A backend serves one thread at a time, and each model has its own; those of a device share
  // threads and workspace, and their models take turns.
  US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                      CreateBackend(options_.device, {.num_threads = options_.num_threads,
                                                      .beside = FindBackend(others)}));
  ModelOptions model_options;
  model_options.max_step_tokens = options_.engine_loop.max_step_tokens;
  model_options.kv_cache_type = options_.kv_cache_type;
  US_RETURN_IF_ERROR(PlanMemory(*checkpoint, options_, others, *backend, model_options));
  US_ASSIGN_OR_RETURN(const ModelSize size, MeasureModel(*checkpoint));

  auto hosted = std::make_shared<HostedModel>();
  const ModelConfig& config = checkpoint->config();
  hosted->name = source.name;
  hosted->architecture = config.model_type;
  US_ASSIGN_OR_RETURN(hosted->codec, CheckpointCodec(*checkpoint));
  hosted->device = std::string(backend->name());
  hosted->backend = backend;
  hosted->checkpoint = checkpoint;
  hosted->num_parameters = size.parameters;
  hosted->bits_per_weight_linear = size.bits_per_weight_linear;
  hosted->bits_per_weight_file = size.bits_per_weight_file;
  hosted->weights_checksum = checkpoint->weights_checksum();
  US_ASSIGN_OR_RETURN(hosted->evaluation, ReadRecordedEvaluation(*checkpoint));
  hosted->planned_memory = EstimateMemory(*checkpoint, model_options, *backend);
  hosted->kv_cache_tokens = model_options.kv_cache_tokens;
  hosted->kv_cache_type = model_options.kv_cache_type;
  hosted->max_prompt_tokens = options_.max_prompt_tokens;
  hosted->max_completion_tokens = options_.max_completion_tokens;
  hosted->vocab_size = config.vocab_size;
  hosted->max_token_bytes = LongestTokenBytes(*opened.tokenizer);
  hosted->generation_config = checkpoint->generation_config();
  hosted->eos_token_ids = std::move(opened.eos_token_ids);

  US_ASSIGN_OR_RETURN(auto model, LoadModel(checkpoint, std::move(backend), model_options));
  const KvCacheLayout& cache = model->cache_layout();
  hosted->max_context_tokens = static_cast<int32_t>(
      std::min<int64_t>(config.max_position_embeddings, cache.num_blocks * cache.block_size));
  hosted->tokenizer = std::move(opened.tokenizer);
  hosted->chat_template = std::move(opened.chat_template);
  hosted->doubled_beginning =
      std::make_shared<OneTimeWarning>([name = source.name](const std::string& warning) {
        LogEvent(LogLevel::kWarning, "model_warning", {{"model", name}, {"message", warning}});
      });
  hosted->metrics = metrics_.ForModel(source.name);
  EngineLoopOptions loop_options = options_.engine_loop;
  loop_options.turns =
      turns_.try_emplace(hosted->device, std::make_shared<DeviceTurns>()).first->second;
  hosted->engine_loop =
      EngineLoop::Start(std::move(model), hosted->tokenizer, loop_options, hosted->metrics);
  return hosted;
}

absl::StatusOr<SketchOverhead> ModelLoader::TryMeasureOverhead(
    const HostedModel& model, const std::vector<std::shared_ptr<const HostedModel>>& held,
    const std::function<bool()>& is_cancelled) {
  constexpr double kWeight = 0.1;  // of the device, beside the models' 1
  const std::shared_ptr<const Checkpoint> checkpoint = model.checkpoint.lock();
  if (checkpoint == nullptr) return absl::FailedPreconditionError("the model is not in memory");
  US_ASSIGN_OR_RETURN(const std::shared_ptr<Backend> backend,
                      CreateBackend(model.device, {.beside = model.backend.lock()}));
  const std::unique_ptr<DeviceTurns::Member> turn = turns_.at(model.device)->Join(kWeight);
  SketchOverheadOptions options;
  options.prompt_tokens =
      std::min<int64_t>(options.prompt_tokens, options_.engine_loop.max_step_tokens);
  options.kv_cache_type = options_.kv_cache_type;
  options.is_cancelled = is_cancelled;
  options.run = [&turn](absl::FunctionRef<absl::Status()> step) {
    turn->Acquire();
    const absl::Time begin = absl::Now();
    absl::Status status = step();
    turn->EndStep(absl::Now() - begin);
    turn->Release();
    return status;
  };
  const int64_t needed = SketchOverheadBytes(*checkpoint, *backend, options);
  const int64_t available =
      AvailableBytes(*backend, options_.memory_limit_bytes, held, /*workspace_bytes=*/0);
  if (needed > available) {
    return absl::ResourceExhaustedError(
        absl::StrCat("uncompressed layers to compare with: ", needed, " bytes needed, ", available,
                     " bytes available"));
  }
  return MeasureSketchOverhead(*checkpoint, *backend, options);
}

absl::StatusOr<SketchOverhead> ModelLoader::MeasureOverhead(
    const HostedModel& model, const std::vector<std::shared_ptr<const HostedModel>>& held,
    const std::function<bool()>& is_cancelled) {
  const absl::Time start = absl::Now();
  auto overhead = TryMeasureOverhead(model, held, is_cancelled);
  if (overhead.ok()) {
    LogEvent(LogLevel::kInfo, "overhead_measured",
             {{"model", model.name},
              {"prefill", absl::StrFormat("%.3f", overhead->prefill)},
              {"decode", absl::StrFormat("%.3f", overhead->decode)},
              {"seconds", absl::StrFormat("%.3f", absl::ToDoubleSeconds(absl::Now() - start))}});
  } else if (!absl::IsCancelled(overhead.status())) {
    LogEvent(LogLevel::kWarning, "overhead_not_measured",
             {{"model", model.name}, {"message", overhead.status().ToString()}});
  }
  return overhead;
}

absl::StatusOr<std::shared_ptr<HostedModel>> ModelLoader::Load(
    const ModelSource& source, const std::vector<std::shared_ptr<const HostedModel>>& held) {
  const absl::Time start = absl::Now();
  auto model = TryLoad(source, held);
  if (model.ok()) {
    LogLoaded(**model, absl::Now() - start);
  } else {
    LogEvent(
        LogLevel::kError, "model_failed",
        {{"model", source.name}, {"folder", source.folder}, {"error", model.status().ToString()}});
  }
  return model;
}

}  // namespace ultrasketch
