#include "engine/backends/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"

#include "engine/backends/cuda/attention_plan.h"
#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/cuda/cuda_sampler.h"
#include "engine/backends/cuda/cuda_weights.h"
#include "engine/backends/cuda/cuda_workspace.h"
#include "engine/backends/cuda/head_norms.h"
#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/stage_timer.h"
#include "engine/backends/cuda/step_input.h"
#include "engine/backends/cuda/step_recorder.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch {
namespace {

using namespace cuda;  // NOLINT(google-build-using-namespace): the parts of this one class

// One of so many steps is timed.
constexpr int64_t kStepsBetweenTimed = 64;

float* Floats(DeviceBuffer& buffer) { return static_cast<float*>(buffer.data()); }
const float* Floats(const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); }
const CudaLinear& Unwrap(const DeviceLinear& linear) {
  return static_cast<const CudaLinear&>(linear);
}
const CudaVector& Unwrap(const DeviceVector& vector) {
  return static_cast<const CudaVector&>(vector);
}

// Whether products of few tokens make their inputs themselves: by instructions that count bits,
// which are emulated from compute capability 10.0 on. The environment's
// ULTRASKETCH_CUDA_FUSED_PRODUCTS, on or off, decides otherwise, for comparisons.
bool FusesProducts(const CudaDevice& device) {
  const char* value = std::getenv("ULTRASKETCH_CUDA_FUSED_PRODUCTS");
  const std::string_view choice = value == nullptr ? "" : value;
  if (choice == "on" || choice == "off") return choice == "on";
  return device.compute_capability() < 100;
}

AttentionGeometry GeometryOf(const AttentionShape& shape, const KvCacheLayout& layout) {
  return {shape.num_heads, shape.num_kv_heads, shape.head_dim, layout.block_size,
          layout.type == KvCacheType::kInt8};
}

CacheView LayerOf(const KvCacheLayout& layout, int layer, const DeviceBuffer& cache) {
  auto* keys =
      static_cast<uint8_t*>(const_cast<void*>(cache.data())) + layer * layout.layer_bytes();
  if (layout.type == KvCacheType::kInt8) return {keys, nullptr};
  return {keys, keys + layout.layer_bytes() / 2};
}

