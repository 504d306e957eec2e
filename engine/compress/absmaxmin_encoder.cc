#include "engine/compress/absmaxmin_encoder.h"

#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/compress/absmaxmin_fit.h"

namespace ultrasketch {

AbsMaxMinEncoder::AbsMaxMinEncoder(absl::Span<const LinearSite> sites,
                                   std::vector<std::vector<AbsMaxMinClass>> classes, uint64_t seed)
    : sites_(sites.begin(), sites.end()), classes_(std::move(classes)), seed_(seed) {
  US_CHECK(sites_.size() == classes_.size());
}

nlohmann::json AbsMaxMinEncoder::Parameters() const { return {{"seed", seed_}}; }

absl::StatusOr<std::unique_ptr<EncodedLinear>> AbsMaxMinEncoder::Encode(
    size_t index, absl::Span<const float> weights, FitMoments& moments, ThreadPool& pool) const {
  US_ASSIGN_OR_RETURN(const SiteMoments* const sums, moments.OnHost());
  return FitAbsMaxMinSite(sites_[index], classes_[index], seed_, weights, *sums, pool);
}

}  // namespace ultrasketch
