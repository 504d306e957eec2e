// The AbsMaxMin sketch as something to train.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_ABSMAXMIN_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_ABSMAXMIN_H_

#include <memory>

#include "absl/types/span.h"

#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/finetune/trainable_site.h"

namespace ultrasketch {

// With SketchGradient::kChosen one latent value for each row and bucket, in units of the row's
// scale times the class's unit; a bucket that several columns share is rounded toward zero, one of
// a column alone to the nearest level, as the compressor does. With kAll one latent value for each
// weight, in units of the row's scale; it starts near the student, not exactly as it: of equal
// magnitudes in a bucket the first decides the sign. The row scales start as the student's in any
// case. Otherwise as MakeTrainableSite.
std::unique_ptr<TrainableSite> MakeTrainableAbsMaxMin(const AbsMaxMinLinear& student,
                                                      const at::Tensor& teacher,
                                                      const TrainableSiteOptions& options,
                                                      ParameterStore& parameters);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TRAINABLE_ABSMAXMIN_H_
