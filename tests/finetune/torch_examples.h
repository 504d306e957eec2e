// Tensors for tests.
#ifndef ULTRASKETCH_TESTS_FINETUNE_TORCH_EXAMPLES_H_
#define ULTRASKETCH_TESTS_FINETUNE_TORCH_EXAMPLES_H_

#include <cstdint>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "engine/base/random.h"

namespace ultrasketch {

// Normally distributed values, the same for equal arguments.
inline at::Tensor RandomTensor(const std::vector<int64_t>& shape, uint64_t stream) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  float* values = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    values[i] = static_cast<float>(NormalDouble(7, stream, static_cast<uint64_t>(i)));
  }
  return tensor;
}

inline std::vector<float> ToVector(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

// |found - expected| / |expected|
inline double RelativeError(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor difference = (found.detach() - expected.detach()).to(at::kDouble);
  return difference.norm().item<double>() / expected.detach().to(at::kDouble).norm().item<double>();
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FINETUNE_TORCH_EXAMPLES_H_
