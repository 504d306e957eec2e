// ultrasketchd: serves models over gRPC.

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include <CLI/CLI.hpp>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/collector.h"
#include "server/listen_address.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/metrics_endpoint.h"
#include "server/model_host.h"
#include "server/model_loader.h"
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
};

void Declare(CLI::App& app, Options& options) {
  app.description("Serves models over gRPC.");
  app.set_version_flag("--version", "ultrasketchd " ULTRASKETCH_VERSION);
  app.set_config("--config", "", "Read options from a TOML file: keys are the options' names")
      ->type_name("FILE");
  app.add_option("--model-repository", options.model_repository,
                 "Serve every subfolder that has a config.json, under the subfolder's name")
      ->type_name("DIR");
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
      ->type_name("on|off")
      ->default_str("on");
  app.add_option("--kv-cache-tokens", options.load.model.kv_cache_tokens,
                 "Capacity of the KV cache, per model, in tokens over all requests")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 31))
      ->type_name("N")
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

absl::StatusOr<Plan> MakePlan(const Options& options) {
  Plan plan;
  if (options.models.empty() && options.model_repository.empty()) {
    return absl::InvalidArgumentError("nothing to serve: give --model or --model-repository");
  }
  for (const std::string& model : options.models) {
    US_ASSIGN_OR_RETURN(plan.sources.emplace_back(), ParseModel(model));
  }
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

void LogLoaded(const HostedModel& model, absl::Duration duration) {
  const MemoryUsage memory = model.engine_loop->memory_usage();
  LogEvent(LogLevel::kInfo, "model_loaded",
           {{"model", model.name},
            {"architecture", model.architecture},
            {"codec", model.codec},
            {"device", model.device},
            {"parameters", absl::StrCat(model.num_parameters)},
            {"bits_per_weight_linear", absl::StrFormat("%.3f", model.bits_per_weight_linear)},
            {"bits_per_weight_file", absl::StrFormat("%.3f", model.bits_per_weight_file)},
            {"memory", HumanBytes(static_cast<double>(memory.total()))},
            {"kv_cache", HumanBytes(static_cast<double>(memory.kv_cache))},
            {"context_tokens", absl::StrCat(model.max_context_tokens)},
            {"load_seconds", absl::StrFormat("%.3f", absl::ToDoubleSeconds(duration))}});
}

absl::Status LoadModels(const std::vector<ModelSource>& sources, const ModelLoadOptions& options,
                        Metrics& metrics, ModelHost& host) {
  for (const ModelSource& source : sources) {
    const absl::Time start = absl::Now();
    US_ASSIGN_OR_RETURN(auto model, LoadHostedModel(source, options, metrics));
    US_RETURN_IF_ERROR(host.Add(model));
    LogLoaded(*model, absl::Now() - start);
  }
  return absl::OkStatus();
}

// Serves until a signal asks for the end, then drains.
class Daemon {
 public:
  Daemon() : signals_([this](int count, int signal) { OnSignal(count, signal); }) {}

  absl::Status Run(const Options& options, Plan plan) {
    US_RETURN_IF_ERROR(CheckCanListen(plan.listen));
    if (plan.metrics_listen) US_RETURN_IF_ERROR(CheckCanListen(*plan.metrics_listen));
    if (!options.model_repository.empty()) {
      US_ASSIGN_OR_RETURN(const auto found, FindModels(options.model_repository));
      plan.sources.insert(plan.sources.end(), found.begin(), found.end());
    }
    Metrics metrics;
    US_RETURN_IF_ERROR(LoadModels(plan.sources, options.load, metrics, host_));

    std::unique_ptr<MetricsEndpoint> endpoint;
    if (plan.metrics_listen) {
      US_ASSIGN_OR_RETURN(
          endpoint,
          MetricsEndpoint::Start(*plan.metrics_listen,
                                 {metrics.collectable(), std::make_shared<StateCollector>(host_)}));
    }
    US_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                        Server::Start({.listen = plan.listen,
                                       .max_message_bytes = options.max_message_bytes,
                                       .long_texts = options.long_texts},
                                      host_, metrics));
    is_serving_ = true;
    LogEvent(LogLevel::kInfo, "serving",
             {{"listen", server->address().ToString()},
              {"metrics", endpoint != nullptr ? endpoint->address().ToString() : "none"},
              {"models", absl::StrCat(plan.sources.size())},
              {"version", ULTRASKETCH_VERSION}});

    stop_requested_.WaitForNotification();
    Drain(*server, absl::Seconds(options.drain_seconds));
    return absl::OkStatus();
  }

 private:
  // On the signals' thread.
  void OnSignal(int count, int signal) {
    LogEvent(LogLevel::kInfo, "signal", {{"name", signal == SIGTERM ? "SIGTERM" : "SIGINT"}});
    // There is nothing to drain, and no safe way to interrupt a model that is being loaded.
    if (!is_serving_) std::_Exit(kExitFailed);
    if (count == 1) {
      stop_requested_.Notify();
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

  ModelHost host_;
  absl::Notification stop_requested_;
  std::atomic<bool> is_serving_ = false;
  std::atomic<bool> stop_at_once_ = false;
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
  Daemon daemon;
  if (const absl::Status status = daemon.Run(options, *std::move(plan)); !status.ok()) {
    LogEvent(LogLevel::kError, "failed", {{"error", status.ToString()}});
    return kExitFailed;
  }
  return kExitOk;
}

}  // namespace
}  // namespace ultrasketch

int main(int argc, char** argv) { return ultrasketch::Main(argc, argv); }