// Operations are recorded and launched at the step's end. What of a site is one kernel, Apply
// decides: with few tokens an input and its product, and the rotation of queries and keys and their
// attention; gate_up_proj and SwiGLU, where its product can.
class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<CudaDevice> device, std::shared_ptr<CudaWorkspace> workspace)
      : device_(std::move(device)),
        fuses_products_(FusesProducts(*device_)),
        workspace_(std::move(workspace)),
        rows_(workspace_->rows()),
        partials_(workspace_->partials()),
        finished_(workspace_->finished()),
        buffers_(workspace_->Join()),
        loader_(*device_, workspace_->pool()),
        step_(*device_),
        recorder_(*device_),
        timer_(*device_),
        sampler_(*device_, partials_, workspace_->pool()) {}

  const std::shared_ptr<CudaWorkspace>& workspace() const { return workspace_; }

  std::string_view name() const override { return device_->name(); }
  std::string description() const override { return device_->description(); }
  int activation_bytes() const override { return sizeof(float); }
  int64_t cache_token_bytes(KvCacheType type, int head_dim) const override {
    if (type == KvCacheType::kFp16) return 2 * int64_t{sizeof(uint16_t)} * head_dim;
    if (type != KvCacheType::kInt8) return 0;
    const int padded = Int8HeadDim(head_dim);
    return padded == 0 ? 0 : Int8TokenBytes(padded);
  }
  // Attention reads keys and values in runs of sixteen of a block.
  int cache_block_granularity() const override { return 16; }

  int64_t workspace_bytes() const override {
    return rows_.num_bytes() + partials_.num_bytes() + finished_.num_bytes() +
           workspace_->zeros().num_bytes() + loader_.staging_bytes() + step_.num_bytes() +
           sampler_.num_bytes() + (packed_input_ != nullptr ? packed_input_->resident_bytes() : 0);
  }
  int64_t available_bytes() const override { return device_->AvailableBytes().value_or(0); }
  int64_t used_bytes() const override { return device_->UsedBytes().value_or(0); }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(int64_t num_bytes) override {
    US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(*device_, num_bytes));
    return std::make_unique<CudaBuffer>(std::move(memory));
  }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> AllocateWorkspace(int64_t num_bytes) override {
    US_ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> part, buffers_->Allocate(num_bytes));
    return std::make_unique<CudaBuffer>(std::move(part));
  }

  absl::StatusOr<std::unique_ptr<DeviceLinear>> LoadLinear(const EncodedLinear& encoded,
                                                           absl::Span<const float> bias) override {
    US_ASSIGN_OR_RETURN(auto linear, loader_.LoadLinear(encoded, bias));
    const int64_t row_bytes = PackedInputBytes(linear->matrix().num_k_tiles);
    widest_packed_input_bytes_ = std::max(widest_packed_input_bytes_, row_bytes);
    return linear;
  }

  absl::StatusOr<std::unique_ptr<DeviceVector>> LoadVector(const TensorView& values) override {
    return loader_.LoadVector(values);
  }

  absl::StatusOr<std::unique_ptr<DeviceEmbedding>> LoadEmbedding(
      std::shared_ptr<const EncodedLinear> table) override {
    return loader_.LoadEmbedding(*table);
  }

  absl::Status ReserveStep(int64_t num_tokens) override {
    const int64_t num_bytes = num_tokens * widest_packed_input_bytes_;
    if (packed_input_ != nullptr && packed_input_->num_bytes() >= num_bytes)
      return absl::OkStatus();
    US_ASSIGN_OR_RETURN(packed_input_, AllocateWorkspace(num_bytes));
    return absl::OkStatus();
  }

  absl::Status BeginStep(const StepInput& step) override {
    US_RETURN_IF_ERROR(device_->lost());
    device_->Activate();
    gated_.reset();
    loader_.FreeStaging();
    buffers_->BeginStep();
    US_RETURN_IF_ERROR(step_.Begin(step));
    recorder_.Begin();
    timer_.Begin(/*is_wanted=*/++num_steps_ % kStepsBetweenTimed == 0);
    stage_durations_.reset();
    return absl::OkStatus();
  }

  absl::Status EndStep() override {
    // Larger steps keep the device busy for longer than launching them takes, and hardly repeat.
    constexpr int64_t kMaxGraphTokens = 256;
    device_->Activate();
    recorder_.Run(/*repeats=*/step_.num_tokens() <= kMaxGraphTokens, timer_);
    US_RETURN_IF_ERROR(device_->Finish("step"));
    stage_durations_ = timer_.Read();
    return absl::OkStatus();
  }

  std::optional<StageDurations> stage_durations() const override { return stage_durations_; }

  void Embed(const DeviceEmbedding& embedding, DeviceBuffer& hidden) override {
    const CudaLinear& table = static_cast<const CudaEmbedding&>(embedding).table();
    ForgetGated(hidden);
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add(
        "Embed", StepStage::kOther, {kEmbed, &table, hidden.data(), num_tokens},
        [&table, tokens = step_.tokens(), num_tokens, out = Floats(hidden)](cudaStream_t stream) {
          return table.codec().launch_embed(table.matrix(), table.cols(), tokens, num_tokens, out,
                                            stream);
        });
  }

  void Apply(const SiteInput& input, const DeviceLinear& site, const SiteOutput& output) override {
    const CudaLinear& linear = Unwrap(site);
    const MadeInput made = Make(input, linear);
    const bool writes_gates = output.mode == SiteOutput::Mode::kWriteGates;
    ForgetGated(*output.to);
    ProductArguments arguments =
        ArgumentsOf(linear, PackedInput(linear), step_.num_tokens(),
                    output.mode == SiteOutput::Mode::kAdd, Floats(*output.to));
    if (made.input.has_value() && CanFuse(linear, *made.input)) {
      arguments.is_gated = writes_gates && linear.rows() % (2 * kMTileRows) == 0;
      // Few outputs may be written in any order.
      const InputTransform* const next =
          arguments.is_gated ? &Unwrap(*output.gated_site).transform() : nullptr;
      const void* const scatter_indices =
          next != nullptr && HasNarrowIndices(*next) ? next->scatter_indices : nullptr;
      if (arguments.is_gated) {
        gated_ = {arguments.y, scatter_indices != nullptr ? FusedInput::Kind::kPermuted
                                                          : FusedInput::Kind::kRows};
      }
      MultiplyFused(made, linear, arguments, scatter_indices);
      return;
    }
    AddInput(made, linear);
    arguments.is_gated = writes_gates && linear.can_gate(arguments);
    if (arguments.is_gated) gated_ = {arguments.y, FusedInput::Kind::kRows};
    Multiply(arguments.accumulate ? "LinearAdd" : "Linear", linear, arguments);
  }

  void ApplyWithoutProduct(const SiteInput& input, const DeviceLinear& site) override {
    const CudaLinear& linear = Unwrap(site);
    AddInput(Make(input, linear), linear);
  }

  void Logits(const Normalized& x, const DeviceEmbedding& head, DeviceBuffer& logits) override;

  absl::Status Sample(const DeviceBuffer& logits, int64_t vocab_size,
                      absl::Span<const SampleRequest> requests,
                      absl::Span<SampledToken> tokens) override {
    US_RETURN_IF_ERROR(device_->lost());
    device_->Activate();
    return sampler_.Sample(Floats(logits), vocab_size, requests, tokens);
  }

  absl::Status CopyLogits(const DeviceBuffer& logits, int64_t vocab_size, int64_t row,
                          absl::Span<float> out) override {
    US_RETURN_IF_ERROR(device_->lost());
    device_->Activate();
    device_->Check(cudaMemcpyAsync(out.data(), Floats(logits) + row * vocab_size,
                                   static_cast<size_t>(vocab_size) * sizeof(float),
                                   cudaMemcpyDeviceToHost, device_->stream()),
                   "CopyLogits");
    return device_->Finish("CopyLogits");
  }

 private:
  // The first part of a launch.
  enum Operation : int {
    kEmbed,
    kNormalize,
    kSwiGlu,
    kTransform,
    kMultiply,
    kFused,
    kNormalizeHeads,
    kRotateAndStore,
    kAttention,
    kFinishAttention,
  };

  // A site's input as far as it is recorded: what a product can make of what there is, or a kernel
  // of its own; nothing when the packed input is there.
  struct MadeInput {
    const char* call = nullptr;
    std::optional<FusedInput> input;
  };
  // silu(gate) * up in the buffer of gate_up_proj's outputs, and in which order.
  struct GatedRows {
    const float* rows;
    FusedInput::Kind kind;
  };

  // A geometry as two parts of a launch.
  static int64_t HeadsOf(const AttentionGeometry& geometry) {
    return int64_t{geometry.num_heads} << 32 | geometry.num_kv_heads;
  }
  static int64_t SizesOf(const AttentionGeometry& geometry) {
    return int64_t{geometry.head_dim} << 33 | int64_t{geometry.is_int8} << 32 | geometry.block_size;
  }

  static const InputTransform& TransformOf(const CudaLinear& linear, int64_t input_size) {
    US_CHECK(linear.transform().cols == input_size);
    return linear.transform();
  }

  // `buffer` is about to be written.
  void ForgetGated(const DeviceBuffer& buffer) {
    if (gated_.has_value() && gated_->rows == Floats(buffer)) gated_.reset();
  }

  // Where the packed inputs of a site go, for all tokens.
  void* PackedInput(const CudaLinear& linear) {
    US_CHECK(packed_input_ != nullptr &&
             step_.num_tokens() * PackedInputBytes(linear.matrix().num_k_tiles) <=
                 packed_input_->num_bytes());
    return packed_input_->data();
  }

  FusedInput InputOf(FusedInput::Kind kind, const float* rows, const CudaLinear& linear,
                     int64_t input_size) {
    FusedInput input;
    input.kind = kind;
    input.rows = rows;
    input.transform = TransformOf(linear, input_size);
    input.packed_input = PackedInput(linear);
    return input;
  }

  // Records what must be done before there is an input.
  MadeInput Make(const SiteInput& input, const CudaLinear& linear) {
    return std::visit([&](const auto& parts) { return MakeInput(parts, linear); }, input);
  }
  MadeInput MakeInput(const Normalized& input, const CudaLinear& linear) {
    FusedInput made =
        InputOf(FusedInput::Kind::kNormalized, Floats(*input.hidden), linear, input.weight->size());
    made.weight = Unwrap(*input.weight).data();
    made.epsilon = input.epsilon;
    return {"RmsNorm", made};
  }
  MadeInput MakeInput(const Gated& input, const CudaLinear& linear) {
    const float* const rows = Floats(*input.gate_up);
    if (gated_.has_value() && gated_->rows == rows) {
      return {"SwiGlu", InputOf(gated_->kind, rows, linear, linear.cols())};
    }
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add(
        "SwiGlu", linear.stage(), {kSwiGlu, rows, &linear, PackedInput(linear), num_tokens},
        [this, rows, &transform = linear.transform(), num_tokens,
         out = PackedInput(linear)](cudaStream_t stream) {
          return LaunchSwiGlu(rows, num_tokens, transform, device_->num_sms(), out, stream);
        });
    return {"SwiGlu", std::nullopt};
  }
  MadeInput MakeInput(const Attended& input, const CudaLinear& linear);

  void NormalizeHeads(const Attended& input) {
    HeadNormArguments arguments;
    arguments.qkv = Floats(*input.qkv);
    arguments.num_tokens = step_.num_tokens();
    arguments.num_heads = input.shape.num_heads;
    arguments.num_kv_heads = input.shape.num_kv_heads;
    arguments.head_dim = input.shape.head_dim;
    arguments.query_weight = Unwrap(*input.head_norms->query).data();
    arguments.key_weight = Unwrap(*input.head_norms->key).data();
    arguments.epsilon = input.head_norms->epsilon;
    recorder_.Add(
        "NormalizeHeads", StepStage::kAttention,
        {kNormalizeHeads, arguments.qkv, arguments.num_tokens, arguments.query_weight,
         arguments.key_weight, arguments.epsilon, arguments.num_heads, arguments.num_kv_heads,
         arguments.head_dim},
        [arguments](cudaStream_t stream) { return LaunchNormalizeHeads(arguments, stream); });
  }

  void RotateAndStore(const AttentionGeometry& geometry, const CacheView& cache,
                      const float* frequencies, float* qkv) {
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add("RotateAndStore", StepStage::kAttention,
                  {kRotateAndStore, frequencies, cache.keys, cache.values, qkv, step_.block_table(),
                   num_tokens, HeadsOf(geometry), SizesOf(geometry)},
                  [this, geometry, cache, frequencies, qkv, num_tokens](cudaStream_t stream) {
                    return LaunchRotateAndStore(geometry, frequencies, step_.tokens(), num_tokens,
                                                step_.block_table(), cache, qkv, stream);
                  });
  }

  void Normalize(const char* call, const DeviceBuffer& hidden, const int32_t* rows,
                 int64_t num_rows, const DeviceVector& weight, float epsilon,
                 const CudaLinear& consumer, void* packed_input) {
    const InputTransform& transform = TransformOf(consumer, weight.size());
    recorder_.Add(
        call, consumer.stage(),
        {kNormalize, hidden.data(), rows, num_rows, &weight, epsilon, &consumer, packed_input},
        [this, in = Floats(hidden), rows, num_rows, weights = Unwrap(weight).data(), epsilon,
         &transform, packed_input](cudaStream_t stream) {
          return LaunchRmsNorm(in, rows, num_rows, weights, epsilon, transform, device_->num_sms(),
                               packed_input, stream);
        });
  }

  ProductArguments ArgumentsOf(const CudaLinear& linear, const void* packed_input,
                               int64_t num_tokens, bool accumulate, float* output) const {
    ProductArguments arguments;
    arguments.matrix = linear.matrix();
    arguments.packed_input = packed_input;
    arguments.num_tokens = num_tokens;
    arguments.accumulate = accumulate;
    arguments.y = output;
    arguments.num_sms = device_->num_sms();
    arguments.max_shared_bytes = device_->max_shared_bytes();
    return arguments;
  }

  void Multiply(const char* call, const CudaLinear& linear, const ProductArguments& arguments) {
    recorder_.Add(
        call, linear.stage(),
        {kMultiply, &linear, arguments.packed_input, arguments.num_tokens,
         static_cast<int>(arguments.accumulate), static_cast<int>(arguments.is_gated), arguments.y},
        [&linear, arguments](cudaStream_t stream) {
          return linear.codec().launch_product(arguments, stream);
        });
  }

  bool CanFuse(const CudaLinear& linear, const FusedInput& input) const {
    return fuses_products_ && linear.codec().is_fused &&
           CanFuseProduct(input, linear.matrix(), linear.transform(), step_.num_tokens(),
                          device_->num_sms(), device_->max_shared_bytes());
  }

  // The packed input, by a kernel of its own.
  void AddInput(const MadeInput& made, const CudaLinear& linear) {
    if (!made.input.has_value()) return;
    const FusedInput& input = *made.input;
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add(made.call, linear.stage(),
                  {kTransform, static_cast<int>(input.kind), input.rows, input.weight,
                   input.epsilon, input.attention_tokens, &linear, input.packed_input, num_tokens,
                   HeadsOf(input.attention.geometry), SizesOf(input.attention.geometry)},
                  [this, input, num_tokens](cudaStream_t stream) {
                    const int num_sms = device_->num_sms();
                    switch (input.kind) {
                      case FusedInput::Kind::kNormalized:
                        return LaunchRmsNorm(input.rows, /*rows=*/nullptr, num_tokens, input.weight,
                                             input.epsilon, input.transform, num_sms,
                                             input.packed_input, stream);
                      case FusedInput::Kind::kAttended:
                        return LaunchFinishAttention(input.attention, input.attention_tokens,
                                                     num_tokens, input.transform, num_sms,
                                                     input.packed_input, stream);
                      case FusedInput::Kind::kRows:
                      case FusedInput::Kind::kPermuted:
                        return LaunchTransform(
                            input.rows, input.kind == FusedInput::Kind::kPermuted, num_tokens,
                            input.transform, num_sms, input.packed_input, stream);
                    }
                    return cudaErrorInvalidValue;
                  });
  }

  // `output_indices`: see LaunchFusedProduct.
  void MultiplyFused(const MadeInput& made, const CudaLinear& linear,
                     const ProductArguments& arguments, const void* output_indices) {
    const FusedInput& input = *made.input;
    recorder_.Add(
        made.call, linear.stage(),
        {kFused, static_cast<int>(input.kind), input.rows, input.weight, input.epsilon,
         input.attention_tokens, &linear, arguments.num_tokens,
         static_cast<int>(arguments.accumulate), arguments.y, static_cast<int>(arguments.is_gated),
         output_indices, HeadsOf(input.attention.geometry), SizesOf(input.attention.geometry)},
        [arguments, input, output_indices](cudaStream_t stream) {
          return LaunchFusedProduct(arguments, input, output_indices, stream);
        });
  }

  std::unique_ptr<CudaDevice> device_;  // outlives what is on it
  const bool fuses_products_;
  const std::shared_ptr<CudaWorkspace> workspace_;
  const CudaMemory& rows_;                               // workspace_'s
  const CudaMemory& partials_;                           // workspace_'s
  const CudaMemory& finished_;                           // workspace_'s
  const std::unique_ptr<WorkspaceArena::Part> buffers_;  // of workspace_
  WeightLoader loader_;
  DeviceStep step_;
  StepRecorder recorder_;
  StageTimer timer_;
  int64_t num_steps_ = 0;
  std::optional<StageDurations> stage_durations_;  // of the last step
  CudaSampler sampler_;
  int64_t widest_packed_input_bytes_ = 0;       // of the sites that were loaded, a token's
  std::unique_ptr<DeviceBuffer> packed_input_;  // a site's inputs, from when they are made until
                                                // they are multiplied
  std::optional<GatedRows> gated_;              // of this step
};

