#include "client/cli/local_model.h"

#include <iostream>
#include <string>

#include "client/cli/command.h"
#include "engine/base/status.h"

namespace ultrasketch::cli {

void DeclareDeviceOptions(CLI::App& app, LocalModelOptions& options) {
  app.add_option("--device", options.device, "auto, cpu or cuda[:N]")->capture_default_str();
  app.add_option("--threads", options.num_threads, "CPU threads; 0: all that there are")
      ->check(AtLeast(0))
      ->type_name("N");
}

CLI::Option* DeclareKvCacheType(CLI::App& app, KvCacheType& type) {
  return app
      .add_option_function<std::string>(
          "--kv-cache-type", [&type](const std::string& name) { type = *FindKvCacheType(name); },
          "How keys and values are kept: fp16; int8, with a scale for each token and head; int4, "
          "with "
          "a scale for each 32 numbers of them (CPUs); or fp32 (CPUs)")
      ->check(CLI::IsMember(KvCacheTypeNames()))
      ->default_str(KvCacheTypeName(type))
      ->type_name("TYPE");
}

absl::StatusOr<OpenedModel> OpenLocalModel(const std::string& folder,
                                           const OpenModelOptions& options) {
  absl::StatusOr<OpenedModel> opened = OpenModel(folder, options);
  if (opened.ok()) {
    for (const std::string& warning : opened->warnings) std::cerr << "warning: " << warning << "\n";
  }
  return opened;
}

absl::StatusOr<LocalModelParts> OpenLocalModelParts(const LocalModelOptions& options) {
  LocalModelParts parts;
  US_ASSIGN_OR_RETURN(parts.opened, OpenLocalModel(options.folder));
  US_ASSIGN_OR_RETURN(parts.backend,
                      CreateBackend(options.device, {.num_threads = options.num_threads}));
  return parts;
}

}  // namespace ultrasketch::cli
