// The folding sketch as something to train.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_FOLD_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_FOLD_H_

#include <memory>

#include "absl/types/span.h"

#include "engine/codecs/fold/fold_linear.h"
#include "engine/finetune/trainable_site.h"

namespace ultrasketch {

// One latent value for each row and group of columns, in units of the row's scale; the logarithms
// of the scales. Otherwise as MakeTrainableSite.
std::unique_ptr<TrainableSite> MakeTrainableFold(const FoldLinear& student,
                                                 const at::Tensor& teacher,
                                                 const TrainableSiteOptions& options,
                                                 ParameterStore& parameters);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_FOLD_H_
