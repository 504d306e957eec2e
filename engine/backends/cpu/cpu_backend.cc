#include "engine/backends/cpu/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"

#include "engine/backends/cpu/available_memory.h"
#include "engine/backends/cpu/cpu_kernels.h"
#include "engine/backends/cpu/cpu_memory.h"
#include "engine/backends/cpu/cpu_workspace.h"
#include "engine/backends/cpu/store_in_cache.h"
#include "engine/backends/step_stages.h"
#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "engine/base/status.h"
#include "engine/kv/int4_row.h"

namespace ultrasketch {
namespace {

float* Floats(DeviceBuffer& buffer) { return static_cast<float*>(buffer.data()); }
const float* Floats(const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); }
const CpuLinear& Unwrap(const DeviceLinear& linear) {
  return static_cast<const CpuDeviceLinear&>(linear).linear();
}
StepStage StageOf(const DeviceLinear& linear) {
  return static_cast<const CpuDeviceLinear&>(linear).stage();
}
const float* Unwrap(const DeviceVector& vector) {
  return static_cast<const CpuVector&>(vector).data();
}

// "model name" of /proc/cpuinfo.
std::string ProcessorName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

// Which stage the step is in: a step changes stage twice a layer, and reads the clock then.
class StageClock {
 public:
  void Begin() {
    durations_ = {};
    stage_ = StepStage::kOther;
    since_ = Clock::now();
  }
  void Enter(StepStage stage) {
    if (stage == stage_) return;
    Stop();
    stage_ = stage;
  }
  // Adds what the current stage took. What is not under another stage is the step's, not ours.
  void Stop() {
    const Clock::time_point now = Clock::now();
    if (stage_ != StepStage::kOther) durations_[stage_] += absl::FromChrono(now - since_);
    stage_ = StepStage::kOther;
    since_ = now;
  }
  const StageDurations& durations() const { return durations_; }

 private:
  using Clock = std::chrono::steady_clock;

  StageDurations durations_;
  StepStage stage_ = StepStage::kOther;
  Clock::time_point since_;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(std::shared_ptr<CpuWorkspace> workspace)
      : kernels_(GetCpuKernels()),
        workspace_(std::move(workspace)),
        pool_(workspace_->pool()),
        buffers_(workspace_->Join()) {}

  const std::shared_ptr<CpuWorkspace>& workspace() const { return workspace_; }

  std::string_view name() const override { return "cpu"; }

  std::string description() const override {
    return absl::StrCat(ProcessorName(), ", ", kernels_.name, ", ", pool_.num_threads(),
                        pool_.num_threads() == 1 ? " thread" : " threads");
  }

  int activation_bytes() const override { return sizeof(float); }
  int64_t cache_token_bytes(KvCacheType type, int head_dim) const override {
    switch (type) {
      case KvCacheType::kFp16:
        return Fp16TokenBytes(head_dim);
      case KvCacheType::kInt8:
        return Int8TokenBytes(head_dim);
      case KvCacheType::kInt4:
        return head_dim % 2 == 0 ? Int4TokenBytes(head_dim) : 0;
      case KvCacheType::kFp32:
        return Fp32TokenBytes(head_dim);
    }
    return 0;
  }
  int cache_block_granularity() const override { return kAttentionLanes; }
  bool can_discard_blocks() const override { return true; }
  void DiscardBlocks(const KvCacheLayout& layout, absl::Span<const BlockId> blocks,
                     DeviceBuffer& cache) override;
  int64_t available_bytes() const override { return AvailableMemoryBytes(); }
  int64_t used_bytes() const override { return ResidentMemoryBytes(); }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(int64_t num_bytes) override {
    return CpuBuffer::Allocate(num_bytes);
  }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateWorkspace(int64_t num_bytes) override {
    return buffers_->Allocate(num_bytes);
  }

  int64_t workspace_bytes() const override {
    return prepared_ != nullptr ? prepared_->resident_bytes() : 0;
  }

  absl::StatusOr<std::unique_ptr<DeviceLinear>> LoadLinear(const EncodedLinear& encoded,
                                                           absl::Span<const float> bias) override {
    US_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == encoded.site().rows);
    auto packed = encoded.PackForCpu();
    widest_prepared_ = std::max(widest_prepared_, packed->prepared_width());
    return std::make_unique<CpuDeviceLinear>(
        std::move(packed), std::vector<float>(bias.begin(), bias.end()), ProductStage(encoded));
  }