CudaBackend::MadeInput CudaBackend::MakeInput(const Attended& input, const CudaLinear& linear) {
  const int64_t query_width = input.shape.query_width();
  const InputTransform& transform = TransformOf(linear, query_width);
  if (input.head_norms.has_value()) NormalizeHeads(input);
  AttentionArguments arguments;
  arguments.geometry = GeometryOf(input.shape, *input.layout);
  arguments.max_shared_bytes = device_->max_shared_bytes();
  arguments.num_sms = device_->num_sms();
  arguments.qkv = Floats(*input.qkv);
  arguments.cache = LayerOf(*input.layout, input.layer, *input.cache);
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t finished_of_slot =
      int64_t{arguments.geometry.num_kv_heads} * arguments.geometry.tiles_per_group();
  const AttentionPlanKey key = {
      arguments.geometry,
      std::min(partials_.num_bytes() / (arguments.geometry.partial_floats() * kFloatBytes),
               finished_.num_bytes() / (finished_of_slot * int64_t{sizeof(int32_t)})),
      rows_.num_bytes() / (query_width * kFloatBytes)};
  if (step_.IsUsedForOther(key)) recorder_.Run(/*repeats=*/false, timer_);
  const AttentionPlan& plan = step_.PlanFor(key);
  // Angles of 0 leave everything as it is, to the bit.
  US_CHECK(input.shape.head_dim / 2 * kFloatBytes <= workspace_->zeros().num_bytes());
  const float* const frequencies = input.inverse_frequencies != nullptr
                                       ? Unwrap(*input.inverse_frequencies).data()
                                       : static_cast<const float*>(workspace_->zeros().data());
  const bool rotates = step_.has_one_token_each() && !plan.has_long_items &&
                       HasTokenAttention(arguments.geometry, device_->max_shared_bytes());
  if (rotates) {
    arguments.frequencies = frequencies;
    arguments.tokens = step_.tokens();
  } else {
    RotateAndStore(arguments.geometry, arguments.cache, frequencies, Floats(*input.qkv));
  }

  arguments.block_table = step_.block_table();
  arguments.partials = static_cast<float*>(partials_.data());
  arguments.attended = static_cast<float*>(rows_.data());
  arguments.finished = static_cast<int32_t*>(finished_.data());
  arguments.merges_splits = plan.merges_splits;
  for (const AttentionTokenBlock& token_block : plan.token_blocks) {
    arguments.items = step_.attention_items() + token_block.first_item;
    arguments.num_items = token_block.num_items;
    arguments.prompt_items = arguments.items + token_block.num_items;
    arguments.num_prompt_items = token_block.num_prompt_items;
    arguments.first_token = token_block.first_token;
    recorder_.Add("Attention", StepStage::kAttention,
                  {kAttention, arguments.qkv, arguments.cache.keys, arguments.cache.values,
                   arguments.block_table, arguments.items, arguments.num_items,
                   arguments.num_prompt_items, arguments.first_token, arguments.frequencies,
                   arguments.tokens, HeadsOf(arguments.geometry), SizesOf(arguments.geometry),
                   static_cast<int>(arguments.merges_splits)},
                  [arguments, rotates](cudaStream_t stream) {
                    return rotates ? LaunchTokenAttention(arguments, stream)
                                   : LaunchAttention(arguments, stream);
                  });
    if (token_block.num_tokens == step_.num_tokens() && plan.max_splits <= kMaxUnmergedSplits) {
      FusedInput made = InputOf(FusedInput::Kind::kAttended, /*rows=*/nullptr, linear, query_width);
      made.attention = arguments;
      made.attention_tokens = step_.attention_tokens();
      return {"Attention", made};
    }
    recorder_.Add(
        "Attention", linear.stage(),
        {kFinishAttention, step_.attention_tokens(), token_block.num_tokens, &linear,
         PackedInput(linear)},
        [this, arguments, tokens = step_.attention_tokens(), count = token_block.num_tokens,
         &transform, out = PackedInput(linear)](cudaStream_t stream) {
          return LaunchFinishAttention(arguments, tokens, count, transform, device_->num_sms(), out,
                                       stream);
        });
  }
  return {"Attention", std::nullopt};
}

void CudaBackend::Logits(const Normalized& x, const DeviceEmbedding& head, DeviceBuffer& logits) {
  const CudaLinear& table = static_cast<const CudaEmbedding&>(head).table();
  const int64_t rows_at_once = rows_.num_bytes() / PackedInputBytes(table.transform().num_k_tiles);
  for (int64_t first = 0; first < step_.num_logit_tokens(); first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, step_.num_logit_tokens() - first);
    Normalize("Logits", *x.hidden, step_.logit_tokens() + first, count, *x.weight, x.epsilon, table,
              rows_.data());
    Multiply("Logits", table,
             ArgumentsOf(table, rows_.data(), count, /*accumulate=*/false,
                         Floats(logits) + first * table.rows()));
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackend(int ordinal,
                                                           const BackendOptions& options) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CudaDevice::Open(ordinal));
  std::shared_ptr<CudaWorkspace> workspace;
  if (options.beside != nullptr) {
    workspace = static_cast<const CudaBackend&>(*options.beside).workspace();
  } else {
    US_ASSIGN_OR_RETURN(workspace, CudaWorkspace::Create(ordinal, options.num_threads));
  }
  return std::make_shared<CudaBackend>(std::move(device), std::move(workspace));
}

}  // namespace ultrasketch
