#include "engine/bench/step_parts.h"

#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/codecs/dense/dense_linear.h"

namespace ultrasketch {

std::vector<uint64_t> RandomWords(int64_t num_bytes, uint64_t state) {
  std::vector<uint64_t> words(static_cast<size_t>((num_bytes + 7) / 8));
  for (uint64_t& word : words) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    word = state;
  }
  return words;
}

std::vector<uint16_t> RandomBf16(int64_t count, float scale) {
  const int64_t num_bytes = count * static_cast<int64_t>(sizeof(uint16_t));
  const std::vector<uint64_t> words = RandomWords(num_bytes, 88172645463325252u);
  const auto* random = reinterpret_cast<const uint16_t*>(words.data());
  std::vector<uint16_t> values(random, random + count);
  const uint16_t exponent = FloatToBf16(scale);
  for (uint16_t& value : values) value = static_cast<uint16_t>(exponent | (value & 0x807fu));
  return values;
}

TensorView Bf16View(const uint16_t* values, std::vector<int64_t> shape) {
  return {DType::kBF16, std::move(shape), reinterpret_cast<const uint8_t*>(values)};
}

TensorView FloatView(const std::vector<float>& values) {
  return {DType::kF32,
          {static_cast<int64_t>(values.size())},
          reinterpret_cast<const uint8_t*>(values.data())};
}

std::unique_ptr<EncodedLinear> DenseSite(const LinearSite& site, const uint16_t* values) {
  std::vector<NamedTensor> members;
  int64_t first_row = 0;
  for (const SiteMember& member : site.members) {
    members.push_back({member.name + ".weight",
                       Bf16View(values + first_row * site.cols, {member.rows, site.cols})});
    first_row += member.rows;
  }
  return std::make_unique<DenseLinear>(site, std::move(members));
}

absl::Status LoadLayerVectors(const ModelConfig& config, int layer, Backend& backend,
                              DecoderLayer& loaded) {
  loaded.has_rope = config.has_rope(layer);
  for (const LayerVector vector : LayerVectors(config)) {
    const std::vector<float> ones(static_cast<size_t>(LayerVectorSize(config, vector)), 1.0f);
    US_ASSIGN_OR_RETURN(loaded.vectors[static_cast<size_t>(vector)],
                        backend.LoadVector(FloatView(ones)));
  }
  return absl::OkStatus();
}

RandomStep::RandomStep(int64_t batch, int64_t num_cached, int64_t num_new, int64_t block_size,
                       int64_t vocab_size) {
  const int64_t blocks_each = (num_cached + num_new + block_size - 1) / block_size;
  blocks_.resize(static_cast<size_t>(batch));
  for (int64_t i = 0; i < batch; ++i) {
    std::vector<BlockId>& blocks = blocks_[static_cast<size_t>(i)];
    for (int64_t block = 0; block < blocks_each; ++block) {
      blocks.push_back(static_cast<BlockId>(block * batch + i));
    }
    spans_.push_back({static_cast<int64_t>(ids_.size()), num_new, num_cached, blocks});
    for (int64_t token = 0; token < num_new; ++token) {
      ids_.push_back(
          static_cast<int32_t>(RandomWord(1, 2, ids_.size()) % static_cast<uint64_t>(vocab_size)));
      positions_.push_back(static_cast<int32_t>(num_cached + token));
    }
    logit_tokens_.push_back(static_cast<int32_t>(ids_.size()) - 1);
  }
}

}  // namespace ultrasketch
