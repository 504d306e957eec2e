// Rounding to integers in groups, as tensor functions: what a compressed model's token embedding
// and output head are stored as.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_TABLE_ROUNDING_H_
#define ULTRASKETCH_ENGINE_FINETUNE_TABLE_ROUNDING_H_

#include <ATen/core/Tensor.h>

#include "engine/codecs/grouped/grouped_table.h"

namespace ultrasketch {

// `table` [rows, cols], float, as it decodes after QuantizeTable (engine/codecs/grouped): every
// group of 64 columns rounded to multiples of a scale of its own. Not differentiable.
at::Tensor RoundToGroups(const at::Tensor& table, GroupedType type);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_TABLE_ROUNDING_H_
