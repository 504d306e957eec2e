#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"
#include "engine/models/llama.h"
#include "engine/models/model.h"

namespace ultrasketch {
namespace {

using Loader = absl::StatusOr<std::unique_ptr<Model>> (*)(std::shared_ptr<const Checkpoint>,
                                                          std::shared_ptr<Backend>,
                                                          const ModelOptions&);

// The registry: config.json's model_type and who loads it.
struct Architecture {
  std::string_view model_type;
  Loader load;
};

constexpr Architecture kArchitectures[] = {
    {"llama", LoadLlama},
    {"mistral", LoadLlama},
    {"qwen2", LoadLlama},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadModel(std::shared_ptr<const Checkpoint> checkpoint,
                                                 std::shared_ptr<Backend> backend,
                                                 const ModelOptions& options) {
  const std::string& model_type = checkpoint->config().model_type;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.model_type == model_type) {
      return architecture.load(std::move(checkpoint), std::move(backend), options);
    }
  }
  return absl::UnimplementedError(absl::StrCat(checkpoint->folder(), "/config.json: model_type ",
                                               Quoted(model_type), " is not supported"));
}

}  // namespace ultrasketch
