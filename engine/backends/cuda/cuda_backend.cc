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
const CudaBuffer& Unwrap(const DeviceBuffer& buffer) {
  return static_cast<const CudaBuffer&>(buffer);
}
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

// Operations are recorded and launched at the step's end. Some wait until the next one is known,
// and become one kernel with it: gates and ups with what is made of them, and, with few tokens, an
// input with the product that it is for and the rotation of queries and keys with attention.
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
    if (type == KvCacheType::kFloat) return 2 * int64_t{sizeof(uint16_t)} * head_dim;
    const int padded = Int8HeadDim(head_dim);
    return padded == 0 ? 0 : Int8TokenBytes(padded);
  }
  // Attention reads keys and values in runs of sixteen of a block.
  int cache_block_granularity() const override { return 16; }

  int64_t workspace_bytes() const override {
    return rows_.num_bytes() + partials_.num_bytes() + finished_.num_bytes() +
           workspace_->zeros().num_bytes() + loader_.staging_bytes() + step_.num_bytes() +
           sampler_.num_bytes() + (prepared_ != nullptr ? prepared_->resident_bytes() : 0);
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
    const int64_t row_bytes = PreparedRowBytes(linear->matrix().num_steps);
    widest_prepared_bytes_ = std::max(widest_prepared_bytes_, row_bytes);
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
    const int64_t num_bytes = num_tokens * widest_prepared_bytes_;
    if (prepared_ != nullptr && prepared_->num_bytes() >= num_bytes) return absl::OkStatus();
    US_ASSIGN_OR_RETURN(prepared_, AllocateWorkspace(num_bytes));
    return absl::OkStatus();
  }

  absl::Status BeginStep(const StepInput& step) override {
    US_RETURN_IF_ERROR(device_->lost());
    device_->Activate();
    deferred_.reset();
    rotation_.reset();
    loader_.FreeStaging();
    buffers_->BeginStep();
    US_RETURN_IF_ERROR(step_.Begin(step));
    recorder_.Begin();
    timer_.Begin(/*is_wanted=*/++num_steps_ % kStepsBetweenTimed == 0);
    stage_durations_.reset();
    return absl::OkStatus();
  }

  absl::Status EndStep() override {
    FinishDeferred();
    // Larger steps keep the device busy for longer than launching them takes, and hardly repeat.
    constexpr int64_t kMostGraphTokens = 256;
    device_->Activate();
    recorder_.Run(/*repeats=*/step_.num_tokens() <= kMostGraphTokens, timer_);
    US_RETURN_IF_ERROR(device_->Finish("step"));
    stage_durations_ = timer_.Read();
    return absl::OkStatus();
  }

  std::optional<StageDurations> stage_durations() const override { return stage_durations_; }

  void Embed(const DeviceEmbedding& embedding, DeviceBuffer& hidden) override {
    FinishDeferred();
    const auto& table = static_cast<const CudaEmbedding&>(embedding);
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add(
        "Embed", StepStage::kOther, {kEmbed, &table, hidden.data(), num_tokens},
        [&table, tokens = step_.tokens(), num_tokens, out = Floats(hidden)](cudaStream_t stream) {
          return table.launch_embed()(table.table().matrix(), table.hidden_size(), tokens,
                                      num_tokens, out, stream);
        });
  }

  void Apply(const SiteInput& input, const DeviceLinear& site, const SiteOutput& output) override {
    ApplyWithoutProduct(input, site);
    if (output.mode == SiteOutput::Mode::kAdd) {
      LinearAdd(site, *prepared_, *output.to);
    } else {
      Linear(site, *prepared_, *output.to);
    }
  }

  void ApplyWithoutProduct(const SiteInput& input, const DeviceLinear& site) override {
    US_CHECK(prepared_ != nullptr &&
             step_.num_tokens() * PreparedRowBytes(Unwrap(site).matrix().num_steps) <=
                 prepared_->num_bytes());
    if (const auto* normalized = std::get_if<Normalized>(&input)) {
      RmsNorm(*normalized->hidden, *normalized->weight, normalized->epsilon, site, *prepared_);
    } else if (const auto* gated = std::get_if<Gated>(&input)) {
      SwiGlu(*gated->gate_up, site.cols(), site, *prepared_);
    } else {
      const auto& attended = std::get<Attended>(input);
      if (attended.head_norms.has_value()) NormalizeHeads(attended);
      RotateAndStore(attended);
      Attention(attended.shape, *attended.layout, attended.layer, *attended.qkv, *attended.cache,
                site, *prepared_);
    }
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
  void RmsNorm(const DeviceBuffer& hidden, const DeviceVector& weight, float epsilon,
               const DeviceLinear& consumer, DeviceBuffer& prepared) {
    Renew(prepared);
    FusedInput input;
    input.kind = FusedInput::Kind::kNormalized;
    input.rows = Floats(hidden);
    input.weight = Unwrap(weight).data();
    input.epsilon = epsilon;
    if (Defer("RmsNorm", input, consumer, weight.size(), prepared)) return;
    Normalize("RmsNorm", hidden, /*rows=*/nullptr, step_.num_tokens(), weight, epsilon,
              Unwrap(consumer), prepared.data());
  }

  void SwiGlu(const DeviceBuffer& gate_up, int64_t intermediate_size, const DeviceLinear& consumer,
              DeviceBuffer& prepared) {
    Renew(prepared);
    const InputSketch& sketch = SketchOf(consumer, intermediate_size);
    if (deferred_.has_value() && deferred_->output == gate_up.data() &&
        deferred_->linear->rows() == 2 * intermediate_size) {
      // The product before writes silu(gate) * up; what is left is to sketch it. Few outputs may be
      // written in any order.
      const Deferred product = *std::exchange(deferred_, std::nullopt);
      const bool is_in_entries = !product.is_prepared && HasNarrowPlaces(sketch);
      AddProduct(product, /*is_gated=*/true, is_in_entries ? sketch.places : nullptr);
      FusedInput input;
      input.kind = is_in_entries ? FusedInput::Kind::kEntries : FusedInput::Kind::kRows;
      input.rows = Floats(gate_up);
      const Deferred sketched = InputOf("SwiGlu", input, consumer, intermediate_size, prepared);
      if (CanFuse(Unwrap(consumer), input)) {
        deferred_ = sketched;
      } else {
        AddInput(sketched);
      }
      return;
    }
    FinishDeferred();
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add("SwiGlu", Unwrap(consumer).stage(),
                  {kSwiGlu, gate_up.data(), &consumer, prepared.data(), num_tokens},
                  [this, in = Floats(gate_up), &sketch, num_tokens,
                   out = prepared.data()](cudaStream_t stream) {
                    return LaunchSwiGlu(in, num_tokens, sketch, device_->num_multiprocessors(), out,
                                        stream);
                  });
  }

  void Linear(const DeviceLinear& linear, const DeviceBuffer& prepared, DeviceBuffer& output) {
    MultiplyPrepared("Linear", Unwrap(linear), prepared, /*accumulate=*/false, output);
  }

  void LinearAdd(const DeviceLinear& linear, const DeviceBuffer& prepared, DeviceBuffer& output) {
    MultiplyPrepared("LinearAdd", Unwrap(linear), prepared, /*accumulate=*/true, output);
  }

  void NormalizeHeads(const Attended& input) {
    FinishDeferred();
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

  void RotateAndStore(const Attended& input) {
    FinishDeferred();
    const AttentionGeometry geometry = GeometryOf(input.shape, *input.layout);
    // Angles of 0 leave everything as it is, to the bit.
    US_CHECK(geometry.head_dim / 2 * int64_t{sizeof(float)} <= workspace_->zeros().num_bytes());
    const float* frequencies = input.inverse_frequencies != nullptr
                                   ? Unwrap(*input.inverse_frequencies).data()
                                   : static_cast<const float*>(workspace_->zeros().data());
    rotation_ = {geometry, LayerOf(*input.layout, input.layer, *input.cache), frequencies,
                 Floats(*input.qkv)};
    // Otherwise attention may do it.
    if (!step_.has_one_token_each() || !HasTokenAttention(geometry, device_->max_shared_bytes())) {
      FinishRotation();
    }
  }

  void Attention(const AttentionShape& shape, const KvCacheLayout& layout, int layer,
                 const DeviceBuffer& qkv, const DeviceBuffer& cache, const DeviceLinear& consumer,
                 DeviceBuffer& prepared);

  // The first part of a launch.
  enum Operation : int {
    kEmbed,
    kNormalize,
    kSwiGlu,
    kSketch,
    kMultiply,
    kFused,
    kNormalizeHeads,
    kRotateAndStore,
    kAttention,
    kFinishAttention,
  };

  // The input of a linear site that its product can make itself, and, once it is known, that
  // product; or a product of prepared inputs that may be gated. What is recorded of them waits for
  // what comes next.
  struct Deferred {
    const char* call = nullptr;
    FusedInput input;
    const CudaLinear* consumer = nullptr;
    bool is_prepared = false;  // `input` is no more than what is at input.prepared
    // Of the product, null before it is known.
    const CudaLinear* linear = nullptr;
    bool accumulate = false;
    float* output = nullptr;
  };
  // Queries, keys and values that are neither rotated nor stored yet.
  struct Rotation {
    AttentionGeometry geometry;
    CacheView cache;
    const float* frequencies;
    float* qkv;
  };

  // A geometry as two parts of a launch.
  static int64_t HeadsOf(const AttentionGeometry& geometry) {
    return int64_t{geometry.num_heads} << 32 | geometry.num_kv_heads;
  }
  static int64_t SizesOf(const AttentionGeometry& geometry) {
    return int64_t{geometry.head_dim} << 33 | int64_t{geometry.is_int8} << 32 | geometry.block_size;
  }

  static const InputSketch& SketchOf(const DeviceLinear& consumer, int64_t input_size) {
    const InputSketch& sketch = Unwrap(consumer).sketch();
    US_CHECK(sketch.cols == input_size);
    return sketch;
  }

  void Normalize(const char* call, const DeviceBuffer& hidden, const int32_t* rows,
                 int64_t num_rows, const DeviceVector& weight, float epsilon,
                 const CudaLinear& consumer, void* prepared) {
    const InputSketch& sketch = SketchOf(consumer, weight.size());
    recorder_.Add(
        call, consumer.stage(),
        {kNormalize, hidden.data(), rows, num_rows, &weight, epsilon, &consumer, prepared},
        [this, in = Floats(hidden), rows, num_rows, weights = Unwrap(weight).data(), epsilon,
         &sketch, prepared](cudaStream_t stream) {
          return LaunchRmsNorm(in, rows, num_rows, weights, epsilon, sketch,
                               device_->num_multiprocessors(), prepared, stream);
        });
  }

  ProductArguments ArgumentsOf(const CudaLinear& linear, const void* prepared, int64_t num_tokens,
                               bool accumulate, float* output) const {
    ProductArguments arguments;
    arguments.matrix = linear.matrix();
    arguments.prepared = prepared;
    arguments.num_tokens = num_tokens;
    arguments.accumulate = accumulate;
    arguments.y = output;
    arguments.num_multiprocessors = device_->num_multiprocessors();
    arguments.max_shared_bytes = device_->max_shared_bytes();
    return arguments;
  }

  void Multiply(const char* call, const CudaLinear& linear, const ProductArguments& arguments) {
    recorder_.Add(
        call, linear.stage(),
        {kMultiply, &linear, arguments.prepared, arguments.num_tokens,
         static_cast<int>(arguments.accumulate), static_cast<int>(arguments.is_gated), arguments.y},
        [&linear, arguments](cudaStream_t stream) { return linear.launch()(arguments, stream); });
  }

  // `prepared` is about to be written.
  static void Renew(const DeviceBuffer& prepared) { Unwrap(prepared).set_spent(false); }

  void MultiplyPrepared(const char* call, const CudaLinear& linear, const DeviceBuffer& prepared,
                        bool accumulate, DeviceBuffer& output) {
    US_CHECK(!Unwrap(prepared).is_spent());
    if (deferred_.has_value() && deferred_->linear == nullptr && deferred_->consumer == &linear &&
        deferred_->input.prepared == prepared.data() &&
        // Blocks read all of the rows while others write.
        deferred_->input.rows != Floats(output)) {
      Unwrap(prepared).set_spent(true);
      deferred_->linear = &linear;
      deferred_->accumulate = accumulate;
      deferred_->output = Floats(output);
      // SwiGlu may follow.
      if (accumulate || linear.rows() % (2 * kTileRows) != 0) FinishDeferred();
      return;
    }
    FinishDeferred();
    const ProductArguments arguments =
        ArgumentsOf(linear, prepared.data(), step_.num_tokens(), accumulate, Floats(output));
    if (linear.launch() == &LaunchFoldProduct && CanGateFoldProduct(arguments)) {
      // SwiGlu may follow here, too.
      Deferred product;
      product.call = call;
      product.input.prepared = const_cast<void*>(prepared.data());
      product.is_prepared = true;
      product.linear = &linear;
      product.accumulate = accumulate;
      product.output = Floats(output);
      deferred_ = product;
      return;
    }
    Multiply(call, linear, arguments);
  }

  bool CanFuse(const CudaLinear& linear, const FusedInput& input) const {
    return fuses_products_ && linear.launch() == &LaunchFoldProduct &&
           CanFuseProduct(input, linear.matrix(), linear.sketch(), step_.num_tokens(),
                          device_->num_multiprocessors(), device_->max_shared_bytes());
  }

  static Deferred InputOf(const char* call, FusedInput input, const DeviceLinear& consumer,
                          int64_t input_size, DeviceBuffer& prepared) {
    input.sketch = SketchOf(consumer, input_size);
    input.prepared = prepared.data();
    return {.call = call, .input = input, .consumer = &Unwrap(consumer)};
  }

  // False when the product cannot make `input` [num_tokens, input_size] itself. Finishes what was
  // deferred before in any case.
  bool Defer(const char* call, const FusedInput& input, const DeviceLinear& consumer,
             int64_t input_size, DeviceBuffer& prepared) {
    FinishDeferred();
    if (!CanFuse(Unwrap(consumer), input)) return false;
    deferred_ = InputOf(call, input, consumer, input_size, prepared);
    return true;
  }

  void FinishDeferred() {
    FinishRotation();
    if (!deferred_.has_value()) return;
    const Deferred deferred = *std::exchange(deferred_, std::nullopt);
    if (deferred.linear != nullptr) {
      AddProduct(deferred, /*is_gated=*/false);
    } else {
      AddInput(deferred);
    }
  }

  // Inputs without their product.
  void AddInput(const Deferred& deferred) {
    const FusedInput& input = deferred.input;
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add(
        deferred.call, deferred.consumer->stage(),
        {kSketch, static_cast<int>(input.kind), input.rows, input.weight, input.epsilon,
         input.attention_tokens, deferred.consumer, input.prepared, num_tokens,
         HeadsOf(input.attention.geometry), SizesOf(input.attention.geometry)},
        [this, input, num_tokens](cudaStream_t stream) {
          const int multiprocessors = device_->num_multiprocessors();
          switch (input.kind) {
            case FusedInput::Kind::kNormalized:
              return LaunchRmsNorm(input.rows, /*rows=*/nullptr, num_tokens, input.weight,
                                   input.epsilon, input.sketch, multiprocessors, input.prepared,
                                   stream);
            case FusedInput::Kind::kAttended:
              return LaunchFinishAttention(input.attention, input.attention_tokens, num_tokens,
                                           input.sketch, multiprocessors, input.prepared, stream);
            case FusedInput::Kind::kRows:
            case FusedInput::Kind::kEntries:
              return LaunchSketch(input.rows, input.kind == FusedInput::Kind::kEntries, num_tokens,
                                  input.sketch, multiprocessors, input.prepared, stream);
          }
          return cudaErrorInvalidValue;
        });
  }

  // `entry_places`: see LaunchFusedProduct.
  void AddProduct(const Deferred& deferred, bool is_gated, const void* entry_places = nullptr) {
    const FusedInput& input = deferred.input;
    ProductArguments arguments = ArgumentsOf(*deferred.linear, input.prepared, step_.num_tokens(),
                                             deferred.accumulate, deferred.output);
    arguments.is_gated = is_gated;
    if (deferred.is_prepared) {
      Multiply(deferred.call, *deferred.linear, arguments);
      return;
    }
    recorder_.Add(
        deferred.call, deferred.linear->stage(),
        {kFused, static_cast<int>(input.kind), input.rows, input.weight, input.epsilon,
         input.attention_tokens, deferred.linear, arguments.num_tokens,
         static_cast<int>(arguments.accumulate), arguments.y, static_cast<int>(is_gated),
         entry_places, HeadsOf(input.attention.geometry), SizesOf(input.attention.geometry)},
        [arguments, input, entry_places](cudaStream_t stream) {
          return LaunchFusedProduct(arguments, input, entry_places, stream);
        });
  }

  void FinishRotation() {
    if (!rotation_.has_value()) return;
    const Rotation rotation = *std::exchange(rotation_, std::nullopt);
    const int64_t num_tokens = step_.num_tokens();
    recorder_.Add("RotateAndStore", StepStage::kAttention,
                  {kRotateAndStore, rotation.frequencies, rotation.cache.keys,
                   rotation.cache.values, rotation.qkv, step_.block_table(), num_tokens,
                   HeadsOf(rotation.geometry), SizesOf(rotation.geometry)},
                  [this, rotation, num_tokens](cudaStream_t stream) {
                    return LaunchRotateAndStore(rotation.geometry, rotation.frequencies,
                                                step_.tokens(), num_tokens, step_.block_table(),
                                                rotation.cache, rotation.qkv, stream);
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
  int64_t widest_prepared_bytes_ = 0;       // of the sites that were loaded, a token's
  std::unique_ptr<DeviceBuffer> prepared_;  // a site's inputs, from when they are made until they
                                            // are multiplied
  std::optional<Deferred> deferred_;
  std::optional<Rotation> rotation_;
};

void CudaBackend::Attention(const AttentionShape& shape, const KvCacheLayout& layout, int layer,
                            const DeviceBuffer& qkv, const DeviceBuffer& cache,
                            const DeviceLinear& consumer, DeviceBuffer& prepared) {
  Renew(prepared);
  const InputSketch& sketch = SketchOf(consumer, shape.query_width());
  AttentionArguments arguments;
  arguments.geometry = GeometryOf(shape, layout);
  arguments.max_shared_bytes = device_->max_shared_bytes();
  arguments.num_multiprocessors = device_->num_multiprocessors();
  arguments.qkv = Floats(qkv);
  arguments.cache = LayerOf(layout, layer, cache);
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t finished_of_slot =
      int64_t{arguments.geometry.num_kv_heads} * arguments.geometry.tiles_per_group();
  const AttentionPlanKey key = {
      arguments.geometry,
      std::min(partials_.num_bytes() / (arguments.geometry.partial_floats() * kFloatBytes),
               finished_.num_bytes() / (finished_of_slot * int64_t{sizeof(int32_t)})),
      rows_.num_bytes() / (shape.query_width() * kFloatBytes)};
  if (step_.IsUsedForOther(key)) {
    FinishDeferred();
    recorder_.Run(/*repeats=*/false, timer_);
  }
  const AttentionPlan& plan = step_.PlanFor(key);
  const bool rotates = rotation_.has_value() && rotation_->qkv == arguments.qkv &&
                       rotation_->cache.keys == arguments.cache.keys && !plan.has_long_items;
  if (rotates) {
    arguments.frequencies = std::exchange(rotation_, std::nullopt)->frequencies;
    arguments.tokens = step_.tokens();
  }
  FinishDeferred();

  arguments.block_table = step_.block_table();
  arguments.partials = static_cast<float*>(partials_.data());
  arguments.attended = static_cast<float*>(rows_.data());
  arguments.finished = static_cast<int32_t*>(finished_.data());
  arguments.merges_chunks = plan.merges_chunks;
  for (const AttentionSlab& slab : plan.slabs) {
    arguments.items = step_.attention_items() + slab.first_item;
    arguments.num_items = slab.num_items;
    arguments.prompt_items = arguments.items + slab.num_items;
    arguments.num_prompt_items = slab.num_prompt_items;
    arguments.first_token = slab.first_token;
    recorder_.Add("Attention", StepStage::kAttention,
                  {kAttention, arguments.qkv, arguments.cache.keys, arguments.cache.values,
                   arguments.block_table, arguments.items, arguments.num_items,
                   arguments.num_prompt_items, arguments.first_token, arguments.frequencies,
                   arguments.tokens, HeadsOf(arguments.geometry), SizesOf(arguments.geometry),
                   static_cast<int>(arguments.merges_chunks)},
                  [arguments, rotates](cudaStream_t stream) {
                    return rotates ? LaunchTokenAttention(arguments, stream)
                                   : LaunchAttention(arguments, stream);
                  });
    if (slab.num_tokens == step_.num_tokens() && plan.most_chunks <= kMostUnmergedChunks) {
      FusedInput input;
      input.kind = FusedInput::Kind::kAttended;
      input.attention = arguments;
      input.attention_tokens = step_.attention_tokens();
      if (Defer("Attention", input, consumer, shape.query_width(), prepared)) return;
    }
    recorder_.Add(
        "Attention", Unwrap(consumer).stage(),
        {kFinishAttention, step_.attention_tokens(), slab.num_tokens, &consumer, prepared.data()},
        [this, arguments, tokens = step_.attention_tokens(), count = slab.num_tokens, &sketch,
         out = prepared.data()](cudaStream_t stream) {
          return LaunchFinishAttention(arguments, tokens, count, sketch,
                                       device_->num_multiprocessors(), out, stream);
        });
  }
}

void CudaBackend::Logits(const Normalized& x, const DeviceEmbedding& head, DeviceBuffer& logits) {
  FinishDeferred();
  const CudaLinear& table = static_cast<const CudaEmbedding&>(head).table();
  const int64_t rows_at_once = rows_.num_bytes() / PreparedRowBytes(table.sketch().num_steps);
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
