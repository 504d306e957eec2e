#include "tests/backends/cuda/device_test.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/dtype.h"
#include "engine/base/random.h"
#include "engine/codecs/dense/dense_codec.h"
#include "engine/codecs/dense/dense_linear.h"
#include "tests/codecs/memory_source.h"

namespace ultrasketch {
namespace {

const absl::StatusOr<std::shared_ptr<Backend>>& CudaBackend() {
  static const auto* const backend =
      new absl::StatusOr<std::shared_ptr<Backend>>(CreateBackend("cuda:0", {.num_threads = 2}));
  return *backend;
}

std::string FolderOf(const char* variable, const char* otherwise) {
  const char* value = std::getenv(variable);
  return value != nullptr ? value : otherwise;
}

}  // namespace

std::shared_ptr<Backend> CudaBackendOrNull() {
  return CudaBackend().ok() ? *CudaBackend() : nullptr;
}

std::string NoCudaReason() { return std::string(CudaBackend().status().message()); }

std::shared_ptr<Backend> CpuBackend() {
  static const auto* const backend =
      new std::shared_ptr<Backend>(*CreateBackend("cpu", {.num_threads = 2}));
  return *backend;
}

std::vector<float> ShortFloats(int64_t count, uint64_t stream, float scale) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const auto value =
        static_cast<float>(NormalDouble(17, stream, static_cast<uint64_t>(i))) * scale;
    values.push_back(Bf16ToFloat(FloatToBf16(value)));
  }
  return values;
}

TestStep::TestStep(const std::vector<Sequence>& sequences, int64_t block_size) {
  // Dealt in turn from the last down, so that no sequence has neighbouring blocks.
  std::vector<int64_t> needed;
  for (const Sequence& sequence : sequences) {
    needed.push_back((sequence.num_cached + sequence.num_tokens + block_size - 1) / block_size);
    num_blocks_ += needed.back();
  }
  blocks_.resize(sequences.size());
  auto next = static_cast<BlockId>(num_blocks_);
  while (next > 0) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (static_cast<int64_t>(blocks_[i].size()) < needed[i]) blocks_[i].push_back(--next);
    }
  }
  Set(sequences);
}

void TestStep::Set(const std::vector<Sequence>& sequences) {
  token_ids_.clear();
  positions_.clear();
  spans_.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& sequence = sequences[i];
    if (sequence.num_tokens == 0) continue;
    spans_.push_back({num_tokens(), sequence.num_tokens, sequence.num_cached, blocks_[i]});
    for (int64_t token = 0; token < sequence.num_tokens; ++token) {
      token_ids_.push_back(static_cast<int32_t>(token_ids_.size()));
      positions_.push_back(static_cast<int32_t>(sequence.num_cached + token));
    }
  }
  logit_tokens_.resize(token_ids_.size());
  std::iota(logit_tokens_.begin(), logit_tokens_.end(), 0);
  input_ = {token_ids_, positions_, spans_, logit_tokens_};
}

std::unique_ptr<DeviceBuffer> MakeActivations(Backend& backend, int64_t num_rows, int64_t width) {
  auto buffer = backend.Allocate(num_rows * width * backend.activation_bytes());
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return *std::move(buffer);
}

std::unique_ptr<DeviceEmbedding> MakeTable(Backend& backend, absl::Span<const float> values,
                                           int64_t width) {
  LinearSite site;
  site.name = "table";
  site.rows = static_cast<int64_t>(values.size()) / width;
  site.cols = width;
  site.members = {{site.name, site.rows, /*has_bias=*/false}};
  const TensorView view = {
      DType::kF32, {site.rows, width}, reinterpret_cast<const uint8_t*>(values.data())};
  auto table = backend.LoadEmbedding(std::make_shared<DenseLinear>(
      std::move(site), std::vector<NamedTensor>{{"table.weight", view}}));
  EXPECT_TRUE(table.ok()) << table.status();
  return *std::move(table);
}

std::unique_ptr<DeviceVector> MakeVector(Backend& backend, absl::Span<const float> values) {
  auto vector = backend.LoadVector({DType::kF32,
                                    {static_cast<int64_t>(values.size())},
                                    reinterpret_cast<const uint8_t*>(values.data())});
  EXPECT_TRUE(vector.ok()) << vector.status();
  return *std::move(vector);
}

std::vector<float> ReadRows(Backend& backend, const DeviceBuffer& buffer, int64_t num_rows,
                            int64_t width) {
  std::vector<float> rows(static_cast<size_t>(num_rows * width));
  for (int64_t row = 0; row < num_rows; ++row) {
    const absl::Status status = backend.CopyLogits(
        buffer, width, row,
        absl::MakeSpan(rows).subspan(static_cast<size_t>(row * width), static_cast<size_t>(width)));
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) break;
  }
  return rows;
}

DenseExample::DenseExample(int64_t rows, int64_t cols, uint64_t stream) {
  auto memory = std::make_unique<MemorySource>();
  LinearSite site;
  site.name = "model.layers.0.mlp_input";
  site.rows = rows;
  site.cols = cols;
  site.members = {{"a", rows, false}};
  std::vector<uint16_t> weights;
  for (const float value :
       ShortFloats(rows * cols, stream, 1.0f / std::sqrt(static_cast<float>(cols)))) {
    weights.push_back(FloatToBf16(value));
  }
  memory->Set("a.weight", DType::kBF16, {rows, cols}, weights);
  auto loaded = GetDenseCodec().Load(site, *memory, nlohmann::json());
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  linear = *std::move(loaded);
  source = std::move(memory);
}

DenseExample::~DenseExample() = default;

double RelativeError(absl::Span<const float> found, absl::Span<const float> expected) {
  EXPECT_EQ(found.size(), expected.size());
  double error = 0;
  double total = 0;
  for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    if (!std::isfinite(found[i])) return std::numeric_limits<double>::infinity();
    const double difference = double{found[i]} - double{expected[i]};
    error += difference * difference;
    total += double{expected[i]} * double{expected[i]};
  }
  return std::sqrt(error / total);
}

std::string TestDataFolder() { return FolderOf("ULTRASKETCH_TEST_DATA_DIR", TEST_DATA_DIR); }
std::string SampleModelFolder() {
  return FolderOf("ULTRASKETCH_SAMPLE_MODEL_DIR", SAMPLE_MODEL_DIR);
}

}  // namespace ultrasketch
