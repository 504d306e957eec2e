// The uncompressed weights of a Hugging Face checkpoint, multiplied straight from the mapping.
#ifndef ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_CODEC_H_
#define ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_CODEC_H_

#include "engine/codecs/codec.h"

namespace ultrasketch {

// Stored tensors: each member's "<member>.weight" [member rows, cols], F32, F16 or BF16.
const Codec& GetDenseCodec();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_CODECS_DENSE_DENSE_CODEC_H_
