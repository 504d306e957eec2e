// Where the arithmetic of a compression is done: on CPUs, or on a CUDA device by a plug-in. What is
// computed, and in which order, is written once, in terms of this interface (layer_fit.h,
// sensitivity.h).
//
// Matrices of activations are float, row-major with one row a token, in the device's memory: what
// `const float*` and `float*` point to below unless it says otherwise. Operations may be
// asynchronous; what goes wrong in them is reported by the next function that returns a status. One
// thread at a time. No result depends on the number of threads.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FIT_DEVICE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FIT_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "engine/base/tensor.h"
#include "engine/base/thread_pool.h"
#include "engine/codecs/codec.h"
#include "engine/codecs/fold/fold_layout.h"
#include "engine/codecs/linear_site.h"
#include "engine/compress/fold_fit.h"
#include "engine/compress/site_moments.h"

namespace ultrasketch {

// Floats in a device's memory, not initialized. Must not outlive its device.
class FitArray {
 public:
  virtual ~FitArray() = default;
  float* data() const { return data_; }
  int64_t size() const { return size_; }

 protected:
  FitArray(float* data, int64_t size) : data_(data), size_(size) {}

  float* data_;
  int64_t size_;
};

// A site's weights W [rows, cols], ready to be multiplied. Must not outlive its device.
class FitProduct {
 public:
  virtual ~FitProduct() = default;
  // y [num_tokens, rows] = W x + bias, with x [num_tokens, cols].
  virtual void Apply(const float* x, int64_t num_tokens, float* y) = 0;
};

// The second moments of a site (SiteMoments) on a device. Tokens are added by one of the two Add
// functions, all by the same; then Complete; then the rest.
class FitMoments {
 public:
  virtual ~FitMoments() = default;

  // Adds tokens with the input x [num_tokens, cols] and the output W u, W being the dense weights
  // and u `dense_x` [num_tokens, cols].
  virtual absl::Status AddInputs(const float* dense_x, const float* x, int64_t num_tokens) = 0;

  // Adds tokens with the input x and the output dense - compressed - bias: the residual streams
  // [num_tokens, rows], of which the dense one is past the site already.
  virtual absl::Status AddResiduals(const float* x, const float* dense, const float* compressed,
                                    int64_t num_tokens) = 0;

  virtual absl::Status Complete() = 0;

  // The diagonal of sum x x^T [cols], in the host's memory.
  virtual absl::StatusOr<std::vector<double>> InputEnergies() = 0;

  // FitFold of the moments folded by `layout`, to which are added those of `prior` tokens' worth of
  // uncorrelated inputs of unit variance with the output W x.
  virtual absl::StatusOr<FoldFit> FitFolded(const FoldLayout& layout, double prior) = 0;

  // RelativeOutputError and FitChannelFactors of `compressed`, a product of the same device for the
  // site's encoded form.
  virtual absl::StatusOr<double> OutputError(const FitProduct& compressed) = 0;
  virtual absl::StatusOr<std::vector<double>> ChannelFactors(const FitProduct& compressed) = 0;

  // Valid as long as this object.
  virtual absl::StatusOr<const SiteMoments*> OnHost() = 0;
};

// The attention of a layer; arrays as in WindowAttention (decoder_math.h), null where there is
// none.
struct FitAttention {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float epsilon = 0;
  const FitArray* query_norm = nullptr;
  const FitArray* key_norm = nullptr;
  const FitArray* inverse_frequencies = nullptr;
};

struct SquareSums {
  double error = 0;   // |a - b|^2
  double energy = 0;  // |b|^2
};

class FitDevice {
 public:
  virtual ~FitDevice() = default;

  virtual std::string_view name() const = 0;  // "cpu", "cuda:0"
  virtual std::string description() const = 0;

  // Tokens that should go through a site together.
  virtual int64_t batch_tokens() const = 0;

  // Bytes of memory beside the host's: what the compression could take now, the most that it has
  // held so far, and what the device holds for itself. 0 on CPUs.
  virtual int64_t available_bytes() const = 0;
  virtual int64_t peak_bytes() const = 0;
  virtual int64_t workspace_bytes() const = 0;

