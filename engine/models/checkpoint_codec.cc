#include "engine/models/checkpoint_codec.h"

#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/codec.h"
#include "engine/format/json.h"

namespace ultrasketch {

absl::StatusOr<std::string> CheckpointCodec(const Checkpoint& checkpoint) {
  const nlohmann::json& quantization = checkpoint.config().quantization_config;
  if (quantization.is_null()) return std::string("dense");
  const nlohmann::json* codec = FindMember(quantization, "codec");
  if (codec == nullptr || !codec->is_string() ||
      FindCodec(codec->get_ref<const std::string&>()) == nullptr) {
    std::vector<std::string> names;
    for (const std::string_view name : CodecNames()) names.emplace_back(name);
    return absl::DataLossError(absl::StrCat(
        checkpoint.folder(), "/config.json: quantization_config.codec: expected one of ",
        absl::StrJoin(names, ", "), ", found ", DescribeJson(codec)));
  }
  return codec->get<std::string>();
}

}  // namespace ultrasketch
