// The JSON header of a safetensors file; used by safetensors.cc.
#ifndef ULTRASKETCH_ENGINE_FORMAT_SAFETENSORS_HEADER_H_
#define ULTRASKETCH_ENGINE_FORMAT_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/base/dtype.h"

namespace ultrasketch {

// A tensor as the header describes it. Its size in bytes fits in int64 and equals end - begin; that
// the offsets lie within the file is not checked here.
struct SafetensorsHeaderEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::string unsupported_dtype;  // a type of the format that DType lacks; usually empty
  std::vector<int64_t> shape;
  int64_t begin = 0;  // offsets from the end of the header
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsHeaderEntry> entries;  // in the header's order, unique names
  std::map<std::string, std::string> metadata;
};

// DATA_LOSS as SafetensorsFile::Open; messages start with `path`.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text,
                                                         std::string_view path);

// Elements of a tensor of `shape`, times `element_bytes`; -1 when that overflows int64 or an extent
// is negative.
int64_t CheckedTensorBytes(const std::vector<int64_t>& shape, int element_bytes);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_SAFETENSORS_HEADER_H_
