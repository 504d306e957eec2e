#include <algorithm>

#include "engine/codecs/absmaxmin/absmaxmin_codec.h"
#include "engine/codecs/codec.h"
#include "engine/codecs/dense/dense_codec.h"
#include "engine/codecs/fold/fold_codec.h"

namespace ultrasketch {
namespace {

std::vector<const Codec*> Codecs() {
  return {&GetAbsMaxMinCodec(), &GetDenseCodec(), &GetFoldCodec()};
}

}  // namespace

const Codec* FindCodec(std::string_view name) {
  for (const Codec* codec : Codecs()) {
    if (codec->name() == name) return codec;
  }
  return nullptr;
}

std::vector<std::string_view> CodecNames() {
  std::vector<std::string_view> names;
  for (const Codec* codec : Codecs()) names.push_back(codec->name());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace ultrasketch