  absl::StatusOr<std::unique_ptr<DeviceVector>> LoadVector(const TensorView& values) override {
    return std::make_unique<CpuVector>(ToFloatVector(values));
  }

  absl::StatusOr<std::unique_ptr<DeviceEmbedding>> LoadEmbedding(
      std::shared_ptr<const EncodedLinear> table) override {
    return std::make_unique<CpuEmbedding>(std::move(table));
  }

  absl::Status ReserveStep(int64_t num_tokens) override {
    const int64_t num_bytes = num_tokens * widest_prepared_ * int64_t{sizeof(float)};
    if (prepared_ != nullptr && prepared_->num_bytes() >= num_bytes) return absl::OkStatus();
    US_ASSIGN_OR_RETURN(prepared_, buffers_->Allocate(num_bytes));
    return absl::OkStatus();
  }

  absl::Status BeginStep(const StepInput& step) override {
    step_ = step;
    rotations_ready_ = false;
    buffers_->BeginStep();
    clock_.Begin();
    return absl::OkStatus();
  }

  absl::Status EndStep() override {
    clock_.Stop();
    return absl::OkStatus();
  }

  std::optional<StageDurations> stage_durations() const override { return clock_.durations(); }

  void Embed(const DeviceEmbedding& embedding, DeviceBuffer& hidden) override {
    const EncodedLinear& table = static_cast<const CpuEmbedding&>(embedding).table();
    float* out = Floats(hidden);
    ForEachToken([&](int64_t token, int) {
      table.DecodeRows(step_.token_ids[static_cast<size_t>(token)], 1,
                       out + token * table.site().cols);
    });
  }

  void Apply(const SiteInput& input, const DeviceLinear& site, const SiteOutput& output) override {
    ApplyWithoutProduct(input, site);
    // Gates and ups are gated where they are read.
    Multiply(site, /*accumulate=*/output.mode == SiteOutput::Mode::kAdd, *output.to);
  }

  void ApplyWithoutProduct(const SiteInput& input, const DeviceLinear& site) override {
    std::visit([&](const auto& parts) { Prepare(parts, site); }, input);
  }

  void Logits(const Normalized& x, const DeviceEmbedding& head, DeviceBuffer& logits) override;

  absl::Status Sample(const DeviceBuffer& logits, int64_t vocab_size,
                      absl::Span<const SampleRequest> requests,
                      absl::Span<SampledToken> tokens) override;

  absl::Status CopyLogits(const DeviceBuffer& logits, int64_t vocab_size, int64_t row,
                          absl::Span<float> out) override {
    std::copy_n(Floats(logits) + row * vocab_size, vocab_size, out.data());
    return absl::OkStatus();
  }

 private:
  int64_t num_tokens() const { return static_cast<int64_t>(step_.token_ids.size()); }

