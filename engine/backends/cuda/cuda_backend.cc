#include "engine/backends/cuda/cuda_backend.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/backends/cuda/attention_plan.h"
#include "engine/backends/cuda/cuda_device.h"
#include "engine/backends/cuda/cuda_sampler.h"
#include "engine/backends/cuda/cuda_weights.h"
#include "engine/backends/cuda/kernels.h"
#include "engine/backends/cuda/step_input.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/cuda/tile_layout.h"

namespace ultrasketch {
namespace {

using namespace cuda;  // NOLINT(google-build-using-namespace): the parts of this one class

// Results of attention before they are sketched, and prepared inputs of the output head: a step
// works through its tokens in as many slabs as that takes.
constexpr int64_t kRowsBytes = int64_t{32} << 20;
// Partial results of attention. While weights are loaded, rows that are to be packed.
constexpr int64_t kPartialsBytes = int64_t{64} << 20;

float* Floats(DeviceBuffer& buffer) { return static_cast<float*>(buffer.data()); }
const float* Floats(const DeviceBuffer& buffer) { return static_cast<const float*>(buffer.data()); }
const CudaLinear& Unwrap(const DeviceLinear& linear) {
  return static_cast<const CudaLinear&>(linear);
}
const CudaVector& Unwrap(const DeviceVector& vector) {
  return static_cast<const CudaVector&>(vector);
}

AttentionGeometry GeometryOf(const AttentionShape& shape, const KvCacheLayout& layout) {
  return {shape.num_heads, shape.num_kv_heads, shape.head_dim, layout.block_size};
}

CacheView LayerOf(const KvCacheLayout& layout, int layer, const DeviceBuffer& cache) {
  const int64_t plane = layout.num_blocks * layout.num_kv_heads * layout.block_size *
                        layout.head_dim * layout.element_bytes;
  auto* keys = static_cast<uint8_t*>(const_cast<void*>(cache.data())) + 2 * layer * plane;
  return {keys, keys + plane};
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<CudaDevice> device, CudaMemory rows, CudaMemory partials,
              int num_threads)
      : device_(std::move(device)),
        rows_(std::move(rows)),
        partials_(std::move(partials)),
        pool_(num_threads),
        loader_(*device_, partials_, pool_),
        step_(*device_),
        sampler_(*device_, pool_) {}

  std::string_view name() const override { return device_->name(); }
  std::string description() const override { return device_->description(); }
  int activation_bytes() const override { return sizeof(float); }
  int cache_element_bytes() const override { return sizeof(uint16_t); }
  // Attention reads keys and values in runs of sixteen of a block.
  int cache_block_granularity() const override { return 16; }

  absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(int64_t num_bytes) override {
    US_ASSIGN_OR_RETURN(CudaMemory memory, CudaMemory::Allocate(*device_, num_bytes));
    return std::make_unique<CudaBuffer>(std::move(memory));
  }

  absl::StatusOr<std::unique_ptr<DeviceLinear>> LoadLinear(const EncodedLinear& encoded,
                                                           absl::Span<const float> bias) override {
    return loader_.LoadLinear(encoded, bias);
  }

  absl::StatusOr<std::unique_ptr<DeviceVector>> LoadVector(const TensorView& values) override {
    return loader_.LoadVector(values);
  }

  absl::StatusOr<std::unique_ptr<DeviceEmbedding>> LoadEmbedding(const TensorView& table) override {
    return loader_.LoadEmbedding(table);
  }

  absl::Status BeginStep(const StepInput& step) override {
    US_RETURN_IF_ERROR(device_->lost());
    device_->Activate();
    return step_.Begin(step);
  }

  absl::Status EndStep() override { return device_->Finish("step"); }

  void Embed(const DeviceEmbedding& embedding, DeviceBuffer& hidden) override {
    const auto& table = static_cast<const CudaEmbedding&>(embedding);
    Check(LaunchEmbed(table.table().matrix(), table.hidden_size(), step_.tokens(),
                      step_.num_tokens(), Floats(hidden), device_->stream()),
          "Embed");
  }

  void RmsNorm(const DeviceBuffer& hidden, const DeviceVector& weight, float epsilon,
               const DeviceLinear& consumer, DeviceBuffer& prepared) override {
    const InputSketch& sketch = SketchOf(consumer, weight.size());
    Check(LaunchRmsNorm(Floats(hidden), /*rows=*/nullptr, step_.num_tokens(), Unwrap(weight).data(),
                        epsilon, sketch, device_->num_multiprocessors(), prepared.data(),
                        device_->stream()),
          "RmsNorm");
  }

  void SwiGlu(const DeviceBuffer& gate_up, int64_t intermediate_size, const DeviceLinear& consumer,
              DeviceBuffer& prepared) override {
    Check(LaunchSwiGlu(Floats(gate_up), step_.num_tokens(), SketchOf(consumer, intermediate_size),
                       device_->num_multiprocessors(), prepared.data(), device_->stream()),
          "SwiGlu");
  }

  void Linear(const DeviceLinear& linear, const DeviceBuffer& prepared,
              DeviceBuffer& output) override {
    Multiply(Unwrap(linear), prepared.data(), step_.num_tokens(), /*accumulate=*/false,
             Floats(output), "Linear");
  }

  void LinearAdd(const DeviceLinear& linear, const DeviceBuffer& prepared,
                 DeviceBuffer& output) override {
    Multiply(Unwrap(linear), prepared.data(), step_.num_tokens(), /*accumulate=*/true,
             Floats(output), "LinearAdd");
  }

