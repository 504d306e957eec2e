// ultrasketchd: serves models over gRPC.

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include <CLI/CLI.hpp>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/collector.h"
#include "server/listen_address.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/metrics_endpoint.h"
#include "server/model_host.h"
#include "server/model_loader.h"
#include "server/model_repository.h"
#include "server/repository_watcher.h"
#include "server/server.h"
#include "server/shutdown_signals.h"

namespace ultrasketch {
namespace {

enum ExitCode : int { kExitOk = 0, kExitFailed = 1, kExitUsage = 2 };

struct Options {
  std::string model_repository;
  std::vector<std::string> models;  // NAME=DIR
  // Nothing is encrypted or authenticated: other machines reach the server only if asked for.
  std::string listen = "127.0.0.1:8001";
  std::string metrics_listen = "127.0.0.1:8002";
  ModelLoadOptions load;
  int max_message_bytes = ServerOptions().max_message_bytes;
  WorkQueueOptions long_texts;
  // Below the 30 s after which Kubernetes kills.
  double drain_seconds = 25;
  std::string kv_cache_tokens = "auto";
  int repository_poll_seconds = 0;
  uint64_t memory_limit = 0;
};

void Declare(CLI::App& app, Options& options) {
  app.description("Serves models over gRPC.");
  app.set_version_flag("--version", "ultrasketchd " ULTRASKETCH_VERSION);
  app.set_config("--config", "", "Read options from a TOML file: keys are the options' names")
      ->type_name("FILE");
  app.add_option("--model-repository", options.model_repository,
                 "Serve every subfolder that has a config.json, under the subfolder's name; "
                 "LoadModel finds those that come later")
      ->type_name("DIR");
  app.add_option("--repository-poll-seconds", options.repository_poll_seconds,
                 "How often the repository is looked at: folders that are new or have changed are "
                 "loaded, those that are gone unloaded; 0: never")
      ->check(CLI::Range(0, 86400))
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option("--model", options.models, "Serve the model in DIR as NAME; may be repeated")
      ->type_name("NAME=DIR")
      ->allow_extra_args(false)
      ->take_all();
  app.add_option("--listen", options.listen, "gRPC address; port 0 picks a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--metrics-listen", options.metrics_listen,
                 "HTTP address of /metrics; port 0 picks a free one, `none` serves no metrics")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--device", options.load.device, "auto, cpu, cuda or cuda:N")
      ->type_name("DEVICE")
      ->capture_default_str();
  app.add_option("--threads", options.load.num_threads,
                 "CPU threads of each model; 0: all that the process may use")
      ->check(CLI::Range(0, 4096))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-queued-requests", options.load.engine_loop.max_queued_requests,
                 "Completions that may wait, per model; more are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-running-sequences", options.load.engine_loop.max_running_sequences,
                 "Completions computed together, per model")
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-step-tokens", options.load.engine_loop.max_step_tokens,
                 "Tokens computed in one step; longer prompts are computed in several")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--prefix-cache", options.load.engine_loop.prefix_cache,
                 "Reuse beginnings of prompts that were computed before: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("on");
  app.add_option(
         "--kv-cache-tokens", options.kv_cache_tokens,
         "Capacity of the KV cache, per model, in tokens over all requests; auto: as many as "
         "--max-running-sequences full contexts need, at most what half of the free memory "
         "holds")
      ->check(CLI::IsMember({"auto"}) | CLI::Range(int64_t{16}, int64_t{1} << 31))
      ->type_name("N")
      ->capture_default_str();
  app.add_option(
         "--memory-limit", options.memory_limit,
         "Most bytes that the models of a device may hold together, KV caches in full (1GiB, "
         "500MB ...); 0: what is free. A model that does not fit is not loaded")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-message-bytes", options.max_message_bytes,
                 "Largest request; larger ones are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1 << 10, 1 << 30))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-queued-text-bytes", options.long_texts.max_waiting_bytes,
                 "Bytes of long texts that may wait for being tokenized; more are "
                 "RESOURCE_EXHAUSTED")
      ->check(CLI::Range(size_t{1} << 10, size_t{1} << 40))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--drain-seconds", options.drain_seconds,
                 "How long requests may still run after SIGTERM or SIGINT; a second signal stops "
                 "at once. Keep it below the time after which you are killed: 30 s by default in "
                 "Kubernetes, 10 s in `docker stop` (give it -t 30, or less here)")
      ->check(CLI::Range(0.0, 86400.0))
      ->type_name("SECONDS")
      ->capture_default_str();
}