  template <typename Body>
  void ForEachToken(const Body& body) {
    pool_.ParallelFor(num_tokens(), 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t token = begin; token < end; ++token) body(token, thread);
    });
  }

  // The prepared inputs of a site: what PrepareInput makes of its input.
  void Prepare(const Normalized& input, const DeviceLinear& site) {
    const int64_t size = input.weight->size();
    const float* x = Floats(*input.hidden);
    PrepareRows(site, [&](int64_t token, float* out) {
      kernels_.rms_norm(x + token * size, Unwrap(*input.weight), size, input.epsilon, out);
    });
  }
  void Prepare(const Gated& input, const DeviceLinear& site) {
    const int64_t size = site.cols();
    const float* x = Floats(*input.gate_up);
    PrepareRows(site, [&](int64_t token, float* out) {
      const float* gate = x + token * 2 * size;
      kernels_.swiglu(gate, gate + size, size, out);
    });
  }
  void Prepare(const Attended& input, const DeviceLinear& site) {
    clock_.Enter(StepStage::kAttention);
    RotateAndStore(input);
    Attend(input);
    clock_.Enter(StageOf(site));
    const CpuLinear& linear = Unwrap(site);
    const int64_t size = input.shape.query_width();
    US_CHECK(linear.cols() == size);
    const float* attended = workspace_->attended().data();
    float* out = Prepared(linear);
    ForEachToken([&](int64_t token, int) {
      linear.PrepareInput(attended + token * size, out + token * linear.prepared_width());
    });
  }

  // Of what `body(token, row)` puts into row [cols] for each token.
  template <typename Body>
  void PrepareRows(const DeviceLinear& site, const Body& body) {
    clock_.Enter(StageOf(site));
    const CpuLinear& linear = Unwrap(site);
    const int64_t width = linear.prepared_width();
    float* out = Prepared(linear);
    ForEachToken([&](int64_t token, int thread) {
      float* row = workspace_->Scratch(thread, linear.cols());
      body(token, row);
      linear.PrepareInput(row, out + token * width);
    });
  }

  // [num_tokens, prepared_width]
  float* Prepared(const CpuLinear& linear) {
    const int64_t num_bytes = num_tokens() * linear.prepared_width() * int64_t{sizeof(float)};
    US_CHECK(prepared_ != nullptr && num_bytes <= prepared_->num_bytes());
    return Floats(*prepared_);
  }

  void Multiply(const DeviceLinear& site, bool accumulate, DeviceBuffer& output) {
    clock_.Enter(StageOf(site));
    const CpuLinear& weights = Unwrap(site);
    float* y = Floats(output);
    weights.Multiply(Prepared(weights), num_tokens(), accumulate, y, pool_);
    const std::vector<float>& bias = static_cast<const CpuDeviceLinear&>(site).bias();
    if (bias.empty()) return;
    ForEachToken([&](int64_t token, int) {
      kernels_.add(bias.data(), weights.rows(), y + token * weights.rows());
    });
  }

  // Of queries and keys of a token's row of qkv; `rotations` are cosines, then sines.
  void NormalizeHeads(const HeadNorms& norms, const AttentionShape& shape, float* row) const;
  static void RotateHeads(const float* rotations, const AttentionShape& shape, float* row);
  // Makes rotated queries in place, and keys and values in the cache.
  void RotateAndStore(const Attended& input);
  CpuKernels::AttendFunction* AttendFunctionFor(KvCacheType type) const;
  // To workspace_->attended().
  void Attend(const Attended& input);

  // cosines and sines [num_tokens][2][head_dim / 2] of the step's positions.
  void PrepareRotations(const DeviceVector& inverse_frequencies);

  const CpuKernels& kernels_;
  const std::shared_ptr<CpuWorkspace> workspace_;
  ThreadPool& pool_;                                     // workspace_'s
  const std::unique_ptr<WorkspaceArena::Part> buffers_;  // of workspace_

  int64_t widest_prepared_ = 0;             // of the sites that were loaded, in floats
  std::unique_ptr<DeviceBuffer> prepared_;  // a site's inputs, from when they are made until they
                                            // are multiplied

  StepInput step_;
  StageClock clock_;
  bool rotations_ready_ = false;
};

void CpuBackend::PrepareRotations(const DeviceVector& inverse_frequencies) {
  if (rotations_ready_) return;
  const int64_t half = inverse_frequencies.size();
  const float* frequencies = Unwrap(inverse_frequencies);
  std::vector<float>& rotations = workspace_->rotations();
  rotations.resize(static_cast<size_t>(num_tokens() * 2 * half));
  ForEachToken([&](int64_t token, int) {
    const auto position = static_cast<float>(step_.positions[static_cast<size_t>(token)]);
    float* row = rotations.data() + token * 2 * half;
    for (int64_t i = 0; i < half; ++i) {
      const float angle = position * frequencies[i];
      row[i] = std::cos(angle);
      row[half + i] = std::sin(angle);
    }
  });
  rotations_ready_ = true;
}

void CpuBackend::NormalizeHeads(const HeadNorms& norms, const AttentionShape& shape,
                                float* row) const {
  for (int head = 0; head < shape.num_heads + shape.num_kv_heads; ++head) {
    const DeviceVector& weight = head < shape.num_heads ? *norms.query : *norms.key;
    float* const values = row + int64_t{head} * shape.head_dim;
    kernels_.rms_norm(values, Unwrap(weight), shape.head_dim, norms.epsilon, values);
  }
}

void CpuBackend::RotateHeads(const float* rotations, const AttentionShape& shape, float* row) {
  const int64_t half = shape.head_dim / 2;
  const float* cosines = rotations;
  const float* sines = rotations + half;
  for (int64_t head = 0; head < shape.num_heads + shape.num_kv_heads; ++head) {
    float* low = row + head * shape.head_dim;
    float* high = low + half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = low[i];
      const float b = high[i];
      low[i] = a * cosines[i] - b * sines[i];
      high[i] = b * cosines[i] + a * sines[i];
    }
  }
}

