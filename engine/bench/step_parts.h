// What steps of made-up models are made of.
#ifndef ULTRASKETCH_ENGINE_BENCH_STEP_PARTS_H_
#define ULTRASKETCH_ENGINE_BENCH_STEP_PARTS_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"

#include "engine/backends/backend.h"
#include "engine/base/tensor.h"
#include "engine/codecs/codec.h"
#include "engine/format/model_config.h"
#include "engine/models/decoder_layer.h"

namespace ultrasketch {

// `num_bytes` rounded up to whole words; the same for the same state, which is not 0.
std::vector<uint64_t> RandomWords(int64_t num_bytes, uint64_t state);

// BF16 numbers of both signs, of magnitude near `scale`, a power of two.
std::vector<uint16_t> RandomBf16(int64_t count, float scale);

TensorView Bf16View(const uint16_t* values, std::vector<int64_t> shape);
TensorView FloatView(const std::vector<float>& values);

// A site's uncompressed weights: `values` [rows, cols], which must outlive the result.
std::unique_ptr<EncodedLinear> DenseSite(const LinearSite& site, const uint16_t* values);

// Norms of ones, and whether there is a rotary embedding.
absl::Status LoadLayerVectors(const ModelConfig& config, int layer, Backend& backend,
                              DecoderLayer& loaded);

// The input of a step of `batch` sequences with `num_cached` tokens, `num_new` more each, which are
// random, and the logits of each sequence's last one. Blocks of the cache are dealt in turn.
class RandomStep {
 public:
  RandomStep(int64_t batch, int64_t num_cached, int64_t num_new, int64_t block_size,
             int64_t vocab_size);
  // Refers to this object.
  StepInput input() const { return {ids_, positions_, spans_, logit_tokens_}; }

 private:
  std::vector<std::vector<BlockId>> blocks_;
  std::vector<int32_t> ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> logit_tokens_;
  std::vector<AttentionSpan> spans_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BENCH_STEP_PARTS_H_
