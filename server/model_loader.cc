#include "server/model_loader.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/backends/backend.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/compress/accounting.h"
#include "engine/models/open_model.h"
#include "server/log.h"

namespace ultrasketch {
namespace {

absl::StatusOr<std::shared_ptr<HostedModel>> Load(const ModelSource& source,
                                                  const ModelLoadOptions& options,
                                                  Metrics& metrics) {
  US_ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(source.folder));
  for (const std::string& warning : opened.warnings) {
    LogEvent(LogLevel::kWarning, "model_warning", {{"model", source.name}, {"message", warning}});
  }
  const std::shared_ptr<const Checkpoint>& checkpoint = opened.checkpoint;
  // A backend serves one thread at a time, and each model has its own.
  US_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend,
                      CreateBackend(options.device, {.num_threads = options.num_threads}));
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
  hosted->vocab_size = config.vocab_size;
  hosted->max_token_bytes = LongestTokenBytes(*opened.tokenizer);
  hosted->generation_config = checkpoint->generation_config();
  hosted->eos_token_ids = std::move(opened.eos_token_ids);

  US_ASSIGN_OR_RETURN(auto model, LoadModel(checkpoint, std::move(backend), options.model));
  const KvCacheLayout& cache = model->cache_layout();
  hosted->max_context_tokens = static_cast<int32_t>(
      std::min<int64_t>(config.max_position_embeddings, cache.num_blocks * cache.block_size));
  hosted->tokenizer = std::move(opened.tokenizer);
  hosted->doubled_beginning =
      std::make_shared<OneTimeWarning>([name = source.name](const std::string& warning) {
        LogEvent(LogLevel::kWarning, "model_warning", {{"model", name}, {"message", warning}});
      });
  hosted->metrics = metrics.ForModel(source.name);
  hosted->engine_loop =
      EngineLoop::Start(std::move(model), hosted->tokenizer, options.engine_loop, hosted->metrics);
  return hosted;
}

}  // namespace

absl::StatusOr<std::shared_ptr<HostedModel>> LoadHostedModel(const ModelSource& source,
                                                             const ModelLoadOptions& options,
                                                             Metrics& metrics) {
  auto hosted = Load(source, options, metrics);
  if (!hosted.ok()) return Annotate(hosted.status(), absl::StrCat("model ", source.name));
  return hosted;
}

absl::StatusOr<std::vector<ModelSource>> FindModels(const std::string& repository) {
  std::vector<ModelSource> sources;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(repository, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    std::error_code unreadable;
    const std::filesystem::path config = entry->path() / "config.json";
    if (std::filesystem::is_regular_file(config, unreadable)) {
      sources.push_back({entry->path().filename().string(), entry->path().string()});
    } else if (unreadable.value() == EACCES) {
      // It may be no model: a file system's lost+found is such a folder.
      LogEvent(LogLevel::kWarning, "folder_skipped",
               {{"folder", entry->path().string()},
                {"message", std::string(CannotOpen(EACCES, config.string()).message())}});
    }
  }
  if (error) {
    return ErrnoStatus(error.value(),
                       absl::StrCat("cannot read the model repository ", repository));
  }
  if (sources.empty()) {
    return absl::NotFoundError(
        absl::StrCat("the model repository ", repository, " has no folder with a config.json"));
  }
  std::sort(sources.begin(), sources.end(),
            [](const ModelSource& a, const ModelSource& b) { return a.name < b.name; });
  return sources;
}

}  // namespace ultrasketch