void CpuBackend::RotateAndStore(const Attended& input) {
  const AttentionShape& shape = input.shape;
  const KvCacheLayout& layout = *input.layout;
  const bool rotates = input.inverse_frequencies != nullptr;
  if (rotates) PrepareRotations(*input.inverse_frequencies);
  const int64_t head_dim = shape.head_dim;
  const auto size = static_cast<size_t>(head_dim);
  const int64_t block_size = layout.block_size;
  uint8_t* const of_layer =
      static_cast<uint8_t*>(input.cache->data()) + input.layer * layout.layer_bytes();
  const auto store = [&](int64_t token, const BlockId block, int64_t slot) {
    float* row = Floats(*input.qkv) + token * shape.qkv_width();
    if (input.head_norms.has_value()) NormalizeHeads(*input.head_norms, shape, row);
    if (rotates) RotateHeads(workspace_->rotations().data() + token * head_dim, shape, row);
    float* const k = row + shape.query_width();
    float* const v = k + shape.key_width();
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      uint8_t* const start = of_layer + (int64_t{block} * layout.num_kv_heads + head) * block_size *
                                            layout.token_bytes;
      StoreInCache(layout, {k + head * head_dim, size}, {v + head * head_dim, size}, start, slot);
    }
    if (layout.type == KvCacheType::kInt4) {
      for (int64_t head = 0; head < shape.num_heads; ++head)
        RotateRow({row + head * head_dim, size});
    }
  };
  ForEachToken([&](int64_t token, int) {
    // The last span that begins at or before the token.
    const auto next = std::upper_bound(
        step_.spans.begin(), step_.spans.end(), token,
        [](int64_t value, const AttentionSpan& span) { return value < span.first_token; });
    const AttentionSpan& span = *(next - 1);
    const int64_t position = span.num_cached + token - span.first_token;
    store(token, span.blocks[static_cast<size_t>(position / layout.block_size)],
          position % layout.block_size);
  });
}

CpuKernels::AttendFunction* CpuBackend::AttendFunctionFor(KvCacheType type) const {
  switch (type) {
    case KvCacheType::kFp16:
      return kernels_.attend_fp16;
    case KvCacheType::kInt8:
      return kernels_.attend_int8;
    case KvCacheType::kInt4:
      return kernels_.attend_int4;
    case KvCacheType::kFp32:
      return kernels_.attend_fp32;
  }
  return nullptr;
}

void CpuBackend::Attend(const Attended& input) {
  const AttentionShape& shape = input.shape;
  const KvCacheLayout& layout = *input.layout;
  const int64_t head_dim = shape.head_dim;
  const int64_t heads_per_group = shape.num_heads / shape.num_kv_heads;
  const auto* const of_layer =
      static_cast<const uint8_t*>(input.cache->data()) + input.layer * layout.layer_bytes();
  CpuKernels::AttendFunction* const attend_tile = AttendFunctionFor(layout.type);
  const int64_t width = shape.query_width();
  std::vector<float>& attended = workspace_->attended();
  attended.resize(static_cast<size_t>(num_tokens() * width));

  // A tile is the queries of one key head for a few neighbouring tokens: they share the keys.
  struct Tile {
    const AttentionSpan* span;
    int64_t first;  // token within the span
    int64_t count;
    int64_t kv_head;
    int64_t first_query;  // of the group
    int64_t num_queries;  // per token
  };
  const int64_t queries_per_token = std::min(heads_per_group, AttentionTile::kMaxQueries);
  const int64_t tokens_per_tile = AttentionTile::kMaxQueries / queries_per_token;
  std::vector<Tile> tiles;
  for (const AttentionSpan& span : step_.spans) {
    for (int64_t first = 0; first < span.num_tokens; first += tokens_per_tile) {
      const int64_t count = std::min(tokens_per_tile, span.num_tokens - first);
      for (int64_t kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
        for (int64_t query = 0; query < heads_per_group; query += queries_per_token) {
          tiles.push_back({&span, first, count, kv_head, query,
                           std::min(queries_per_token, heads_per_group - query)});
        }
      }
    }
  }

  const auto attend = [&](const Tile& tile, int thread) {
    const float* queries[AttentionTile::kMaxQueries];
    float* outputs[AttentionTile::kMaxQueries];
    int64_t num_keys[AttentionTile::kMaxQueries];
    int64_t num_queries = 0;
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t token = tile.span->first_token + tile.first + i;
      for (int64_t query = 0; query < tile.num_queries; ++query) {
        const int64_t offset =
            (tile.kv_head * heads_per_group + tile.first_query + query) * head_dim;
        queries[num_queries] = Floats(*input.qkv) + token * shape.qkv_width() + offset;
        outputs[num_queries] = attended.data() + token * width + offset;
        num_keys[num_queries] = tile.span->num_cached + tile.first + i + 1;
        ++num_queries;
      }
    }
    AttentionTile work;
    work.cache = of_layer;
    work.blocks = tile.span->blocks.data();
    work.num_kv_heads = layout.num_kv_heads;
    work.kv_head = tile.kv_head;
    work.block_size = layout.block_size;
    work.head_dim = head_dim;
    work.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    work.num_queries = num_queries;
    work.queries = queries;
    work.num_keys = num_keys;
    work.outputs = outputs;
    float* const scores = workspace_->Scratch(thread, AttentionTile::kMaxQueries * kAttentionChunk);
    attend_tile(work, scores);
    if (layout.type == KvCacheType::kInt4) {
      for (float* output : absl::MakeConstSpan(outputs, static_cast<size_t>(num_queries))) {
        RotateRow({output, static_cast<size_t>(head_dim)});
      }
    }
  };
  // Later tiles have more keys: threads take them in turn, so that each gets some of all lengths.
  const int64_t num_threads = pool_.num_threads();
  const auto num_tiles = static_cast<int64_t>(tiles.size());
  pool_.ParallelFor(std::min(num_threads, num_tiles), 1,
                    [&](int64_t begin, int64_t end, int thread) {
                      for (int64_t share = begin; share < end; ++share) {
                        for (int64_t i = share; i < num_tiles; i += num_threads) {
                          attend(tiles[static_cast<size_t>(i)], thread);
                        }
                      }
                    });
}

