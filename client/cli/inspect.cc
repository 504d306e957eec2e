#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "client/cli/command.h"
#include "client/cli/local_model.h"
#include "client/cli/output.h"
#include "engine/backends/backend.h"
#include "engine/backends/cache_token_bytes.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/compress/accounting.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/memory_plan.h"
#include "engine/serving/engine_loop/engine_loop.h"

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

// What a server would hold for the model, all sequences at their full length.
struct MemoryReport {
  std::string device;
  int64_t context_tokens = 0;
  int64_t sequences = 0;
  std::string kv_cache_type;
  MemoryUsage usage;
};

absl::StatusOr<MemoryReport> PlanMemory(const Checkpoint& checkpoint, const std::string& device,
                                        std::optional<int64_t> context_tokens, int64_t sequences,
                                        int64_t max_step_tokens, KvCacheType kv_cache_type) {
  const ModelConfig& config = checkpoint.config();
  MemoryReport report;
  report.context_tokens = context_tokens.value_or(config.max_position_embeddings);
  report.sequences = sequences;
  if (report.context_tokens > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("--context: expected at most the model's ",
                                                   config.max_position_embeddings,
                                                   " tokens, found ", report.context_tokens));
  }
  US_ASSIGN_OR_RETURN(const std::shared_ptr<Backend> backend, CreateBackend(device, {}));
  report.device = std::string(backend->name());
  ModelOptions options;
  options.max_step_tokens = max_step_tokens;
  options.kv_cache_type = kv_cache_type;
  US_RETURN_IF_ERROR(CacheTokenBytes(*backend, kv_cache_type, config.head_dim).status());
  report.kv_cache_type = KvCacheTypeName(kv_cache_type);
  // Each sequence fills its last block only in part.
  const int64_t blocks = (report.context_tokens + options.block_size - 1) / options.block_size;
  options.kv_cache_tokens = blocks * options.block_size * sequences;
  report.usage = EstimateMemory(checkpoint, options, *backend);
  if (report.usage.kv_cache == std::numeric_limits<int64_t>::max()) {
    return absl::InvalidArgumentError("--sequences: their KV cache is 2^63 bytes or more");
  }
  return report;
}

nlohmann::ordered_json ToJson(const MemoryReport& report) {
  const MemoryUsage& usage = report.usage;
  return {{"device", report.device},          {"context_tokens", report.context_tokens},
          {"sequences", report.sequences},    {"kv_cache_type", report.kv_cache_type},
          {"weights_bytes", usage.weights},   {"embedding_bytes", usage.embedding},
          {"kv_cache_bytes", usage.kv_cache}, {"workspace_bytes", usage.workspace},
          {"total_bytes", usage.total()}};
}

std::string Describe(const MemoryReport& report) {
  const MemoryUsage& usage = report.usage;
  std::vector<std::vector<std::string>> rows = {
      {absl::StrCat("memory on ", report.device), "bytes", ""}};
  const auto add = [&rows](const std::string& kind, int64_t bytes) {
    rows.push_back({kind, WithThousands(bytes), HumanBytes(static_cast<double>(bytes))});
  };
  add("weights", usage.weights);
  add("embedding and head", usage.embedding);
  add(absl::StrCat("KV cache, ", report.kv_cache_type), usage.kv_cache);
  add("workspace", usage.workspace);
  add("total", usage.total());
  return absl::StrCat("\nServed with ", WithThousands(report.sequences), " sequences of ",
                      WithThousands(report.context_tokens), " tokens (",
                      HumanBytes(static_cast<double>(usage.kv_cache / report.sequences)),
                      " of KV cache each), at most:\n\n", FormatTable(rows));
}

class InspectCommand : public Command {
 public:
  const char* name() const override { return "inspect"; }
  const char* summary() const override { return "Show a model's sizes, site by site"; }

  void Declare(CLI::App& app) override {
    app.add_option("model", model_, "Model folder, dense or compressed")
        ->required()
        ->type_name("DIR");
    CLI::Option* memory = app.add_flag(
        "--memory", memory_, "Also show the most memory that a server holds for the model");
    app.add_option("--sequences", sequences_, "With --memory: completions computed together")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
        ->needs(memory)
        ->type_name("N")
        ->capture_default_str();
    app.add_option("--context", context_tokens_,
                   "With --memory: tokens of each, prompt and answer together; default: the "
                   "model's context")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
        ->needs(memory)
        ->type_name("TOKENS");
    app.add_option("--max-step-tokens", max_step_tokens_, "With --memory: as the server's option")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->needs(memory)
        ->type_name("N")
        ->capture_default_str();
    DeclareKvCacheType(app, kv_cache_type_)->needs(memory);
    app.add_option("--device", device_, "With --memory: auto, cpu, cuda or cuda:N")
        ->needs(memory)
        ->type_name("DEVICE")
        ->capture_default_str();
    app.footer(
        "Examples:\n  ultrasketch inspect models/classics-6m-0.5bit\n  ultrasketch inspect "
        "models/classics-6m-0.5bit --memory --sequences 16 --context 512");
  }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const OpenedModel opened,
                        OpenLocalModel(model_, {.needs_tokenizer = false}));
    const auto& checkpoint = opened.checkpoint;
    US_ASSIGN_OR_RETURN(const std::string codec, CheckpointCodec(*checkpoint));
    US_ASSIGN_OR_RETURN(const ModelSize size, MeasureModel(*checkpoint));
    std::optional<MemoryReport> memory;
    if (memory_) {
      US_ASSIGN_OR_RETURN(memory, PlanMemory(*checkpoint, device_, context_tokens_, sequences_,
                                             max_step_tokens_, kv_cache_type_));
    }
    if (environment.json) {
      nlohmann::ordered_json json = ToJson(opened, codec, size);
      if (memory) json["memory"] = ToJson(*memory);
      return WriteJson(json);
    }
    return WriteOutput(
        absl::StrCat(Describe(opened, codec, size), memory ? Describe(*memory) : ""));
  }

 private:
  std::string model_;
  bool memory_ = false;
  KvCacheType kv_cache_type_ = KvCacheType::kFp16;
  int64_t sequences_ = EngineLoopOptions().max_running_sequences;
  std::optional<int64_t> context_tokens_;
  int64_t max_step_tokens_ = EngineLoopOptions().max_step_tokens;
  std::string device_ = "auto";
};

}  // namespace

std::unique_ptr<Command> MakeInspectCommand() { return std::make_unique<InspectCommand>(); }

}  // namespace ultrasketch::cli
