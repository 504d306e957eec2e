#include "engine/finetune/trainable_site.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include <ATen/ATen.h>

#include "engine/base/strings.h"
#include "engine/finetune/row_scales.h"
#include "engine/finetune/trainable_absmaxmin.h"
#include "engine/finetune/trainable_fold.h"

namespace ultrasketch {

at::Tensor WithoutZeros(const at::Tensor& scales) {
  const double mean = scales.mean().item<double>();
  return scales.clamp_min(1e-3 * (mean > 0 ? mean : 1.0));
}

std::vector<float> StorableScales(const at::Tensor& log_scale) {
  const at::Tensor scales = log_scale.exp().to(at::kCPU).contiguous();
  std::vector<float> result(scales.data_ptr<float>(), scales.data_ptr<float>() + scales.numel());
  // Far beyond any weight, and within bfloat16 also times a level.
  for (float& scale : result) scale = std::clamp(scale, 0.0f, 1e30f);
  return result;
}

absl::StatusOr<std::unique_ptr<TrainableSite>> MakeTrainableSite(
    const EncodedLinear& student, const at::Tensor& teacher, const TrainableSiteOptions& options,
    ParameterStore& parameters) {
  if (const auto* fold = dynamic_cast<const FoldLinear*>(&student)) {
    return MakeTrainableFold(*fold, teacher, options, parameters);
  }
  if (const auto* sketch = dynamic_cast<const AbsMaxMinLinear*>(&student)) {
    return MakeTrainableAbsMaxMin(*sketch, teacher, options, parameters);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(student.site().name, " is stored as '", A(student.codec_name()),
                   "': expected a model in the codec fold or absmaxmin"));
}

}  // namespace ultrasketch
