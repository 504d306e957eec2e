#include "engine/compress/cuda/cuda_fit_device.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/compress/cuda/cuda_moments.h"
#include "engine/compress/cuda/fit_kernels.h"
#include "engine/compress/cuda/fit_memory.h"

namespace ultrasketch::cuda {
namespace {

// Enough for every product to have more tiles than a device has multiprocessors.
constexpr int64_t kBatchTokens = 16384;

// Rows of a table that are converted at once.
constexpr int64_t kTableRows = 256;

class CudaFitArray final : public FitArray {
 public:
  explicit CudaFitArray(Array<float> values)
      : FitArray(values.data(), values.size()), values_(std::move(values)) {}

 private:
  const Array<float> values_;
};

class CudaFitDevice final : public FitDevice {
 public:
  CudaFitDevice(std::unique_ptr<FitMemory> memory, ParallelLoop loop)
      : memory_(std::move(memory)), loop_(std::move(loop)) {}

  absl::Status Start() {
    US_ASSIGN_OR_RETURN(workspace_, memory_->Allocate<uint8_t>(kFitWorkspaceBytes));
    return absl::OkStatus();
  }

  std::string_view name() const override { return memory_->device().name(); }
  std::string description() const override { return memory_->device().description(); }
  int64_t batch_tokens() const override { return kBatchTokens; }
  int64_t available_bytes() const override { return memory_->available_bytes(); }
  int64_t peak_bytes() const override { return memory_->peak_bytes(); }
  int64_t workspace_bytes() const override { return kFitWorkspaceBytes; }

  absl::StatusOr<std::unique_ptr<FitArray>> Allocate(int64_t size) override {
    US_RETURN_IF_ERROR(kept_);
    US_ASSIGN_OR_RETURN(Array<float> values, memory_->Allocate<float>(size));
    return std::make_unique<CudaFitArray>(std::move(values));
  }
  absl::Status Upload(absl::Span<const float> values, float* to) override {
    return memory_->Upload<float>(values, to);
  }
  absl::Status Download(const float* from, absl::Span<float> values) override {
    US_RETURN_IF_ERROR(memory_->Download<float>(from, values));
    return kept_;
  }
  void Copy(const float* from, int64_t count, float* to) override {
    memory_->device().Activate();
    memory_->device().Check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(float),
                                            cudaMemcpyDeviceToDevice, memory_->stream()),
                            "cudaMemcpyAsync on the device");
  }
  void CopyRows(const float* from, int64_t width, absl::Span<const int64_t> rows,
                float* to) override {
    memory_->device().Activate();
    const auto loaded = memory_->Load<int64_t>(rows);
    if (!Keep(loaded.status())) return;
    LaunchCopyRows(from, width, loaded->data(), static_cast<int64_t>(rows.size()), to,
                   memory_->stream());
    memory_->Check("copy of rows");
  }

  absl::StatusOr<std::unique_ptr<FitProduct>> LoadDense(const LinearSite& site,
                                                        absl::Span<const float> weights,
                                                        absl::Span<const float> bias) override {
    US_ASSIGN_OR_RETURN(Array<float> loaded, memory_->Load<float>(weights));
    US_ASSIGN_OR_RETURN(Array<float> loaded_bias, memory_->Load<float>(bias));
    return std::make_unique<CudaProduct>(*memory_, site.rows, site.cols, std::move(loaded),
                                         std::move(loaded_bias));
  }

  // Decoded by CPUs.
  absl::StatusOr<std::unique_ptr<FitProduct>> LoadEncoded(const EncodedLinear& encoded,
                                                          absl::Span<const float> bias) override {
    const LinearSite& site = encoded.site();
    decoded_.resize(static_cast<size_t>(site.rows * site.cols));
    loop_(site.rows, 1, [&](int64_t begin, int64_t end, int) {
      encoded.DecodeRows(begin, end - begin, decoded_.data() + begin * site.cols);
    });
    return LoadDense(site, decoded_, bias);
  }

