// Running the same operations on the CPU and on a CUDA device.
#ifndef ULTRASKETCH_TESTS_BACKENDS_CUDA_DEVICE_TEST_H_
#define ULTRASKETCH_TESTS_BACKENDS_CUDA_DEVICE_TEST_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"

#include "engine/backends/backend.h"
#include "engine/codecs/codec.h"

namespace ultrasketch {

// The device's backend, created once; null when there is none.
std::shared_ptr<Backend> CudaBackendOrNull();
std::shared_ptr<Backend> CpuBackend();
// Why it is null.
std::string NoCudaReason();

// Skips without a device.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (CudaBackendOrNull() == nullptr) GTEST_SKIP() << NoCudaReason();
  }
};

template <typename Parameter>
class CudaTestWithParam : public ::testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    if (CudaBackendOrNull() == nullptr) GTEST_SKIP() << NoCudaReason();
  }
};

// Normally distributed numbers that fp16 and bfloat16 both hold exactly.
std::vector<float> ShortFloats(int64_t count, uint64_t stream, float scale = 1.0f);

// A step's input with its storage.
class TestStep {
 public:
  struct Sequence {
    int64_t num_cached = 0;
    int64_t num_tokens = 0;
  };

  // Token ids count from 0; every token's logits are wanted. Sequences take blocks of `block_size`
  // in a scattered order.
  explicit TestStep(const std::vector<Sequence>& sequences, int64_t block_size = 16);
  explicit TestStep(int64_t num_tokens) : TestStep({{0, num_tokens}}) {}

  // The same sequences at another point: blocks stay.
  void Set(const std::vector<Sequence>& sequences);

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  int64_t num_blocks() const { return num_blocks_; }
  const StepInput& input() const { return input_; }

 private:
  int64_t num_blocks_ = 0;
  std::vector<std::vector<BlockId>> blocks_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> logit_tokens_;
  std::vector<AttentionSpan> spans_;
  StepInput input_;
};

// [num_rows, width] in device memory, of activations.
std::unique_ptr<DeviceBuffer> MakeActivations(Backend& backend, int64_t num_rows, int64_t width);

// A [num_rows, width] table whose rows a step's Embed copies. `values` must outlive it on a CPU.
std::unique_ptr<DeviceEmbedding> MakeTable(Backend& backend, absl::Span<const float> values,
                                           int64_t width);
std::unique_ptr<DeviceVector> MakeVector(Backend& backend, absl::Span<const float> values);

// Rows of a buffer of floats.
std::vector<float> ReadRows(Backend& backend, const DeviceBuffer& buffer, int64_t num_rows,
                            int64_t width);

// A dense site of random BF16 weights.
struct DenseExample {
  explicit DenseExample(int64_t rows, int64_t cols, uint64_t stream);
  ~DenseExample();
  std::unique_ptr<TensorSource> source;
  std::unique_ptr<EncodedLinear> linear;
};

// |found - expected| / |expected|; infinite when a number is not finite.
double RelativeError(absl::Span<const float> found, absl::Span<const float> expected);

// Folders of the tests' data and of the sample model: from the environment's
// ULTRASKETCH_TEST_DATA_DIR and ULTRASKETCH_SAMPLE_MODEL_DIR, or where they were when the test was
// built.
std::string TestDataFolder();
std::string SampleModelFolder();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_BACKENDS_CUDA_DEVICE_TEST_H_
