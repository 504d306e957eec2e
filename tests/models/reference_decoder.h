// A decoder of the Llama family in double precision, written after the papers and with no regard
// for speed: what the engine's is compared with. Of the engine it uses the parsed config alone.
#ifndef ULTRASKETCH_TESTS_MODELS_REFERENCE_DECODER_H_
#define ULTRASKETCH_TESTS_MODELS_REFERENCE_DECODER_H_

#include <cstdint>
#include <vector>

#include "tests/models/tiny_model.h"

namespace ultrasketch {

// Logits [ids.size()][vocab_size] of a text.
std::vector<std::vector<double>> ReferenceLogits(const TinyModel& model,
                                                 const std::vector<int32_t>& ids);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_MODELS_REFERENCE_DECODER_H_
