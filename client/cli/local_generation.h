// Generation in this process, with the engine that the server runs.
#ifndef ULTRASKETCH_CLIENT_CLI_LOCAL_GENERATION_H_
#define ULTRASKETCH_CLIENT_CLI_LOCAL_GENERATION_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"

#include "client/cli/local_model.h"
#include "client/client.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/request_translation.h"

namespace ultrasketch::cli {

// What requests to the model are translated by, as the server does it: same defaults, same errors.
// The most tokens are the model's own; a warning goes to standard error.
RequestModel LocalRequestModel(const OpenedModel& opened);

// What Client::GenerateStream gives. `on_delta` is called on this thread.
absl::StatusOr<client::GenerateResponse> GenerateLocally(
    EngineLoop& loop, std::shared_ptr<const Tokenizer> tokenizer, GenerationRequest request,
    const std::function<void(const client::GenerateDelta&)>& on_delta,
    const client::CallOptions& options);

// One request to a model that is loaded for it. Used by one thread.
class LocalGeneration {
 public:
  // Loads the model with a cache of the size that the request needs. Fails as a server would that
  // cannot load the model or refuses the request.
  static absl::StatusOr<std::unique_ptr<LocalGeneration>> Prepare(
      const LocalModelOptions& model, const client::GenerateRequest& request);
  virtual ~LocalGeneration() = default;

  // What Client::GenerateStream gives for a server that hosts the model: the same request and seed
  // give the same text. `on_delta` is called on this thread. Call it once.
  virtual absl::StatusOr<client::GenerateResponse> Run(
      const std::function<void(const client::GenerateDelta&)>& on_delta,
      const client::CallOptions& options) = 0;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_LOCAL_GENERATION_H_
