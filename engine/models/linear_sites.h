// The linear sites of an architecture, in order of execution.
#ifndef ULTRASKETCH_ENGINE_MODELS_LINEAR_SITES_H_
#define ULTRASKETCH_ENGINE_MODELS_LINEAR_SITES_H_

#include <vector>

#include "engine/codecs/linear_site.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

// Four a layer: attention_input, attention_output, mlp_input, mlp_output.
std::vector<LinearSite> LinearSites(const ModelConfig& config);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_LINEAR_SITES_H_
