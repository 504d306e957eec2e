// The Llama family's decoder: Llama 1 to 3.2, Mistral, Qwen2. They differ in biases, rotary
// frequencies and tied heads, all of which the config says.
#ifndef ULTRASKETCH_ENGINE_MODELS_LLAMA_H_
#define ULTRASKETCH_ENGINE_MODELS_LLAMA_H_

#include <memory>

#include "engine/models/model.h"

namespace ultrasketch {

absl::StatusOr<std::unique_ptr<Model>> LoadLlama(std::shared_ptr<const Checkpoint> checkpoint,
                                                 std::shared_ptr<Backend> backend,
                                                 const ModelOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_MODELS_LLAMA_H_
