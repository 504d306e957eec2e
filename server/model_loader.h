// From a folder to a model that takes requests.
#ifndef ULTRASKETCH_SERVER_MODEL_LOADER_H_
#define ULTRASKETCH_SERVER_MODEL_LOADER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "engine/models/model.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/metrics.h"
#include "server/model_host.h"

namespace ultrasketch {

struct ModelSource {
  std::string name;
  std::string folder;
};

struct ModelLoadOptions {
  std::string device = "auto";  // as CreateBackend takes it
  int num_threads = 0;          // CPU threads of each model; 0: all that the process may use
  ModelOptions model;
  EngineLoopOptions engine_loop;
};

// Reads the checkpoint and the tokenizer, loads the weights on the device and starts the engine's
// thread. What OpenModel warns about is logged, as event model_warning. Errors are those of the
// parts, with the model's name in front.
absl::StatusOr<std::shared_ptr<HostedModel>> LoadHostedModel(const ModelSource& source,
                                                             const ModelLoadOptions& options,
                                                             Metrics& metrics);

// The models of a repository: every subfolder with a config.json, by name. One that this process
// may not look into is skipped, which is logged. NOT_FOUND when there is
// no such folder, or no model in it.
absl::StatusOr<std::vector<ModelSource>> FindModels(const std::string& repository);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_LOADER_H_
