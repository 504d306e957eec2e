#include "engine/bench/round_to_nearest.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/dtype.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/tensor.h"
#include "engine/format/safetensors.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {
namespace {

constexpr float kLargestHalf = 65504;

void RoundGroup(int bits, float* weights, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(weights[i]));
  const float scale = HalfToFloat(FloatToHalf(std::min(largest, kLargestHalf)));
  const auto top = static_cast<float>((1 << bits) - 1);
  for (int64_t i = 0; i < count; ++i) {
    const float level =
        scale == 0 ? 0 : std::clamp(std::round((weights[i] / scale + 1) / 2 * top), 0.0f, top);
    weights[i] = scale * (2 * level / top - 1);
  }
}

}  // namespace

void RoundToNearest(int bits, int64_t cols, absl::Span<float> weights) {
  US_CHECK(bits >= 1 && bits <= 8);
  const auto count = static_cast<int64_t>(weights.size());
  US_CHECK(cols > 0 && count % cols == 0);
  for (int64_t row = 0; row < count; row += cols) {
    for (int64_t first = 0; first < cols; first += kLandmarkGroup) {
      RoundGroup(bits, weights.data() + row + first,
                 std::min<int64_t>(kLandmarkGroup, cols - first));
    }
  }
}

int64_t RoundToNearestBytes(int bits, const ModelConfig& config) {
  int64_t bytes = 0;
  for (const LinearSite& site : LinearSites(config)) {
    const int64_t groups = (site.cols + kLandmarkGroup - 1) / kLandmarkGroup;
    bytes += site.rows * ((site.cols * bits + 7) / 8 + 2 * groups);
  }
  return bytes;
}

absl::Status WriteRoundedCheckpoint(const Checkpoint& dense, int bits, const std::string& folder) {
  std::set<std::string> rounded;
  std::vector<TensorToWrite> tensors;
  for (const LinearSite& site : LinearSites(dense.config())) {
    for (const SiteMember& member : site.members) {
      TensorToWrite tensor;
      tensor.name = member.name + ".weight";
      US_ASSIGN_OR_RETURN(const TensorView view,
                          GetTensor(dense, tensor.name, {}, {member.rows, site.cols}));
      tensor.dtype = DType::kF32;
      tensor.shape = view.shape;
      tensor.produce = [bits, view](TensorToWrite::Append append) {
        std::vector<float> row(static_cast<size_t>(view.shape[1]));
        for (int64_t r = 0; r < view.shape[0]; ++r) {
          CopyToFloat(view, r * view.shape[1], view.shape[1], row.data());
          RoundToNearest(bits, view.shape[1], absl::MakeSpan(row));
          US_RETURN_IF_ERROR(append(row.data(), view.shape[1] * int64_t{sizeof(float)}));
        }
        return absl::OkStatus();
      };
      rounded.insert(tensor.name);
      tensors.push_back(std::move(tensor));
    }
  }
  for (const std::string& name : dense.tensor_names()) {
    if (!rounded.contains(name)) tensors.emplace_back(name, *dense.Find(name));
  }
  const std::filesystem::path from = dense.folder();
  const std::filesystem::path to = folder;
  US_ASSIGN_OR_RETURN(const std::string config, ReadFile((from / "config.json").string()));
  US_RETURN_IF_ERROR(WriteFileAtomically((to / "config.json").string(), config));
  return WriteSafetensors((to / "model.safetensors").string(), tensors);
}

}  // namespace ultrasketch
