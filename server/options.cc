#include "server/options.h"

#include <cstdint>
#include <iostream>
#include <limits>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <CLI/CLI.hpp>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/model_host.h"

namespace ultrasketch {
namespace {

// The options before what needs more than CLI11's checks is understood; the rest is stored where it
// belongs.
struct Flags {
  std::vector<std::string> models;  // NAME=DIR
  // Nothing is encrypted or authenticated: other machines reach the server only if asked for.
  std::string listen = "127.0.0.1:8001";
  std::string metrics_listen = "127.0.0.1:8002";
  // Below the 30 s after which Kubernetes kills.
  double drain_seconds = 25;
  std::string kv_cache_tokens = "auto";
  int repository_poll_seconds = 0;
  uint64_t memory_limit = 0;
  DaemonOptions options;
};

void DeclareModels(CLI::App& app, Flags& flags) {
  app.add_option("--model-repository", flags.options.model_repository,
                 "Serve every subfolder that has a config.json, under the subfolder's name; "
                 "LoadModel finds those that come later")
      ->type_name("DIR");
  app.add_option("--repository-poll-seconds", flags.repository_poll_seconds,
                 "How often the repository is looked at: folders that are new or have changed are "
                 "loaded, those that are gone unloaded; 0: never")
      ->check(CLI::Range(0, 86400))
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option("--model", flags.models, "Serve the model in DIR as NAME; may be repeated")
      ->type_name("NAME=DIR")
      ->allow_extra_args(false)
      ->take_all();
}

void DeclareAddresses(CLI::App& app, Flags& flags) {
  app.add_option("--listen", flags.listen, "gRPC address; port 0 picks a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--metrics-listen", flags.metrics_listen,
                 "HTTP address of /metrics; port 0 picks a free one, `none` serves no metrics")
      ->type_name("HOST:PORT")
      ->capture_default_str();
}

void DeclareEngine(CLI::App& app, Flags& flags) {
  ModelLoadOptions& load = flags.options.load;
  app.add_option("--device", load.device, "auto, cpu, cuda or cuda:N")
      ->type_name("DEVICE")
      ->capture_default_str();
  app.add_option("--threads", load.num_threads,
                 "CPU threads of each model; 0: all that the process may use")
      ->check(CLI::Range(0, 4096))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-running-sequences", load.engine_loop.max_running_sequences,
                 "Completions computed together, per model")
      ->check(CLI::Range(1, 1 << 16))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-step-tokens", load.engine_loop.max_step_tokens,
                 "Tokens computed in one step; longer prompts are computed in several")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--prefix-cache", load.engine_loop.prefix_cache,
                 "Reuse beginnings of prompts that were computed before: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("on");
  app.add_option(
         "--kv-cache-tokens", flags.kv_cache_tokens,
         "Capacity of the KV cache, per model, in tokens over all requests; auto: as many as "
         "--max-running-sequences full contexts need, at most what half of the free memory "
         "holds")
      ->check(CLI::IsMember({"auto"}) | CLI::Range(int64_t{16}, int64_t{1} << 31))
      ->type_name("N")
      ->capture_default_str();
  app.add_option(
         "--memory-limit", flags.memory_limit,
         "Most bytes that the models of a device may hold together, KV caches in full (1GiB, "
         "500MB ...); 0: what is free. A model that does not fit is not loaded")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("BYTES")
      ->capture_default_str();
}

void DeclareLimits(CLI::App& app, Flags& flags) {
  DaemonOptions& options = flags.options;
  app.add_option("--max-queued-requests", options.load.engine_loop.max_queued_requests,
                 "Completions that may wait, per model; more are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-message-bytes", options.server.max_message_bytes,
                 "Largest request; larger ones are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1 << 10, 1 << 30))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-queued-text-bytes", options.server.long_texts.max_waiting_bytes,
                 "Bytes of long texts that may wait for being tokenized; more are "
                 "RESOURCE_EXHAUSTED")
      ->check(CLI::Range(size_t{1} << 10, size_t{1} << 40))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--drain-seconds", flags.drain_seconds,
                 "How long requests may still run after SIGTERM or SIGINT; a second signal stops "
                 "at once. Keep it below the time after which you are killed: 30 s by default in "
                 "Kubernetes, 10 s in `docker stop` (give it -t 30, or less here)")
      ->check(CLI::Range(0.0, 86400.0))
      ->type_name("SECONDS")
      ->capture_default_str();
}

void Declare(CLI::App& app, Flags& flags) {
  app.description("Serves models over gRPC.");
  app.set_version_flag("--version", "ultrasketchd " ULTRASKETCH_VERSION);
  app.set_config("--config", "", "Read options from a TOML file: keys are the options' names")
      ->type_name("FILE");
  app.allow_config_extras(CLI::config_extras_mode::error);
  DeclareModels(app, flags);
  DeclareAddresses(app, flags);
  DeclareEngine(app, flags);
  DeclareLimits(app, flags);
}

absl::StatusOr<std::vector<ModelSource>> ParseModels(const std::vector<std::string>& texts) {
  std::vector<ModelSource> sources;
  std::set<std::string> names;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: expected NAME=DIR, found ", Quoted(text)));
    }
    const ModelSource& source =
        sources.emplace_back(ModelSource{text.substr(0, equals), text.substr(equals + 1)});
    if (const absl::Status usable = CheckModelName(source.name); !usable.ok()) {
      return Annotate(usable, "--model");
    }
    if (!names.insert(source.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: each name once, found ", source.name, " twice"));
    }
  }
  return sources;
}

absl::StatusOr<ListenAddress> ParseAddress(const std::string& flag, const std::string& text) {
  const auto address = ParseListenAddress(text);
  if (!address.ok()) return Annotate(address.status(), flag);
  return *address;
}

// The rest of `options`.
absl::StatusOr<DaemonOptions> Finish(Flags flags) {
  DaemonOptions& options = flags.options;
  if (flags.models.empty() && options.model_repository.empty()) {
    return absl::InvalidArgumentError("nothing to serve: give --model or --model-repository");
  }
  US_ASSIGN_OR_RETURN(options.models, ParseModels(flags.models));
  options.repository_poll_interval = absl::Seconds(flags.repository_poll_seconds);
  options.drain_patience = absl::Seconds(flags.drain_seconds);
  if (flags.kv_cache_tokens != "auto") {
    int64_t tokens = 0;
    US_CHECK(absl::SimpleAtoi(flags.kv_cache_tokens, &tokens));  // CLI11 has checked the range
    options.load.kv_cache_tokens = tokens;
  }
  if (flags.memory_limit > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError("--memory-limit: expected 0 to 2^63 - 1 bytes");
  }
  options.load.memory_limit_bytes = static_cast<int64_t>(flags.memory_limit);
  US_ASSIGN_OR_RETURN(options.server.listen, ParseAddress("--listen", flags.listen));
  if (flags.metrics_listen != "none") {
    US_ASSIGN_OR_RETURN(options.metrics_listen,
                        ParseAddress("--metrics-listen", flags.metrics_listen));
  }
  return std::move(options);
}

}  // namespace

std::variant<DaemonOptions, ExitCode> ParseDaemonOptions(int argc, const char* const* argv) {
  CLI::App app("", "ultrasketchd");
  Flags flags;
  Declare(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  absl::StatusOr<DaemonOptions> options = Finish(std::move(flags));
  if (!options.ok()) {
    std::cerr << "ultrasketchd: " << options.status().message()
              << "\nRun with --help for more information.\n";
    return kExitUsage;
  }
  return *std::move(options);
}

}  // namespace ultrasketch
