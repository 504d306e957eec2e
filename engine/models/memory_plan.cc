#include "engine/models/memory_plan.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

bool IsTable(const std::string& name) {
  return name.rfind("model.embed_tokens.", 0) == 0 || name.rfind("lm_head.", 0) == 0;
}

int64_t BytesPerToken(const ModelConfig& config, const ModelOptions& options,
                      const Backend& backend) {
  // 1 where there is no such cache, which loading the model says.
  return std::max<int64_t>(1,
                           int64_t{config.num_layers} * config.num_kv_heads *
                               backend.cache_token_bytes(options.kv_cache_type, config.head_dim));
}

// What kernels of compressed sites hold beside the stored bits, at most: the order of the columns
// and their signs or buckets, scales as floats, rows that fill a tile up.
int64_t PackingBytes(const ModelConfig& config) {
  constexpr int64_t kBytesPerColumn = 32;
  constexpr int64_t kBytesPerRow = 4;
  if (config.quantization_config.is_null()) return 0;
  int64_t bytes = 0;
  for (const LinearSite& site : LinearSites(config)) {
    bytes += kBytesPerColumn * site.cols + kBytesPerRow * site.rows;
  }
  return bytes;
}

int64_t SaturatingProduct(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<int64_t>::max() : product;
}

}  // namespace

MemoryUsage EstimateMemory(const Checkpoint& checkpoint, const ModelOptions& options,
                           const Backend& backend) {
  const ModelConfig& config = checkpoint.config();
  MemoryUsage usage;
  for (const std::string& name : checkpoint.tensor_names()) {
    const TensorView& tensor = *checkpoint.Find(name);
    int64_t bytes = tensor.num_bytes();
    // Vectors are held as floats.
    if (tensor.shape.size() == 1) {
      bytes = std::max(bytes, tensor.num_elements() * int64_t{sizeof(float)});
    }
    (IsTable(name) ? usage.embedding : usage.weights) += bytes;
  }
  usage.weights += PackingBytes(config);
  const int64_t widest_input =
      std::max({config.hidden_size, config.query_width(), config.intermediate_size});
  const int64_t activations = config.hidden_size + widest_input + config.query_width() +
                              2 * config.key_width() + 2 * config.intermediate_size;
  usage.workspace = options.max_step_tokens * activations * backend.activation_bytes() +
                    options.max_step_logits * config.vocab_size * int64_t{sizeof(float)} +
                    backend.workspace_bytes();
  usage.kv_cache =
      SaturatingProduct(options.kv_cache_tokens, BytesPerToken(config, options, backend));
  return usage;
}

absl::Status CheckFits(const MemoryUsage& needed, int64_t available_bytes) {
  if (needed.total() <= available_bytes) return absl::OkStatus();
  const auto human = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
  return absl::ResourceExhaustedError(
      absl::StrCat("the model does not fit: ", needed.total(), " bytes needed (weights ",
                   human(needed.weights), ", embedding ", human(needed.embedding), ", KV cache ",
                   human(needed.kv_cache), ", workspace ", human(needed.workspace), "), ",
                   available_bytes, " bytes (", human(available_bytes), ") available"));
}

absl::StatusOr<int64_t> PlanKvCacheTokens(const Checkpoint& checkpoint, const ModelOptions& options,
                                          const Backend& backend, const MemoryBudget& budget) {
  ModelOptions smallest = options;
  smallest.kv_cache_tokens = options.block_size;
  const MemoryUsage usage = EstimateMemory(checkpoint, smallest, backend);
  const int64_t fixed = usage.total() - usage.kv_cache;
  US_RETURN_IF_ERROR(CheckFits(usage, budget.available_bytes));
  const ModelConfig& config = checkpoint.config();
  const int64_t fitting =
      (budget.available_bytes - fixed) / 2 / BytesPerToken(config, options, backend);
  const int64_t wanted = SaturatingProduct(budget.max_sequences, config.max_position_embeddings);
  return std::max<int64_t>(std::min(fitting, wanted), options.block_size);
}

}  // namespace ultrasketch