void CpuBackend::DiscardBlocks(const KvCacheLayout& layout, absl::Span<const BlockId> blocks,
                               DeviceBuffer& cache) {
  auto& buffer = static_cast<CpuBuffer&>(cache);
  const int64_t block_bytes = layout.layer_bytes() / layout.num_blocks;
  // Neighbours together: a block need not fill a page.
  for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
    do ++end;
    while (end < blocks.size() && blocks[end] == blocks[end - 1] + 1);
    for (int layer = 0; layer < layout.num_layers; ++layer) {
      buffer.Discard(layer * layout.layer_bytes() + blocks[begin] * block_bytes,
                     static_cast<int64_t>(end - begin) * block_bytes);
    }
  }
}

void CpuBackend::Logits(const Normalized& x, const DeviceEmbedding& head, DeviceBuffer& logits) {
  clock_.Enter(StepStage::kHead);
  const auto num_rows = static_cast<int64_t>(step_.logit_tokens.size());
  if (num_rows == 0) return;
  const CpuLinear& table = static_cast<const CpuEmbedding&>(head).linear();
  const int64_t size = x.weight->size();
  const int64_t width = table.prepared_width();
  US_CHECK(table.cols() == size);
  std::vector<float>& rows = workspace_->attended();
  rows.resize(std::max(rows.size(), static_cast<size_t>(num_rows * width)));
  float* prepared = rows.data();
  pool_.ParallelFor(num_rows, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = step_.logit_tokens[static_cast<size_t>(row)];
      float* normed = workspace_->Scratch(thread, size);
      kernels_.rms_norm(Floats(*x.hidden) + token * size, Unwrap(*x.weight), size, x.epsilon,
                        normed);
      table.PrepareInput(normed, prepared + row * width);
    }
  });
  table.Multiply(prepared, num_rows, /*accumulate=*/false, Floats(logits), pool_);
}

absl::Status CpuBackend::Sample(const DeviceBuffer& logits, int64_t vocab_size,
                                absl::Span<const SampleRequest> requests,
                                absl::Span<SampledToken> tokens) {
  Mutex mutex;
  absl::Status first_error;
  pool_.ParallelFor(static_cast<int64_t>(requests.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const SampleRequest& request = requests[static_cast<size_t>(i)];
      absl::StatusOr<SampledToken> token =
          SampleToken(absl::MakeConstSpan(Floats(logits) + request.logits_row * vocab_size,
                                          static_cast<size_t>(vocab_size)),
                      request);
      if (token.ok()) {
        tokens[static_cast<size_t>(i)] = *std::move(token);
      } else {
        MutexLock lock(mutex);
        first_error.Update(token.status());
      }
    }
  });
  return first_error;
}

}  // namespace

std::shared_ptr<Backend> CreateCpuBackend(const BackendOptions& options) {
  auto workspace = options.beside != nullptr
                       ? static_cast<const CpuBackend&>(*options.beside).workspace()
                       : std::make_shared<CpuWorkspace>(options.num_threads);
  return std::make_shared<CpuBackend>(std::move(workspace));
}

}  // namespace ultrasketch