  absl::StatusOr<std::unique_ptr<FitProduct>> LoadHead(const TensorView& head) override {
    const int64_t rows = head.shape[0];
    const int64_t cols = head.shape[1];
    US_ASSIGN_OR_RETURN(Array<float> loaded, memory_->Allocate<float>(rows * cols));
    // Parts that all threads convert together.
    const int64_t rows_at_once = 64 * kTableRows;
    for (int64_t first = 0; first < rows; first += rows_at_once) {
      const int64_t count = std::min(rows_at_once, rows - first);
      decoded_.resize(static_cast<size_t>(count * cols));
      loop_(count, kTableRows, [&](int64_t begin, int64_t end, int) {
        CopyToFloat(head, (first + begin) * cols, (end - begin) * cols,
                    decoded_.data() + begin * cols);
      });
      US_RETURN_IF_ERROR(memory_->Upload<float>(decoded_, loaded.data() + first * cols));
    }
    return std::make_unique<CudaProduct>(*memory_, rows, cols, std::move(loaded), Array<float>());
  }

  absl::StatusOr<std::unique_ptr<FitMoments>> MakeMoments(const LinearSite& site,
                                                          const FitProduct& dense) override {
    return std::make_unique<CudaMoments>(*memory_, workspace_.data(), site,
                                         static_cast<const CudaProduct&>(dense));
  }
  absl::StatusOr<std::unique_ptr<FitMoments>> LoadMoments(const LinearSite& site,
                                                          const FitProduct& dense,
                                                          SiteMoments moments) override {
    auto loaded = std::make_unique<CudaMoments>(*memory_, workspace_.data(), site,
                                                static_cast<const CudaProduct&>(dense));
    US_RETURN_IF_ERROR(loaded->Load(std::move(moments)));
    return loaded;
  }

  void Normalize(const float* hidden, const FitArray& weight, float epsilon, int64_t num_tokens,
                 float* out) override {
    memory_->device().Activate();
    LaunchNormalize(hidden, weight.data(), epsilon, num_tokens, weight.size(), out,
                    memory_->stream());
    memory_->Check("norm");
  }

  void Attend(const FitAttention& attention, absl::Span<const int64_t> window_tokens, float* qkv,
              float* out) override {
    memory_->device().Activate();
    if (!Keep(LoadWindows(window_tokens))) return;
    if (attention.head_dim > kMostHeadDim) {
      Keep(absl::UnimplementedError(absl::StrCat("attention on a GPU: expected heads of at most ",
                                                 kMostHeadDim, ", found ", attention.head_dim)));
      return;
    }
    const auto values = [](const FitArray* array) {
      return array != nullptr ? array->data() : nullptr;
    };
    AttentionArguments arguments;
    arguments.num_heads = attention.num_heads;
    arguments.num_kv_heads = attention.num_kv_heads;
    arguments.head_dim = attention.head_dim;
    arguments.epsilon = attention.epsilon;
    arguments.query_norm = values(attention.query_norm);
    arguments.key_norm = values(attention.key_norm);
    arguments.inverse_frequencies = values(attention.inverse_frequencies);
    arguments.first_tokens = first_tokens_.data();
    arguments.num_tokens = first_tokens_.size();
    LaunchAttention(arguments, tiles_.data(), static_cast<int>(tiles_.size()), qkv, out,
                    memory_->stream());
    memory_->Check("attention");
  }

  void Gate(const float* gate_up, int64_t width, int64_t num_tokens, float* out) override {
    memory_->device().Activate();
    LaunchGate(gate_up, width, num_tokens, out, memory_->stream());
    memory_->Check("gate");
  }

  void Add(const float* values, int64_t count, float* out) override {
    memory_->device().Activate();
    LaunchAdd(values, count, out, memory_->stream());
    memory_->Check("addition");
  }

