// Checkpoints with random weights, small enough to make in every test.
#ifndef ULTRASKETCH_TESTS_MODELS_TINY_MODEL_H_
#define ULTRASKETCH_TESTS_MODELS_TINY_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/base/dtype.h"
#include "engine/codecs/codec.h"
#include "engine/format/checkpoint.h"
#include "engine/format/model_config.h"
#include "engine/models/model.h"

namespace ultrasketch {

// A stored tensor and the numbers in it, as they are after rounding to its type.
struct TinyTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct TinyModel {
  nlohmann::json config;
  std::map<std::string, TinyTensor> tensors;
  std::vector<std::shared_ptr<const EncodedLinear>> sites;  // stored beside the tensors

  ModelConfig Parsed() const;
  TinyTensor& tensor(const std::string& name) { return tensors.at(name); }
  const std::vector<float>& values(const std::string& name) const {
    return tensors.at(name).values;
  }

  // config.json and the weights: model.safetensors, or `num_shards` files and their index.
  void Write(const std::string& folder, int num_shards = 1) const;
};

// A llama of 2 layers, hidden size 40, 4 heads of 10, 2 of them for keys, and 61 words.
nlohmann::json TinyConfig();

// All tensors that `config` needs. `dtypes` are dealt to them in turn. Weights are so large that
// attention is far from even and every part of the decoder shows in the logits.
TinyModel MakeTinyModel(const nlohmann::json& config, const std::vector<DType>& dtypes,
                        uint64_t seed = 1);

// `values` rounded to `dtype`: what a file can hold of them.
std::vector<float> RoundTo(DType dtype, std::vector<float> values);

// Options with a small workspace and cache.
ModelOptions SmallOptions();

// Fails the test when the folder cannot be opened or loaded.
std::unique_ptr<Model> MustLoadModel(const std::string& folder, int num_threads = 1,
                                     const ModelOptions& options = SmallOptions());

// `count` block ids from `first` in a scattered order.
std::vector<BlockId> ScatteredBlocks(BlockId first, int64_t count);

// Row of the last step's logits.
std::vector<float> LogitsRow(Model& model, int64_t row);

// Logits of all of `ids` in one step.
std::vector<std::vector<float>> AllLogits(Model& model, const std::vector<int32_t>& ids);

std::vector<int32_t> RandomTokens(int64_t count, int32_t vocab_size, uint64_t seed);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_MODELS_TINY_MODEL_H_
