// What is trained: all parameters in one buffer, and all gradients in another, so that the
// optimizer, the norm of the gradient, the sum over processes and a checkpoint are each a call or
// two, whatever the number of layers.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_PARAMETER_STORE_H_
#define ULTRASKETCH_ENGINE_FINETUNE_PARAMETER_STORE_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace ultrasketch {

// Parameters that share a learning rate.
enum class ParameterGroup : uint8_t {
  kLatents,     // the values behind stored bits and levels
  kContinuous,  // row scales, norms, biases
  kTables,      // token embedding and output head
};

inline constexpr int kNumParameterGroups = 3;

// "latents", "continuous", "tables".
const char* ParameterGroupName(ParameterGroup group);

// AdamW without weight decay: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR
// 2019 (which is Adam, then).
struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double max_gradient_norm = 1.0;  // the gradient of all parameters together is shortened to this
};

class ParameterStore {
 public:
  ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  // `tensor` holds the starting value, float, on any device. Finish replaces it by the trained
  // parameter; it must outlive the store.
  void Add(ParameterGroup group, std::string name, at::Tensor* tensor);

  // Once, after the last Add.
  void Finish(at::Device device);

  // [n] each, all parameters: float.
  const at::Tensor& values() const { return values_; }
  const at::Tensor& gradients() const { return gradients_; }
  const at::Tensor& first_moments() const { return first_moments_; }
  const at::Tensor& second_moments() const { return second_moments_; }
  // [1], float: optimizer steps taken.
  const at::Tensor& num_steps() const { return num_steps_; }
  // [kNumParameterGroups], float: written before Step, also between replays of a captured one.
  const at::Tensor& learning_rates() const { return learning_rates_; }

  int64_t GroupSize(ParameterGroup group) const;
  // Of all values of a group; 1 where there are none, or only zeros. Waits for the device.
  double RootMeanSquare(ParameterGroup group) const;
  // Names and sizes in order: two stores of equal lists have equal layouts.
  std::vector<std::pair<std::string, int64_t>> Layout() const;

  // Leaves the parameters alone when the gradient is not finite. Returns the norm that the gradient
  // had, [1] on the device: nothing is waited for.
  at::Tensor Step(const AdamOptions& options);

 private:
  struct Entry {
    ParameterGroup group;
    std::string name;
    at::Tensor* tensor;
    int64_t first = 0;
    int64_t size = 0;
  };

  void StepGroup(size_t group, const AdamOptions& options, const at::Tensor& gradient_scale,
                 const at::Tensor& not_finite);

  std::vector<Entry> entries_;
  std::array<int64_t, kNumParameterGroups + 1> group_begins_ = {};
  at::Tensor values_;
  at::Tensor gradients_;
  at::Tensor first_moments_;
  at::Tensor second_moments_;
  at::Tensor num_steps_;
  at::Tensor learning_rates_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_PARAMETER_STORE_H_
