// What the CPU backend holds for a model.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_MEMORY_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_MEMORY_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"
#include "engine/backends/step_stages.h"
#include "engine/codecs/codec.h"
#include "engine/codecs/cpu_linear.h"

namespace ultrasketch {

// Anonymous memory whose pages come with their first use: a cache for many sequences costs what
// they use of it. Starts as zeros.
class CpuBuffer final : public DeviceBuffer {
 public:
  // RESOURCE_EXHAUSTED with bytes needed and available.
  static absl::StatusOr<std::unique_ptr<CpuBuffer>> Allocate(int64_t num_bytes);
  ~CpuBuffer() override;
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  void* data() override { return data_; }
  const void* data() const override { return data_; }
  int64_t num_bytes() const override { return num_bytes_; }
  int64_t resident_bytes() const override;
  // Whole pages within the range go back to the system, and read as zeros.
  void Discard(int64_t offset, int64_t num_bytes);

 private:
  CpuBuffer(void* data, int64_t num_bytes) : data_(data), num_bytes_(num_bytes) {}

  void* data_;
  int64_t num_bytes_;
};

class CpuDeviceLinear final : public DeviceLinear {
 public:
  CpuDeviceLinear(std::unique_ptr<CpuLinear> linear, std::vector<float> bias, StepStage stage)
      : linear_(std::move(linear)), bias_(std::move(bias)), stage_(stage) {}

  int64_t rows() const override { return linear_->rows(); }
  int64_t cols() const override { return linear_->cols(); }
  int64_t resident_bytes() const override {
    return linear_->resident_bytes() + static_cast<int64_t>(bias_.size() * sizeof(float));
  }

  const CpuLinear& linear() const { return *linear_; }
  const std::vector<float>& bias() const { return bias_; }  // [rows] or empty
  StepStage stage() const { return stage_; }                // of its product

 private:
  std::unique_ptr<CpuLinear> linear_;
  std::vector<float> bias_;
  StepStage stage_;
};

class CpuVector final : public DeviceVector {
 public:
  explicit CpuVector(std::vector<float> values) : values_(std::move(values)) {}
  int64_t size() const override { return static_cast<int64_t>(values_.size()); }
  int64_t resident_bytes() const override {
    return static_cast<int64_t>(values_.size() * sizeof(float));
  }
  const float* data() const { return values_.data(); }

 private:
  std::vector<float> values_;
};

// A table, and the table as the output head's matrix, which is packed when it is first multiplied
// with: an embedding that is not the head never is.
class CpuEmbedding final : public DeviceEmbedding {
 public:
  explicit CpuEmbedding(std::shared_ptr<const EncodedLinear> table) : table_(std::move(table)) {}

  int64_t resident_bytes() const override {
    const CpuLinear* const packed = packed_.load(std::memory_order_acquire);
    // Uncompressed weights are multiplied with where they are.
    const bool is_copy = packed != nullptr && table_->codec_name() != "dense";
    return table_->resident_bytes() + (is_copy ? packed->resident_bytes() : 0);
  }

  const EncodedLinear& table() const { return *table_; }
  // For the thread whose step it is.
  const CpuLinear& linear() const {
    if (linear_ == nullptr) {
      linear_ = table_->PackForCpu();
      packed_.store(linear_.get(), std::memory_order_release);
    }
    return *linear_;
  }

 private:
  std::shared_ptr<const EncodedLinear> table_;
  mutable std::unique_ptr<CpuLinear> linear_;
  mutable std::atomic<const CpuLinear*> packed_{nullptr};  // linear_'s, for other threads
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_MEMORY_H_
