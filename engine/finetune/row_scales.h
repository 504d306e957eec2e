// What the trainable codecs share.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_ROW_SCALES_H_
#define ULTRASKETCH_ENGINE_FINETUNE_ROW_SCALES_H_

#include <vector>

#include <ATen/core/Tensor.h>

namespace ultrasketch {

// Where a latent value that is to hold a stored level starts: from the middle of the level's cell
// this part of the way to what the dense weights would have. Firmly: values at the edge of their
// cells would fall out of them together in the first steps, and with them what the compressor had
// fitted.
inline constexpr double kPullToDense = 0.25;

// Scales of at least a thousandth of their mean: a row that is all zeros gets a logarithm, too.
at::Tensor WithoutZeros(const at::Tensor& scales);

// exp(log_scale) as finite floats.
std::vector<float> StorableScales(const at::Tensor& log_scale);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_ROW_SCALES_H_
