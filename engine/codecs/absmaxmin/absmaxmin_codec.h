// The AbsMaxMin sketch: hash rows of few-bit buckets that keep their smallest weight.
#ifndef ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_CODEC_H_
#define ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_CODEC_H_

#include "engine/codecs/codec.h"

namespace ultrasketch {

// Stored tensors: "<site>.sketch", ".scale", ".classes" and, where importance decides which columns
// share buckets, ".column_class". The hash's seed is `parameters`' "seed". See absmaxmin_layout.h
// and engine/format/FORMAT.md.
const Codec& GetAbsMaxMinCodec();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_ABSMAXMIN_ABSMAXMIN_CODEC_H_
