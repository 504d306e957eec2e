#include "engine/compress/site_importance.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

// Found by a search for the least perplexity of compressed models, two models, 0.5 and 1 bit.
constexpr double kResidualWriter = 1.7;
constexpr double kLastLayer = 2.5;

// A site that seems to matter less than this, relative to the average, is not trusted.
constexpr double kLeastRelativeImportance = 1e-2;

int NumLayers(absl::Span<const LinearSite> sites) {
  int num_layers = 0;
  for (const LinearSite& site : sites) num_layers = std::max(num_layers, site.layer + 1);
  return num_layers;
}

}  // namespace

std::vector<double> ImportanceFromSensitivities(absl::Span<const LinearSite> sites,
                                                absl::Span<const double> sensitivities) {
  US_CHECK(sites.size() == sensitivities.size());
  const int num_layers = NumLayers(sites);
  std::vector<double> importance;
  double total = 0;
  for (size_t index = 0; index < sites.size(); ++index) {
    const LinearSite& site = sites[index];
    double value = sensitivities[index] / static_cast<double>(site.num_weights());
    if (!std::isfinite(value)) value = 0;
    if (site.kind == SiteKind::kAttentionOutput || site.kind == SiteKind::kMlpOutput) {
      value *= kResidualWriter;
    }
    if (site.layer == num_layers - 1) value *= kLastLayer;
    importance.push_back(value);
    total += value;
  }
  const double mean = total > 0 ? total / static_cast<double>(sites.size()) : 1.0;
  for (double& value : importance) value = std::max(value / mean, kLeastRelativeImportance);
  return importance;
}

std::vector<double> TypicalImportance(absl::Span<const LinearSite> sites) {
  constexpr double kOfKind[kNumSiteKinds] = {1.17, 1.09, 0.37, 0.69};
  constexpr double kFirstLayer = 9;
  constexpr double kLastOfSeveral = 6;
  const int num_layers = NumLayers(sites);
  std::vector<double> importance;
  for (const LinearSite& site : sites) {
    double value = kOfKind[static_cast<size_t>(site.kind)];
    if (num_layers > 1 && site.layer == 0) value *= kFirstLayer;
    if (num_layers > 1 && site.layer == num_layers - 1) value *= kLastOfSeveral;
    importance.push_back(value);
  }
  return importance;
}

}  // namespace ultrasketch
