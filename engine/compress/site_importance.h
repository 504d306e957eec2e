// What a weight's bits are worth in each of a model's linear sites: how a budget is spread.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_SITE_IMPORTANCE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_SITE_IMPORTANCE_H_

#include <vector>

#include "absl/types/span.h"

#include "engine/codecs/linear_site.h"

namespace ultrasketch {

// From the sensitivities of `sites` (sensitivity.h): what is lost for each weight when the site has
// few bits, and more for the sites that also make up for what the sites before them lost: those
// that write to the residual stream, and the last layer. Positive; only the ratios mean something.
std::vector<double> ImportanceFromSensitivities(absl::Span<const LinearSite> sites,
                                                absl::Span<const double> sensitivities);

// Where nothing was measured: what is typical of a trained model.
std::vector<double> TypicalImportance(absl::Span<const LinearSite> sites);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_SITE_IMPORTANCE_H_