  void RotateAndStore(const AttentionShape& shape, const DeviceVector& inverse_frequencies,
                      const KvCacheLayout& layout, int layer, DeviceBuffer& qkv,
                      DeviceBuffer& cache) override {
    Check(LaunchRotateAndStore(GeometryOf(shape, layout), Unwrap(inverse_frequencies).data(),
                               step_.tokens(), step_.num_tokens(), step_.block_table(),
                               LayerOf(layout, layer, cache), Floats(qkv), device_->stream()),
          "RotateAndStore");
  }

  void Attention(const AttentionShape& shape, const KvCacheLayout& layout, int layer,
                 const DeviceBuffer& qkv, const DeviceBuffer& cache, const DeviceLinear& consumer,
                 DeviceBuffer& prepared) override;

  void Logits(const DeviceBuffer& hidden, const DeviceVector& norm_weight, float epsilon,
              const DeviceEmbedding& head, DeviceBuffer& logits) override;

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
    Check(cudaMemcpyAsync(out.data(), Floats(logits) + row * vocab_size,
                          static_cast<size_t>(vocab_size) * sizeof(float), cudaMemcpyDeviceToHost,
                          device_->stream()),
          "CopyLogits");
    return device_->Finish("CopyLogits");
  }

 private:
  void Check(cudaError_t error, const char* call) { device_->Check(error, call); }

  static const InputSketch& SketchOf(const DeviceLinear& consumer, int64_t input_size) {
    const InputSketch& sketch = Unwrap(consumer).sketch();
    US_CHECK(sketch.cols == input_size);
    return sketch;
  }

  void Multiply(const CudaLinear& linear, const void* prepared, int64_t num_tokens, bool accumulate,
                float* output, const char* call) {
    ProductArguments arguments;
    arguments.matrix = linear.matrix();
    arguments.prepared = prepared;
    arguments.num_tokens = num_tokens;
    arguments.accumulate = accumulate;
    arguments.y = output;
    arguments.num_multiprocessors = device_->num_multiprocessors();
    Check(linear.launch()(arguments, device_->stream()), call);
  }

  std::unique_ptr<CudaDevice> device_;  // outlives what is on it
  CudaMemory rows_;
  CudaMemory partials_;
  ThreadPool pool_;
  WeightLoader loader_;
  DeviceStep step_;
  CudaSampler sampler_;
};

void CudaBackend::Attention(const AttentionShape& shape, const KvCacheLayout& layout, int layer,
                            const DeviceBuffer& qkv, const DeviceBuffer& cache,
                            const DeviceLinear& consumer, DeviceBuffer& prepared) {
  const InputSketch& sketch = SketchOf(consumer, shape.query_width());
  AttentionArguments arguments;
  arguments.geometry = GeometryOf(shape, layout);
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t max_slots =
      partials_.num_bytes() / (arguments.geometry.partial_floats() * kFloatBytes);
  const int64_t max_tokens = rows_.num_bytes() / (shape.query_width() * kFloatBytes);
  const AttentionPlan& plan = step_.PlanFor(arguments.geometry, max_slots, max_tokens);

  arguments.qkv = Floats(qkv);
  arguments.cache = LayerOf(layout, layer, cache);
  arguments.block_table = step_.block_table();
  arguments.partials = static_cast<float*>(partials_.data());
  arguments.attended = static_cast<float*>(rows_.data());
  for (const AttentionSlab& slab : plan.slabs) {
    arguments.items = step_.attention_items() + slab.first_item;
    arguments.num_items = slab.num_items;
    arguments.first_token = slab.first_token;
    Check(LaunchAttention(arguments, device_->stream()), "Attention");
    Check(LaunchFinishAttention(arguments, step_.attention_tokens(), slab.num_tokens, sketch,
                                device_->num_multiprocessors(), prepared.data(), device_->stream()),
          "Attention");
  }
}

void CudaBackend::Logits(const DeviceBuffer& hidden, const DeviceVector& norm_weight, float epsilon,
                         const DeviceEmbedding& head, DeviceBuffer& logits) {
  const CudaLinear& table = static_cast<const CudaEmbedding&>(head).table();
  const InputSketch& sketch = SketchOf(table, norm_weight.size());
  const int64_t rows_at_once = rows_.num_bytes() / PreparedRowBytes(sketch.num_steps);
  for (int64_t first = 0; first < step_.num_logit_tokens(); first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, step_.num_logit_tokens() - first);
    Check(LaunchRmsNorm(Floats(hidden), step_.logit_tokens() + first, count,
                        Unwrap(norm_weight).data(), epsilon, sketch, device_->num_multiprocessors(),
                        rows_.data(), device_->stream()),
          "Logits");
    Multiply(table, rows_.data(), count, /*accumulate=*/false,
             Floats(logits) + first * table.rows(), "Logits");
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackend(int ordinal,
                                                           const BackendOptions& options) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CudaDevice::Open(ordinal));
  US_ASSIGN_OR_RETURN(CudaMemory rows, CudaMemory::Allocate(*device, kRowsBytes));
  US_ASSIGN_OR_RETURN(CudaMemory partials, CudaMemory::Allocate(*device, kPartialsBytes));
  return std::make_shared<CudaBackend>(std::move(device), std::move(rows), std::move(partials),
                                       options.num_threads);
}

}  // namespace ultrasketch