  // --- Memory. RESOURCE_EXHAUSTED with bytes needed and available. ---
  virtual absl::StatusOr<std::unique_ptr<FitArray>> Allocate(int64_t size) = 0;
  virtual absl::Status Upload(absl::Span<const float> values, float* to) = 0;
  virtual absl::Status Download(const float* from, absl::Span<float> values) = 0;
  virtual void Copy(const float* from, int64_t count, float* to) = 0;
  // to [rows.size(), width] = the given rows of `from`.
  virtual void CopyRows(const float* from, int64_t width, absl::Span<const int64_t> rows,
                        float* to) = 0;

  // --- Weights. `weights` [site.rows, site.cols], `bias` [site.rows] or empty and what `encoded`
  // refers to are the host's and must outlive the result. ---
  virtual absl::StatusOr<std::unique_ptr<FitProduct>> LoadDense(const LinearSite& site,
                                                                absl::Span<const float> weights,
                                                                absl::Span<const float> bias) = 0;
  virtual absl::StatusOr<std::unique_ptr<FitProduct>> LoadEncoded(const EncodedLinear& encoded,
                                                                  absl::Span<const float> bias) = 0;
  // A table [vocab_size, hidden_size] of a floating type, as a site without bias.
  virtual absl::StatusOr<std::unique_ptr<FitProduct>> LoadHead(const TensorView& head) = 0;

  // --- Moments. `dense` is the site's product of LoadDense and must outlive the result. ---
  virtual absl::StatusOr<std::unique_ptr<FitMoments>> MakeMoments(const LinearSite& site,
                                                                  const FitProduct& dense) = 0;
  // Complete ones.
  virtual absl::StatusOr<std::unique_ptr<FitMoments>> LoadMoments(const LinearSite& site,
                                                                  const FitProduct& dense,
                                                                  SiteMoments moments) = 0;

  // --- Between the sites: decoder_math.h ---
  virtual void Normalize(const float* hidden, const FitArray& weight, float epsilon,
                         int64_t num_tokens, float* out) = 0;
  virtual void Attend(const FitAttention& attention, absl::Span<const int64_t> window_tokens,
                      float* qkv, float* out) = 0;
  virtual void Gate(const float* gate_up, int64_t width, int64_t num_tokens, float* out) = 0;

  // out [count] += values.
  virtual void Add(const float* values, int64_t count, float* out) = 0;
  virtual absl::StatusOr<SquareSums> Compare(const float* a, const float* b, int64_t count) = 0;

  // losses [num_tokens, scales.size()], in the host's memory: the cross-entropy of softmax(scale *
  // logits) against softmax(reference), both [num_tokens, vocab_size], in nats.
  virtual absl::Status CrossEntropies(const float* reference, const float* logits,
                                      int64_t num_tokens, int64_t vocab_size,
                                      absl::Span<const double> scales,
                                      absl::Span<double> losses) = 0;
};

// `device` is "cpu", "cuda", "cuda:N" or "auto" (a CUDA device when there is one and this build has
// the plug-in, else the CPU). The pool must outlive the result. INVALID_ARGUMENT for anything else,
// UNAVAILABLE when there is no such device.
absl::StatusOr<std::unique_ptr<FitDevice>> CreateFitDevice(std::string_view device,
                                                           ThreadPool& pool);

// --- Between executables and the plug-in. ---

inline constexpr const char* kCudaFitPluginFile = "libultrasketch_cuda_compress.so";

// The executable's threads (ThreadPool::ParallelFor), for what a device leaves to CPUs. Not the
// pool itself: its locks are those of the executable's Abseil, of which the plug-in has another
// copy.
using ParallelLoop =
    std::function<void(int64_t num_items, int64_t grain,
                       absl::FunctionRef<void(int64_t begin, int64_t end, int thread)> body)>;

// Exported by the plug-in. Sets `*result`.
inline constexpr const char* kCudaFitCreateSymbol = "ultrasketch_cuda_compress_create";
using CudaFitCreateFunction = void (*)(int ordinal, const ParallelLoop& loop,
                                       absl::StatusOr<std::unique_ptr<FitDevice>>* result);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FIT_DEVICE_H_
