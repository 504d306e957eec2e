// Arbitrary bytes as config.json and as generation_config.json. What is accepted keeps the promises
// of ModelConfig.
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/check.h"
#include "engine/format/json.h"
#include "engine/format/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ultrasketch;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = ParseJson(text, "fuzz");
  if (!json.ok()) return 0;
  // Well-formed JSON in the input's own encoding is valid for everything that prints it.
  US_CHECK(!json->dump().empty());
  std::vector<std::string> warnings;
  (void)ParseGenerationConfig(*json, 1000, "fuzz", warnings);
  const auto config = ParseModelConfig(*json, "fuzz");
  if (!config.ok()) {
    US_CHECK(!config.status().message().empty());
    return 0;
  }
  US_CHECK(config->vocab_size > 0 && config->hidden_size > 0 && config->num_layers > 0);
  US_CHECK(config->num_attention_heads % config->num_kv_heads == 0);
  US_CHECK(config->head_dim > 0 && config->head_dim % 2 == 0);
  US_CHECK(NumLinearWeights(*config) > 0 && NumParameters(*config) > NumLinearWeights(*config));
  for (const float frequency : RopeInverseFrequencies(*config)) {
    US_CHECK(std::isfinite(frequency) && frequency >= 0);
  }
  return 0;
}
