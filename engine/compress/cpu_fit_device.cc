#include "engine/compress/cpu_fit_device.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/codecs/cpu_linear.h"
#include "engine/compress/decoder_math.h"
#include "engine/compress/dense_site.h"
#include "engine/compress/fold_encoder.h"
#include "engine/compress/norm_refit.h"
#include "engine/compress/products.h"

namespace ultrasketch {
namespace {

constexpr int64_t kBatchTokens = 2048;

class CpuArray final : public FitArray {
 public:
  explicit CpuArray(int64_t size)
      : FitArray(nullptr, size), values_(new float[static_cast<size_t>(size)]) {
    data_ = values_.get();
  }

 private:
  // Pages come with their first use.
  const std::unique_ptr<float[]> values_;
};

absl::Span<const float> Values(const FitArray* array) {
  if (array == nullptr) return {};
  return {array->data(), static_cast<size_t>(array->size())};
}

class DenseProduct final : public FitProduct {
 public:
  DenseProduct(const LinearSite& site, absl::Span<const float> weights,
               absl::Span<const float> bias, ThreadPool& pool)
      : rows_(site.rows),
        cols_(site.cols),
        weights_(weights),
        bias_(bias),
        transposed_(weights.size()),
        pool_(pool) {
    Transpose(weights.data(), rows_, cols_, transposed_.data(), pool);
  }

  void Apply(const float* x, int64_t num_tokens, float* y) override {
    MultiplyTransposed(x, transposed_.data(), num_tokens, rows_, cols_, y, pool_);
    AddBias(bias_, num_tokens, rows_, y);
  }

  absl::Span<const float> weights() const { return weights_; }
  absl::Span<const float> bias() const { return bias_; }

 private:
  const int64_t rows_;
  const int64_t cols_;
  const absl::Span<const float> weights_;
  const absl::Span<const float> bias_;
  std::vector<float> transposed_;
  ThreadPool& pool_;
};

// With the kernels that a served model has.
class EncodedProduct final : public FitProduct {
 public:
  EncodedProduct(const EncodedLinear& encoded, absl::Span<const float> bias, ThreadPool& pool)
      : encoded_(encoded), linear_(encoded.PackForCpu()), bias_(bias), pool_(pool) {}

  void Apply(const float* x, int64_t num_tokens, float* y) override {
    const int64_t width = linear_->prepared_width();
    prepared_.resize(static_cast<size_t>(num_tokens * width));
    pool_.ParallelFor(num_tokens, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; ++token) {
        linear_->PrepareInput(x + token * linear_->cols(), prepared_.data() + token * width);
      }
    });
    linear_->Multiply(prepared_.data(), num_tokens, false, y, pool_);
    AddBias(bias_, num_tokens, linear_->rows(), y);
  }

  const EncodedLinear& encoded() const { return encoded_; }

 private:
  const EncodedLinear& encoded_;
  const std::unique_ptr<CpuLinear> linear_;
  const absl::Span<const float> bias_;
  std::vector<float> prepared_;
  ThreadPool& pool_;
};

// Some of the head's rows at a time, as float.
class HeadProduct final : public FitProduct {
 public:
  HeadProduct(TensorView head, ThreadPool& pool) : head_(std::move(head)), pool_(pool) {}

  void Apply(const float* x, int64_t num_tokens, float* y) override {
    const int64_t vocab_size = head_.shape[0];
    const int64_t width = head_.shape[1];
    for (int64_t first = 0; first < vocab_size; first += kCpuHeadRowsAtOnce) {
      const int64_t count = std::min(kCpuHeadRowsAtOnce, vocab_size - first);
      rows_.resize(static_cast<size_t>(count * width));
      transposed_.resize(rows_.size());
      part_.resize(static_cast<size_t>(num_tokens * count));
      CopyToFloat(head_, first * width, count * width, rows_.data());
      Transpose(rows_.data(), count, width, transposed_.data(), pool_);
      MultiplyTransposed(x, transposed_.data(), num_tokens, count, width, part_.data(), pool_);
      for (int64_t token = 0; token < num_tokens; ++token) {
        std::copy_n(part_.data() + token * count, count, y + token * vocab_size + first);
      }
    }
  }

 private:
  const TensorView head_;
  std::vector<float> rows_;
  std::vector<float> transposed_;
  std::vector<float> part_;
  ThreadPool& pool_;
};

class CpuMoments final : public FitMoments {
 public:
  CpuMoments(const LinearSite& site, const FitProduct& dense, ThreadPool& pool)
      : site_(site), dense_(static_cast<const DenseProduct&>(dense)), pool_(pool) {}
  CpuMoments(const LinearSite& site, const FitProduct& dense, SiteMoments sums, ThreadPool& pool)
      : site_(site),
        dense_(static_cast<const DenseProduct&>(dense)),
        pool_(pool),
        sums_(std::move(sums)) {}