absl::StatusOr<ModelSource> ParseModel(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model: expected NAME=DIR, found ", Quoted(text)));
  }
  return ModelSource{text.substr(0, equals), text.substr(equals + 1)};
}

// What the options ask for, checked as far as it can be without a model.
struct Plan {
  std::vector<ModelSource> sources;
  ListenAddress listen;
  std::optional<ListenAddress> metrics_listen;
};

absl::StatusOr<Plan> MakePlan(Options& options) {
  Plan plan;
  if (options.models.empty() && options.model_repository.empty()) {
    return absl::InvalidArgumentError("nothing to serve: give --model or --model-repository");
  }
  for (const std::string& model : options.models) {
    US_ASSIGN_OR_RETURN(plan.sources.emplace_back(), ParseModel(model));
  }
  if (options.kv_cache_tokens != "auto") {
    int64_t tokens = 0;
    US_CHECK(absl::SimpleAtoi(options.kv_cache_tokens, &tokens));  // CLI11 has checked the range
    options.load.kv_cache_tokens = tokens;
  }
  if (options.memory_limit > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError("--memory-limit: expected 0 to 2^63 - 1 bytes");
  }
  options.load.memory_limit_bytes = static_cast<int64_t>(options.memory_limit);
  const auto listen = ParseListenAddress(options.listen);
  if (!listen.ok()) return Annotate(listen.status(), "--listen");
  plan.listen = *listen;
  if (options.metrics_listen != "none") {
    const auto metrics_listen = ParseListenAddress(options.metrics_listen);
    if (!metrics_listen.ok()) return Annotate(metrics_listen.status(), "--metrics-listen");
    plan.metrics_listen = *metrics_listen;
  }
  return plan;
}

// Serves until a signal asks for the end, then drains.
class Daemon {
 public:
  explicit Daemon(const Options& options)
      : options_(options),
        loader_(options.load, metrics_),
        host_({.loader = [this](const ModelSource& source) { return Load(source); },
               .repository = options.model_repository,
               .drain_patience = absl::Seconds(options.drain_seconds)}),
        signals_([this](int count, int signal) { OnSignal(count, signal); }) {}

  absl::Status Run(Plan plan) {
    US_RETURN_IF_ERROR(CheckCanListen(plan.listen));
    if (plan.metrics_listen) US_RETURN_IF_ERROR(CheckCanListen(*plan.metrics_listen));
    for (const ModelSource& source : plan.sources) US_RETURN_IF_ERROR(host_.AddSource(source));
    if (!options_.model_repository.empty()) {
      US_ASSIGN_OR_RETURN(const auto found, FindModels(options_.model_repository));
      for (const ModelSource& source : found) {
        if (const absl::Status added = host_.AddSource(source); added.ok()) {
          plan.sources.push_back(source);
        } else {
          LogEvent(LogLevel::kWarning, "folder_skipped",
                   {{"folder", source.folder}, {"message", std::string(added.message())}});
        }
      }
    }
    RepositoryWatcher watcher(options_.model_repository, host_);

    std::unique_ptr<MetricsEndpoint> endpoint;
    if (plan.metrics_listen) {
      const auto state = std::make_shared<StateCollector>(host_);
      US_ASSIGN_OR_RETURN(
          endpoint, MetricsEndpoint::Start(*plan.metrics_listen, {metrics_.collectable(), state}));
    }
    US_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                        Server::Start({.listen = plan.listen,
                                       .max_message_bytes = options_.max_message_bytes,
                                       .long_texts = options_.long_texts,
                                       .is_ready = false},
                                      host_, metrics_));
    const std::string metrics_address =
        endpoint != nullptr ? endpoint->address().ToString() : "none";
    LogEvent(LogLevel::kInfo, "listening",
             {{"listen", server->address().ToString()}, {"metrics", metrics_address}});

