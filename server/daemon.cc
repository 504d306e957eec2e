#include "server/daemon.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "engine/base/mapping_guard.h"
#include "engine/base/status.h"
#include "server/collector.h"
#include "server/connection_listener.h"
#include "server/damage_watcher.h"
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
#include "server/token_file.h"
#include "server/transport_credentials.h"

namespace ultrasketch {
namespace {

// For anything but connections of the gRPC server: models' files, metrics, gRPC's own.
constexpr int64_t kOtherDescriptors = 128;

// Serves until a signal asks for the end, then drains.
class Daemon {
 public:
  explicit Daemon(DaemonOptions options)
      : options_(std::move(options)),
        loader_(options_.load, metrics_),
        host_({.loader = [this](const ModelSource& source) { return Load(source); },
               .overhead_meter =
                   [this](const HostedModel& model, const std::function<bool()>& is_cancelled) {
                     return loader_.MeasureOverhead(model, host_.HeldModels(), is_cancelled);
                   },
               .measures_loaded_models = options_.measures_overhead,
               .repository = options_.model_repository,
               .drain_patience = options_.drain_patience}),
        signals_([this](int count, int signal) { OnSignal(count, signal); }) {}

  absl::Status Run() {
    US_RETURN_IF_ERROR(CheckCanListen(options_.server.listen));
    if (options_.metrics_listen) US_RETURN_IF_ERROR(CheckCanListen(*options_.metrics_listen));
    std::vector<ModelSource> sources = options_.models;
    for (const ModelSource& source : sources) US_RETURN_IF_ERROR(host_.AddSource(source));
    if (!options_.model_repository.empty()) {
      US_ASSIGN_OR_RETURN(const auto found, FindModels(options_.model_repository));
      for (const ModelSource& source : found) {
        if (const absl::Status added = host_.AddSource(source); added.ok()) {
          sources.push_back(source);
        } else {
          LogEvent(LogLevel::kWarning, "folder_skipped",
                   {{"folder", source.folder}, {"message", std::string(added.message())}});
        }
      }
    }
    RepositoryWatcher watcher(options_.model_repository, host_);

    std::unique_ptr<MetricsEndpoint> endpoint;
    if (options_.metrics_listen) {
      const auto state = std::make_shared<StateCollector>(host_);
      US_ASSIGN_OR_RETURN(endpoint, MetricsEndpoint::Start(*options_.metrics_listen,
                                                           {metrics_.collectable(), state}));
    }
    US_ASSIGN_OR_RETURN(const ServerOptions server_options, MakeServerOptions());
    US_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                        Server::Start(server_options, host_, metrics_));
    const std::string metrics_address =
        endpoint != nullptr ? endpoint->address().ToString() : "none";
    LogEvent(LogLevel::kInfo, "listening",
             {{"listen", server->address().ToString()},
              {"metrics", metrics_address},
              {"transport", TransportName()},
              {"tokens", options_.token_file.empty() ? "off" : "on"},
              {"admin_rpcs", server_options.admin_rpcs ? "on" : "off"},
              {"max_connections", LogNumber(server_options.max_connections)}});

    LoadAll(sources);
    const size_t num_ready = NumReady();
    if (num_ready == 0 && !sources.empty() && !StopRequested()) {
      return absl::UnavailableError("nothing to serve: no model could be loaded");
    }
    if (!StopRequested()) {
      server->SetReady(true);
      LogEvent(LogLevel::kInfo, "serving",
               {{"listen", server->address().ToString()},
                {"metrics", metrics_address},
                {"models", LogNumber(num_ready)},
                {"failed_models", LogNumber(sources.size() - num_ready)},
                {"version", ULTRASKETCH_VERSION}});
    }
    {
      std::optional<RepositoryPolling> polling;
      if (options_.repository_poll_interval > absl::ZeroDuration()) {
        polling.emplace(std::move(watcher), options_.repository_poll_interval);
      }
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&stop_requested_));
    }
    Drain(*server, options_.drain_patience);
    // There is no safe way to interrupt a model that is being loaded, and no need to wait for it.
    if (host_.IsLoading()) std::_Exit(kExitOk);
    return absl::OkStatus();
  }

 private:
  // Opens the files that the options name, and takes the limit of open files into account.
  absl::StatusOr<ServerOptions> MakeServerOptions() const {
    ServerOptions options = options_.server;
    options.is_ready = false;
    if (options_.tls) {
      US_ASSIGN_OR_RETURN(options.certificates, TlsCertificates::Open(*options_.tls));
    }
    if (!options_.token_file.empty()) {
      US_ASSIGN_OR_RETURN(options.tokens, TokenFile::Open(options_.token_file));
    }
    const int64_t num_descriptors = RaiseDescriptorLimit();
    const int64_t for_connections =
        std::max(num_descriptors - kOtherDescriptors, num_descriptors / 2);
    if (options.max_connections > for_connections) {
      LogEvent(LogLevel::kWarning, "connections_limited",
               {{"max_connections", LogNumber(for_connections)},
                {"open_files", LogNumber(num_descriptors)}});
      options.max_connections = static_cast<int>(for_connections);
    }
    return options;
  }

  std::string TransportName() const {
    if (!options_.tls) return "plain_text";
    return options_.tls->client_ca.empty() ? "tls" : "mutual_tls";
  }

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
    LogEvent(LogLevel::kInfo, "signal", {{"name", absl::StrCat("SIG", sigabbrev_np(signal))}});
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
             {{"seconds", LogNumber(absl::StrFormat("%g", absl::ToDoubleSeconds(patience)))}});
    server.SetNotServing();
    host_.Drain(deadline);
    // The engine is done; what is left is for clients to read. Those that were cancelled just now
    // should still learn of it.
    const absl::Time grace = absl::Now() + absl::Seconds(1);
    server.Shutdown(stop_at_once_ ? grace : std::max(deadline, grace));
    LogEvent(LogLevel::kInfo, "stopped",
             {{"drain_seconds",
               LogNumber(absl::StrFormat("%.3f", absl::ToDoubleSeconds(absl::Now() - start)))}});
  }

  const DaemonOptions options_;
  Metrics metrics_;
  absl::Mutex mutex_;
  size_t num_loading_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> stop_at_once_ = false;
  ModelLoader loader_;  // the host's loading thread's
  ModelHost host_;      // its threads use what stands above
  DamageWatcher damage_watcher_{host_};
  ShutdownSignals signals_;  // last: it uses the rest
};

}  // namespace

absl::Status RunDaemon(DaemonOptions options) {
  GuardMappings();
  return Daemon(std::move(options)).Run();
}

}  // namespace ultrasketch