  absl::Status AddInputs(const float* dense_x, const float* x, int64_t num_tokens) override {
    const int64_t cols = site_.cols;
    if (sums_.input.size() == 0) {
      sums_.input.setZero(cols, cols);
      dense_input_.setZero(cols, cols);
      dense_cross_.setZero(cols, cols);
    }
    AddSelfProducts(x, cols, num_tokens, sums_.input.data(), pool_);
    AddOuterProducts(dense_x, cols, x, cols, num_tokens, dense_cross_.data(), pool_);
    AddSelfProducts(dense_x, cols, num_tokens, dense_input_.data(), pool_);
    return absl::OkStatus();
  }

  absl::Status AddResiduals(const float* x, const float* dense, const float* compressed,
                            int64_t num_tokens) override {
    const int64_t cols = site_.cols;
    const int64_t rows = site_.rows;
    if (sums_.input.size() == 0) {
      sums_.input.setZero(cols, cols);
      sums_.cross.setZero(rows, cols);
      sums_.output.setZero(rows);
    }
    target_.resize(static_cast<size_t>(num_tokens * rows));
    for (int64_t token = 0; token < num_tokens; ++token) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t place = token * rows + i;
        float value = dense[place] - compressed[place];
        if (!dense_.bias().empty()) value -= dense_.bias()[static_cast<size_t>(i)];
        target_[static_cast<size_t>(place)] = value;
        sums_.output(i) += static_cast<double>(value) * value;
      }
    }
    AddSelfProducts(x, cols, num_tokens, sums_.input.data(), pool_);
    AddOuterProducts(target_.data(), rows, x, cols, num_tokens, sums_.cross.data(), pool_);
    return absl::OkStatus();
  }

  absl::Status Complete() override {
    CompleteSymmetric(site_.cols, sums_.input.data());
    target_ = {};
    if (dense_input_.size() == 0) return absl::OkStatus();
    CompleteSymmetric(site_.cols, dense_input_.data());
    SetOutputMoments(site_, dense_.weights(), dense_input_, dense_cross_, sums_, pool_);
    dense_input_.resize(0, 0);
    dense_cross_.resize(0, 0);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<double>> InputEnergies() override {
    const Eigen::VectorXd diagonal = sums_.input.diagonal();
    return std::vector<double>(diagonal.data(), diagonal.data() + diagonal.size());
  }

  absl::StatusOr<FoldFit> FitFolded(const FoldLayout& layout, double prior) override {
    return FitFold(FoldTheMoments(layout, sums_, dense_.weights(), prior, pool_),
                   PlanesOfGroups(layout), {}, pool_);
  }

  absl::StatusOr<double> OutputError(const FitProduct& compressed) override {
    return RelativeOutputError(static_cast<const EncodedProduct&>(compressed).encoded(), sums_,
                               pool_);
  }

  absl::StatusOr<std::vector<double>> ChannelFactors(const FitProduct& compressed) override {
    return FitChannelFactors(static_cast<const EncodedProduct&>(compressed).encoded(), sums_,
                             pool_);
  }

  absl::StatusOr<const SiteMoments*> OnHost() override { return &sums_; }

 private:
  const LinearSite& site_;
  const DenseProduct& dense_;
  ThreadPool& pool_;
  SiteMoments sums_;
  RowMajorMatrix dense_input_;  // of a site whose outputs are W u: sum of u u^T
  RowMajorMatrix dense_cross_;  // and of u x^T
  std::vector<float> target_;
};

// Cross-entropies of one token.
void TokenCrossEntropies(const float* reference, const float* logits, int64_t vocab_size,
                         absl::Span<const double> scales, double* losses) {
  const float reference_maximum = *std::max_element(reference, reference + vocab_size);
  const float maximum = *std::max_element(logits, logits + vocab_size);
  double weighted = 0;
  const double reference_sum =
      SumOfExp(reference, reference_maximum, 1.0f, logits, vocab_size, weighted);
  const double expected = weighted / reference_sum;  // the logit under the reference
  for (const double scale : scales) {
    double ignored = 0;
    const double sum =
        SumOfExp(logits, maximum, static_cast<float>(scale), logits, vocab_size, ignored);
    *losses++ = std::log(sum) + scale * (maximum - expected);
  }
}

class CpuFitDevice final : public FitDevice {
 public:
  explicit CpuFitDevice(ThreadPool& pool) : pool_(pool) {}

