#include "engine/compress/absmaxmin_encoder.h"

#include <utility>

#include "nlohmann/json.hpp"

#include "engine/base/check.h"
#include "engine/compress/absmaxmin_fit.h"

namespace ultrasketch {

AbsMaxMinEncoder::AbsMaxMinEncoder(absl::Span<const LinearSite> sites,
                                   std::vector<std::vector<AbsMaxMinClass>> classes, uint64_t seed)
    : sites_(sites.begin(), sites.end()), classes_(std::move(classes)), seed_(seed) {
  US_CHECK(sites_.size() == classes_.size());
}

nlohmann::json AbsMaxMinEncoder::Parameters() const { return {{"seed", seed_}}; }

std::unique_ptr<EncodedLinear> AbsMaxMinEncoder::Encode(size_t index,
                                                        absl::Span<const float> weights,
                                                        const SiteMoments& moments,
                                                        ThreadPool& pool) const {
  return FitAbsMaxMinSite(sites_[index], classes_[index], seed_, weights, moments, pool);
}

}  // namespace ultrasketch
