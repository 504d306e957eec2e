#include "engine/codecs/dense/dense_codec.h"

#include <string>
#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/status.h"
#include "engine/codecs/dense/dense_linear.h"

namespace ultrasketch {
namespace {

class DenseCodec final : public Codec {
 public:
  std::string_view name() const override { return "dense"; }

  absl::StatusOr<std::unique_ptr<EncodedLinear>> Load(
      const LinearSite& site, const TensorSource& source,
      const nlohmann::json& /*parameters*/) const override {
    std::vector<NamedTensor> members;
    for (const SiteMember& member : site.members) {
      std::string name = member.name + ".weight";
      US_ASSIGN_OR_RETURN(TensorView view,
                          GetTensor(source, name, {DType::kBF16, DType::kF16, DType::kF32},
                                    {member.rows, site.cols}));
      US_RETURN_IF_ERROR(CheckFinite(source, name, view));
      members.push_back({std::move(name), std::move(view)});
    }
    return std::make_unique<DenseLinear>(site, std::move(members));
  }
};

}  // namespace

const Codec& GetDenseCodec() {
  static const DenseCodec codec;
  return codec;
}

}  // namespace ultrasketch