    LoadAll(plan.sources);
    const size_t num_ready = NumReady();
    if (num_ready == 0 && !plan.sources.empty() && !StopRequested()) {
      return absl::UnavailableError("nothing to serve: no model could be loaded");
    }
    if (!StopRequested()) {
      server->SetReady(true);
      LogEvent(LogLevel::kInfo, "serving",
               {{"listen", server->address().ToString()},
                {"metrics", metrics_address},
                {"models", absl::StrCat(num_ready)},
                {"failed_models", absl::StrCat(plan.sources.size() - num_ready)},
                {"version", ULTRASKETCH_VERSION}});
    }
    {
      std::optional<RepositoryPolling> polling;
      if (options_.repository_poll_seconds > 0) {
        polling.emplace(std::move(watcher), absl::Seconds(options_.repository_poll_seconds));
      }
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&stop_requested_));
    }
    Drain(*server, absl::Seconds(options_.drain_seconds));
    // There is no safe way to interrupt a model that is being loaded, and no need to wait for it.
    if (host_.IsLoading()) std::_Exit(kExitOk);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::shared_ptr<HostedModel>> Load(const ModelSource& source) {
    return loader_.Load(source, host_.HeldModels());
  }

  // Returns when the host has tried all, or a signal asks for the end. What fails is logged, and
  // FAILED in the host: the others serve.
  void LoadAll(const std::vector<ModelSource>& sources) {
    {
      absl::MutexLock lock(&mutex_);
      num_loading_ = sources.size();
    }
    for (const ModelSource& source : sources) {
      host_.Load(source.name, [this](const absl::Status&) {
        absl::MutexLock lock(&mutex_);
        --num_loading_;
      });
    }
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Daemon::HasLoadedOrMustStop));
  }

  bool HasLoadedOrMustStop() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return num_loading_ == 0 || stop_requested_;
  }

  bool StopRequested() {
    absl::MutexLock lock(&mutex_);
    return stop_requested_;
  }

  size_t NumReady() const {
    const auto models = host_.List();
    return static_cast<size_t>(std::count_if(
        models.begin(), models.end(),
        [](const ModelHost::Listing& listing) { return listing.state == ModelState::kReady; }));
  }

  // On the signals' thread.
  void OnSignal(int count, int signal) {
    LogEvent(LogLevel::kInfo, "signal", {{"name", signal == SIGTERM ? "SIGTERM" : "SIGINT"}});
    if (count == 1) {
      absl::MutexLock lock(&mutex_);
      stop_requested_ = true;
    } else {
      stop_at_once_ = true;
      host_.Drain(absl::InfinitePast());
    }
  }

  void Drain(Server& server, absl::Duration patience) {
    const absl::Time start = absl::Now();
    const absl::Time deadline = start + patience;
    LogEvent(LogLevel::kInfo, "draining",
             {{"seconds", absl::StrFormat("%g", absl::ToDoubleSeconds(patience))}});
    server.SetNotServing();
    host_.Drain(deadline);
    // The engine is done; what is left is for clients to read. Those that were cancelled just now
    // should still learn of it.
    const absl::Time grace = absl::Now() + absl::Seconds(1);
    server.Shutdown(stop_at_once_ ? grace : std::max(deadline, grace));
    LogEvent(
        LogLevel::kInfo, "stopped",
        {{"drain_seconds", absl::StrFormat("%.3f", absl::ToDoubleSeconds(absl::Now() - start))}});
  }

  const Options options_;
  Metrics metrics_;
  absl::Mutex mutex_;
  size_t num_loading_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> stop_at_once_ = false;
  ModelLoader loader_;       // the host's loading thread's
  ModelHost host_;           // its threads use what stands above
  ShutdownSignals signals_;  // last: it uses the rest
};

// gRPC's own log, in our format.
void LogFromGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return;
  LogEvent(LogLevel::kWarning, "grpc", {{"message", args->message}});
}

// What peers send that is no UTF-8 or no message is answered, and not worth a line each.
void IgnoreFromProtobuf(google::protobuf::LogLevel level, const char*, int,
                        const std::string& message) {
  if (level == google::protobuf::LOGLEVEL_FATAL) {
    LogEvent(LogLevel::kError, "protobuf", {{"message", message}});
  }
}

int Main(int argc, char** argv) {
  CLI::App app("", "ultrasketchd");
  Options options;
  Declare(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  absl::StatusOr<Plan> plan = MakePlan(options);
  if (!plan.ok()) {
    std::cerr << "ultrasketchd: " << plan.status().message()
              << "\nRun with --help for more information.\n";
    return kExitUsage;
  }
  gpr_set_log_function(LogFromGrpc);
  google::protobuf::SetLogHandler(IgnoreFromProtobuf);
  ShutdownSignals::Block();
  Daemon daemon(options);
  if (const absl::Status status = daemon.Run(*std::move(plan)); !status.ok()) {
    LogEvent(LogLevel::kError, "failed", {{"error", status.ToString()}});
    return kExitFailed;
  }
  return kExitOk;
}

}  // namespace
}  // namespace ultrasketch

int main(int argc, char** argv) { return ultrasketch::Main(argc, argv); }
