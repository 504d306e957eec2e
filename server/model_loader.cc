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
#include "engine/models/memory_plan.h"
#include "engine/models/open_model.h"
#include "server/log.h"

namespace ultrasketch {
namespace {

// What is left for one more model on the backend's device.
int64_t AvailableBytes(const Backend& backend, int64_t memory_limit_bytes,
                       const std::vector<std::shared_ptr<const HostedModel>>& held) {
  int64_t planned = 0;
  int64_t resident = 0;
  for (const std::shared_ptr<const HostedModel>& model : held) {
    if (model->device != backend.name()) continue;
    const int64_t bytes = model->engine_loop->memory_usage().total();
    resident += bytes;
    planned += std::max(bytes, model->planned_memory.total());
  }
  int64_t available = backend.available_bytes() - (planned - resident);
  if (memory_limit_bytes > 0) available = std::min(available, memory_limit_bytes - planned);
  return std::max<int64_t>(available, 0);
}

// Sets options.kv_cache_tokens where it is for us to choose, and checks that all of it fits.
absl::Status PlanMemory(const Checkpoint& checkpoint, const ModelLoadOptions& load,
                        const std::vector<std::shared_ptr<const HostedModel>>& held,
                        const Backend& backend, ModelOptions& options) {
  const int64_t available = AvailableBytes(backend, load.memory_limit_bytes, held);
  if (!load.kv_cache_tokens.has_value()) {
    US_ASSIGN_OR_RETURN(options.kv_cache_tokens,
                        PlanKvCacheTokens(checkpoint, options, backend,
                                          {available, load.engine_loop.max_running_sequences}));
    return absl::OkStatus();
  }
  options.kv_cache_tokens = *load.kv_cache_tokens;
  return CheckFits(EstimateMemory(checkpoint, options, backend), available);
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
  // A backend serves one thread at a time, and each model has its own; its threads sleep while
  // other models have their turn.
  US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                      CreateBackend(options_.device, {.num_threads = options_.num_threads}));
  ModelOptions model_options;
  model_options.max_step_tokens = options_.engine_loop.max_step_tokens;
  US_RETURN_IF_ERROR(PlanMemory(*checkpoint, options_, others, *backend, model_options));
  US_ASSIGN_OR_RETURN(const ModelSize size, MeasureModel(*checkpoint));

  auto hosted = std::make_shared<HostedModel>();
  const ModelConfig& config = checkpoint->config();
  hosted->name = source.name;
  hosted->architecture = config.model_type;
  US_ASSIGN_OR_RETURN(hosted->codec, CheckpointCodec(*checkpoint));
  hosted->device = std::string(backend->name());
  hosted->num_parameters = size.parameters;
  hosted->bits_per_weight_linear = size.bits_per_weight_linear;
  hosted->bits_per_weight_file = size.bits_per_weight_file;
  hosted->weights_checksum = checkpoint->weights_checksum();
  hosted->planned_memory = EstimateMemory(*checkpoint, model_options, *backend);
  hosted->kv_cache_tokens = model_options.kv_cache_tokens;
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
