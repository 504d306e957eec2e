#include "client/cli/local_model.h"

#include "client/cli/command.h"
#include "engine/base/status.h"

namespace ultrasketch::cli {

void DeclareDeviceOptions(CLI::App& app, LocalModelOptions& options) {
  app.add_option("--device", options.device, "auto, cpu or cuda[:N]")->capture_default_str();
  app.add_option("--threads", options.num_threads, "CPU threads; 0: all that there are")
      ->check(AtLeast(0))
      ->type_name("N");
}

absl::StatusOr<LocalModelParts> OpenLocalModel(const LocalModelOptions& options) {
  LocalModelParts parts;
  US_ASSIGN_OR_RETURN(parts.checkpoint, Checkpoint::Open(options.folder));
  US_ASSIGN_OR_RETURN(parts.tokenizer, Tokenizer::Load(parts.checkpoint->tokenizer_path()));
  US_ASSIGN_OR_RETURN(parts.backend,
                      CreateBackend(options.device, {.num_threads = options.num_threads}));
  return parts;
}

}  // namespace ultrasketch::cli
