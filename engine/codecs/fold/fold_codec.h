// The folding sketch: one bit per output row and bucket of hashed inputs.
#ifndef ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CODEC_H_
#define ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CODEC_H_

#include "engine/codecs/codec.h"

namespace ultrasketch {

// Stored tensors: "<site>.bits", ".scale", ".classes" and, where importance decides which columns
// share buckets, ".column_class". The hash's seed is `parameters`' "seed". See fold_layout.h and
// engine/format/FORMAT.md.
const Codec& GetFoldCodec();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_FOLD_FOLD_CODEC_H_