  std::string_view name() const override { return "cpu"; }
  std::string description() const override { return "cpu"; }
  int64_t batch_tokens() const override { return kBatchTokens; }
  int64_t available_bytes() const override { return 0; }
  int64_t peak_bytes() const override { return 0; }
  int64_t workspace_bytes() const override { return 0; }

  absl::StatusOr<std::unique_ptr<FitArray>> Allocate(int64_t size) override {
    return std::make_unique<CpuArray>(size);
  }
  absl::Status Upload(absl::Span<const float> values, float* to) override {
    std::copy(values.begin(), values.end(), to);
    return absl::OkStatus();
  }
  absl::Status Download(const float* from, absl::Span<float> values) override {
    std::copy_n(from, values.size(), values.begin());
    return absl::OkStatus();
  }
  void Copy(const float* from, int64_t count, float* to) override { std::copy_n(from, count, to); }
  void CopyRows(const float* from, int64_t width, absl::Span<const int64_t> rows,
                float* to) override {
    for (const int64_t row : rows) to = std::copy_n(from + row * width, width, to);
  }

  absl::StatusOr<std::unique_ptr<FitProduct>> LoadDense(const LinearSite& site,
                                                        absl::Span<const float> weights,
                                                        absl::Span<const float> bias) override {
    return std::make_unique<DenseProduct>(site, weights, bias, pool_);
  }
  absl::StatusOr<std::unique_ptr<FitProduct>> LoadEncoded(const EncodedLinear& encoded,
                                                          absl::Span<const float> bias) override {
    return std::make_unique<EncodedProduct>(encoded, bias, pool_);
  }
  absl::StatusOr<std::unique_ptr<FitProduct>> LoadHead(const TensorView& head) override {
    return std::make_unique<HeadProduct>(head, pool_);
  }

  absl::StatusOr<std::unique_ptr<FitMoments>> MakeMoments(const LinearSite& site,
                                                          const FitProduct& dense) override {
    return std::make_unique<CpuMoments>(site, dense, pool_);
  }
  absl::StatusOr<std::unique_ptr<FitMoments>> LoadMoments(const LinearSite& site,
                                                          const FitProduct& dense,
                                                          SiteMoments moments) override {
    return std::make_unique<CpuMoments>(site, dense, std::move(moments), pool_);
  }

  void Normalize(const float* hidden, const FitArray& weight, float epsilon, int64_t num_tokens,
                 float* out) override {
    NormalizeRows(hidden, Values(&weight), epsilon, num_tokens, out, pool_);
  }
  void Attend(const FitAttention& attention, absl::Span<const int64_t> window_tokens, float* qkv,
              float* out) override {
    WindowAttention window;
    window.num_heads = attention.num_heads;
    window.num_kv_heads = attention.num_kv_heads;
    window.head_dim = attention.head_dim;
    window.epsilon = attention.epsilon;
    window.query_norm = Values(attention.query_norm);
    window.key_norm = Values(attention.key_norm);
    window.inverse_frequencies = Values(attention.inverse_frequencies);
    AttendWindows(window, window_tokens, qkv, out, pool_);
  }
  void Gate(const float* gate_up, int64_t width, int64_t num_tokens, float* out) override {
    GateRows(gate_up, width, num_tokens, out, pool_);
  }
  void Add(const float* values, int64_t count, float* out) override {
    for (int64_t i = 0; i < count; ++i) out[i] += values[i];
  }
  absl::StatusOr<SquareSums> Compare(const float* a, const float* b, int64_t count) override {
    SquareSums sums;
    for (int64_t i = 0; i < count; ++i) {
      const double difference = static_cast<double>(a[i]) - b[i];
      sums.error += difference * difference;
      sums.energy += static_cast<double>(b[i]) * b[i];
    }
    return sums;
  }
  absl::Status CrossEntropies(const float* reference, const float* logits, int64_t num_tokens,
                              int64_t vocab_size, absl::Span<const double> scales,
                              absl::Span<double> losses) override {
    US_CHECK(losses.size() == static_cast<size_t>(num_tokens) * scales.size());
    pool_.ParallelFor(num_tokens, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t token = begin; token < end; ++token) {
        TokenCrossEntropies(reference + token * vocab_size, logits + token * vocab_size, vocab_size,
                            scales, losses.data() + static_cast<size_t>(token) * scales.size());
      }
    });
    return absl::OkStatus();
  }

 private:
  ThreadPool& pool_;
};

}  // namespace

std::unique_ptr<FitDevice> MakeCpuFitDevice(ThreadPool& pool) {
  return std::make_unique<CpuFitDevice>(pool);
}

}  // namespace ultrasketch
