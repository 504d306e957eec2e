// Models that commands load into this process.
#ifndef ULTRASKETCH_CLIENT_CLI_LOCAL_MODEL_H_
#define ULTRASKETCH_CLIENT_CLI_LOCAL_MODEL_H_

#include <atomic>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include <CLI/CLI.hpp>

#include "engine/backends/backend.h"
#include "engine/kv/cache_layout.h"
#include "engine/models/open_model.h"

namespace ultrasketch::cli {

struct LocalModelOptions {
  std::string folder;
  std::string device = "auto";
  int num_threads = 0;  // 0: all that the process may use
  KvCacheType kv_cache_type = KvCacheType::kFp16;
};

// --device and --threads.
void DeclareDeviceOptions(CLI::App& app, LocalModelOptions& options);

// --kv-cache-type.
CLI::Option* DeclareKvCacheType(CLI::App& app, KvCacheType& type);

// OpenModel, its warnings written to standard error: "warning: <sentence>", a line each.
absl::StatusOr<OpenedModel> OpenLocalModel(const std::string& folder,
                                           const OpenModelOptions& options = {});

// What a model is loaded from and to.
struct LocalModelParts {
  OpenedModel opened;
  std::shared_ptr<Backend> backend;
};

absl::StatusOr<LocalModelParts> OpenLocalModelParts(const LocalModelOptions& options);

// A stop token as the flag that the engine's long computations look at.
class StopFlag {
 public:
  explicit StopFlag(const std::stop_token& stop) : callback_(stop, [this] { flag_ = true; }) {}
  const std::atomic<bool>* flag() const { return &flag_; }

 private:
  std::atomic<bool> flag_ = false;
  std::stop_callback<std::function<void()>> callback_;
};

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_LOCAL_MODEL_H_
