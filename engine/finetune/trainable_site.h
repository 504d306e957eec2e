// A compressed linear site as something to train: real values behind its bits or levels, and its
// row scales. The forward pass uses what would be stored; the gradient passes straight through the
// rounding (Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013),
// as far as the value lies within the range of what can be stored.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_SITE_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_SITE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include <ATen/core/Tensor.h>

#include "engine/codecs/codec.h"
#include "engine/finetune/parameter_store.h"

namespace ultrasketch {

// What the values behind the bits start from.
enum class LatentStart : uint8_t {
  // The compressed model: its bits, scales and levels stay. How firmly each value holds its bit
  // follows from the dense weights.
  kStudent,
  // The dense weights alone: only the hash and the classes of the compressed model stay.
  kTeacher,
};

// Of AbsMaxMin: what a weight's gradient goes to.
enum class SketchGradient : uint8_t {
  // The bucket that the query returned.
  kChosen,
  // The weights that are sketched anew in every step: Zou et al. (arXiv 2506.17255), section 3.3.
  kAll,
};

struct TrainableSiteOptions {
  LatentStart start = LatentStart::kStudent;
  SketchGradient sketch_gradient = SketchGradient::kChosen;
  // The type of activations and products.
  at::ScalarType compute_type = at::kFloat;
  at::Device device = at::kCPU;
};

class TrainableSite {
 public:
  virtual ~TrainableSite() = default;

  // x [num_tokens, cols] to W' x [num_tokens, rows], without the bias. Differentiable.
  virtual at::Tensor Apply(const at::Tensor& x) const = 0;

  // Draws latent values that have left the range of what can be stored back to its edge, where
  // their gradient still counts.
  virtual void ClampLatents() = 0;

  // What is stored now, in the codec's own form: the bits and levels that Apply uses, the scales
  // rounded as the codec does. Waits for the device.
  virtual std::unique_ptr<EncodedLinear> Export() const = 0;
};

// `student` is in a codec that is trained, fold or absmaxmin: INVALID_ARGUMENT otherwise. `teacher`
// [rows, cols] are the dense weights, float on the CPU. The result's parameters are added to
// `parameters`, which it must outlive; it refers to `student` until it is destroyed.
absl::StatusOr<std::unique_ptr<TrainableSite>> MakeTrainableSite(
    const EncodedLinear& student, const at::Tensor& teacher, const TrainableSiteOptions& options,
    ParameterStore& parameters);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_SITE_H_
