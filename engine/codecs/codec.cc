#include "engine/codecs/codec.h"

#include <algorithm>
#include <string>

#include "engine/base/check.h"
#include "engine/base/resident_memory.h"
#include "engine/base/status.h"

namespace ultrasketch {

std::string_view SiteKindName(SiteKind kind) {
  switch (kind) {
    case SiteKind::kAttentionInput:
      return "attention_input";
    case SiteKind::kAttentionOutput:
      return "attention_output";
    case SiteKind::kMlpInput:
      return "mlp_input";
    case SiteKind::kMlpOutput:
      return "mlp_output";
  }
  US_CHECK(false && "not a site kind");
}

int64_t EncodedLinear::stored_bytes() const {
  int64_t bytes = 0;
  for (const NamedTensor& tensor : StoredTensors()) bytes += tensor.view.num_bytes();
  return bytes;
}

int64_t EncodedLinear::resident_bytes() const {
  int64_t bytes = 0;
  for (const NamedTensor& tensor : StoredTensors()) {
    bytes += ResidentBytes(tensor.view.data, tensor.view.num_bytes());
  }
  return bytes;
}

absl::StatusOr<std::vector<float>> LoadBias(const LinearSite& site, const TensorSource& source) {
  std::vector<float> bias;
  int64_t first_row = 0;
  for (const SiteMember& member : site.members) {
    if (member.has_bias) {
      const std::string name = member.name + ".bias";
      US_ASSIGN_OR_RETURN(const TensorView view, GetTensor(source, name, {}, {member.rows}));
      US_RETURN_IF_ERROR(CheckFinite(source, name, view));
      bias.resize(static_cast<size_t>(site.rows), 0.0f);
      CopyToFloat(view, 0, member.rows, bias.data() + first_row);
    }
    first_row += member.rows;
  }
  return bias;
}

}  // namespace ultrasketch