  absl::StatusOr<SquareSums> Compare(const float* a, const float* b, int64_t count) override {
    memory_->device().Activate();
    auto* const sums = reinterpret_cast<double*>(workspace_.data());
    LaunchCompare(a, b, count, sums, memory_->stream());
    memory_->Check("comparison");
    std::vector<double> values(2 * kCompareBlocks);
    US_RETURN_IF_ERROR(memory_->Download<double>(sums, absl::MakeSpan(values)));
    US_RETURN_IF_ERROR(kept_);
    SquareSums result;
    for (size_t i = 0; i < values.size(); i += 2) {
      result.error += values[i];
      result.energy += values[i + 1];
    }
    return result;
  }

  absl::Status CrossEntropies(const float* reference, const float* logits, int64_t num_tokens,
                              int64_t vocab_size, absl::Span<const double> scales,
                              absl::Span<double> losses) override {
    US_CHECK(losses.size() == static_cast<size_t>(num_tokens) * scales.size());
    US_ASSIGN_OR_RETURN(const Array<double> loaded, memory_->Load<double>(scales));
    US_ASSIGN_OR_RETURN(const Array<double> found,
                        memory_->Allocate<double>(static_cast<int64_t>(losses.size())));
    LaunchCrossEntropies(reference, logits, num_tokens, vocab_size, loaded.data(),
                         static_cast<int>(scales.size()), found.data(), memory_->stream());
    memory_->Check("cross-entropies");
    US_RETURN_IF_ERROR(memory_->Download<double>(found.data(), losses));
    return kept_;
  }

 private:
  // Keeps the first error of a function that returns none, for the next one that does.
  bool Keep(const absl::Status& status) {
    if (!status.ok() && kept_.ok()) kept_ = status;
    return status.ok();
  }

  absl::Status LoadWindows(absl::Span<const int64_t> window_tokens) {
    if (window_tokens == absl::MakeConstSpan(window_tokens_)) return absl::OkStatus();
    std::vector<int> first_tokens;
    std::vector<QueryTile> tiles;
    int first = 0;
    for (const int64_t count : window_tokens) {
      first_tokens.insert(first_tokens.end(), static_cast<size_t>(count), first);
      for (int64_t query = 0; query < count; query += kQueriesPerTile) {
        tiles.push_back({first + static_cast<int>(query),
                         static_cast<int>(std::min<int64_t>(kQueriesPerTile, count - query))});
      }
      first += static_cast<int>(count);
    }
    // Long ones first: what a query has to do grows with its place in the window.
    std::stable_sort(tiles.begin(), tiles.end(), [&](const QueryTile& a, const QueryTile& b) {
      const auto place = [&](const QueryTile& tile) {
        return tile.first_token - first_tokens[static_cast<size_t>(tile.first_token)];
      };
      return place(a) > place(b);
    });
    window_tokens_.clear();
    US_ASSIGN_OR_RETURN(first_tokens_, memory_->Load<int>(first_tokens));
    US_ASSIGN_OR_RETURN(tiles_, memory_->Load<QueryTile>(tiles));
    window_tokens_.assign(window_tokens.begin(), window_tokens.end());
    return absl::OkStatus();
  }

  const std::unique_ptr<FitMemory> memory_;
  const ParallelLoop loop_;
  Array<uint8_t> workspace_;
  absl::Status kept_;
  std::vector<float> decoded_;
  // Of the last text that attention went over.
  std::vector<int64_t> window_tokens_;
  Array<int> first_tokens_;
  Array<QueryTile> tiles_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FitDevice>> CreateCudaFitDevice(int ordinal,
                                                               const ParallelLoop& loop) {
  US_ASSIGN_OR_RETURN(std::unique_ptr<FitMemory> memory, FitMemory::Create(ordinal));
  auto device = std::make_unique<CudaFitDevice>(std::move(memory), loop);
  US_RETURN_IF_ERROR(device->Start());
  return device;
}

}  // namespace ultrasketch::cuda
