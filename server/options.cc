#include "server/options.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <CLI/CLI.hpp>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/model_host.h"
#include "server/toml_config.h"

namespace ultrasketch {
namespace {

// CLI::Range, which takes "nan" for a number of any range.
CLI::Validator NumberIn(double least, double most) {
  const CLI::Range range(least, most);
  CLI::Validator validator = range;
  validator.operation([range](std::string& text) {
    const std::string error = range(text);
    if (!error.empty() || !std::isnan(std::strtod(text.c_str(), nullptr))) return error;
    return absl::StrCat("Value ", text, " is not a number");
  });
  return validator;
}

// The options before what needs more than CLI11's checks is understood; the rest is stored where it
// belongs.
struct Flags {
  std::vector<std::string> models;  // NAME=DIR
  // Other machines reach the server only if asked for.
  std::string listen = "127.0.0.1:8001";
  std::string metrics_listen = "127.0.0.1:8002";
  // Below the 30 s after which Kubernetes kills.
  double drain_seconds = 25;
  double cache_idle_seconds = absl::ToDoubleSeconds(EngineLoopOptions().cache_idle_time);
  double stream_interval_ms = 2;
  double max_unread_seconds = absl::ToDoubleSeconds(CallLimits().max_unread_time);
  double refusal_pause_ms = absl::ToDoubleMilliseconds(RefusalPacing().max_pause);
  double max_connection_age_seconds = 0;
  std::string kv_cache_tokens = "auto";
  int repository_poll_seconds = 0;
  uint64_t memory_limit = 0;
  TlsFiles tls;
  bool insecure = false;
  std::string admin_rpcs = "auto";
  std::string log_format = "text";
  std::string log_requests = "none";
  bool print_config = false;
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

void DeclareServices(CLI::App& app, Flags& flags) {
  app.add_option("--kserve", flags.options.server.kserve,
                 "Serve KServe's Open Inference Protocol, too: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("on");
}

// What protects the gRPC address.
void DeclareSecurity(CLI::App& app, Flags& flags) {
  app.add_option("--tls-cert", flags.tls.certificate,
                 "Serve TLS with this certificate (PEM, with its chain); read again when it "
                 "changes, as are the other files here")
      ->type_name("FILE");
  app.add_option("--tls-key", flags.tls.key, "The certificate's private key (PEM)")
      ->type_name("FILE");
  app.add_option("--tls-client-ca", flags.tls.client_ca,
                 "Mutual TLS: clients must have a certificate that one of these signed (PEM)")
      ->type_name("FILE");
  app.add_option("--token-file", flags.options.token_file,
                 "Require a bearer token of this file: one a line, TOKEN or NAME:ROLE:TOKEN with "
                 "the role user or admin. Health needs none")
      ->type_name("FILE");
  app.add_flag("--insecure", flags.insecure,
               "Listen in plain text where other machines reach it: something else protects it");
  app.add_option("--admin-rpcs", flags.admin_rpcs,
                 "LoadModel, UnloadModel and MeasureOverhead: on, off, or auto: on where only this "
                 "machine reaches "
                 "the server, or with tokens (then for the role admin)")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->type_name("MODE")
      ->capture_default_str();
  app.add_option("--reflection", flags.options.server.reflection,
                 "gRPC reflection, which tells what services there are: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("on");
}

void DeclareLog(CLI::App& app, Flags& flags) {
  app.add_option("--log-format", flags.log_format, "Lines of logfmt, or of JSON: text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->type_name("FORMAT")
      ->capture_default_str();
  app.add_option("--log-requests", flags.log_requests,
                 "A line for each finished request: none, errors or all")
      ->check(CLI::IsMember({"none", "errors", "all"}))
      ->type_name("WHICH")
      ->capture_default_str();
  app.add_option("--log-prompts", flags.options.server.request_log.prompts,
                 "Whether those lines have the prompt's beginning and errors that quote it: on or "
                 "off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("off");
}

void DeclareEngine(CLI::App& app, Flags& flags) {
  ModelLoadOptions& load = flags.options.load;
  app.add_option("--device", load.device, "auto, cpu, cuda or cuda:N")
      ->type_name("DEVICE")
      ->capture_default_str();
  app.add_option("--threads", load.num_threads,
                 "CPU threads, which the models share; 0: all that the process may use")
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
  app.add_option("--stream-interval-ms", flags.stream_interval_ms,
                 "Tokens of a stream that come sooner after one another share a message; 0: none "
                 "do, unless the client reads slowly")
      ->check(NumberIn(0.0, 10000.0))
      ->type_name("MS")
      ->capture_default_str();
  app.add_option("--measure-overhead", flags.options.measures_overhead,
                 "Measure, after a compressed model has been loaded, what its compression does to "
                 "the time of its steps (ultrasketch_sketch_overhead_ratio): on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("on");
  app.add_option("--prefix-cache", load.engine_loop.prefix_cache,
                 "Reuse beginnings of prompts that were computed before: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("MODE")
      ->default_str("on");
  app.add_option("--cache-idle-seconds", flags.cache_idle_seconds,
                 "Blocks of the KV cache that nobody has used for so long give their memory back "
                 "on CPUs, and the prefixes in them are forgotten")
      ->check(NumberIn(0.1, 1e9))
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option(
         "--kv-cache-tokens", flags.kv_cache_tokens,
         "Capacity of the KV cache, per model, in tokens over all requests; auto: as many as "
         "--max-running-sequences full contexts need, at most what half of the free memory "
         "holds")
      ->check(CLI::IsMember({"auto"}) | CLI::Range(int64_t{16}, int64_t{1} << 31))
      ->type_name("N")
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--kv-cache-type",
         [&load](const std::string& name) { load.kv_cache_type = *FindKvCacheType(name); },
         "How keys and values are kept: fp16; int8, with a scale for each token and head; int4, "
         "with "
         "a scale for each 32 numbers of them (CPUs); or fp32 (CPUs)")
      ->check(CLI::IsMember(KvCacheTypeNames()))
      ->default_str("fp16")
      ->type_name("TYPE");
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
  app.add_option("--max-queued-tokens", options.load.engine_loop.max_queued_tokens,
                 "Tokens of prompts that may wait, per model; more are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-prompt-tokens", options.load.max_prompt_tokens,
                 "Tokens of one prompt; more are INVALID_ARGUMENT; 0: as many as the context takes")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-completion-tokens", options.load.max_completion_tokens,
                 "Largest max_tokens; more are INVALID_ARGUMENT; 0: as many as the context takes")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N")
      ->capture_default_str();
  CallLimits& calls = options.server.call_limits;
  app.add_option("--max-requests", calls.max_requests,
                 "Requests open at a time, over all models; more are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-requests-per-client", calls.max_requests_per_client,
                 "The same of one client: who sends the same `client-id`, or else from the same "
                 "address")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--refusal-pause-ms", flags.refusal_pause_ms,
                 "How long RESOURCE_EXHAUSTED, when it says when to try again, may be held back "
                 "while there are more than a thousand a second; 0: never")
      ->check(NumberIn(0.0, 1000.0))
      ->type_name("MS")
      ->capture_default_str();
  app.add_option("--max-unread-bytes", calls.max_unread_bytes,
                 "What a client may leave unread of a stream, beyond what gRPC takes; then the "
                 "stream ends with RESOURCE_EXHAUSTED")
      ->check(CLI::Range(int64_t{1} << 10, int64_t{1} << 40))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-unread-seconds", flags.max_unread_seconds,
                 "How long a client may leave a message or an answer unread; then the call ends")
      ->check(NumberIn(0.1, 86400.0))
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option("--max-unread-answer-bytes", calls.max_unread_answer_bytes,
                 "What clients may leave unread of answers of Tokenize and Detokenize, together; "
                 "further calls are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(int64_t{1} << 10, int64_t{1} << 40))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-message-bytes", options.server.max_message_bytes,
                 "Largest request; larger ones are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1 << 10, 1 << 30))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-metadata-bytes", options.server.max_metadata_bytes,
                 "Most metadata of one call; more ends it and its connection")
      ->check(CLI::Range(1 << 10, 1 << 20))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-connections", options.server.max_connections,
                 "Connections at a time, as far as the limit of open files allows; further ones "
                 "are closed as they come")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-connection-age-seconds", flags.max_connection_age_seconds,
                 "After about so long (a tenth more or less) a connection takes no further calls, "
                 "so that its client makes a new one, perhaps to another replica; open calls "
                 "finish. 0: never")
      ->check(CLI::IsMember({0.0}) | NumberIn(1.0, 1e6))
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option("--max-transport-bytes", options.server.max_transport_bytes,
                 "Most memory of all connections together (1GiB, 500MB ...): over it idle "
                 "connections are closed and calls end with an error")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--max-queued-text-bytes", options.server.long_texts.max_waiting_bytes,
                 "Bytes of long texts that may wait for being tokenized; more are "
                 "RESOURCE_EXHAUSTED")
      ->check(CLI::Range(size_t{1} << 10, size_t{1} << 40))
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option(
         "--drain-seconds", flags.drain_seconds,
         "How long requests may still run after SIGTERM, SIGINT or SIGHUP; a second signal stops "
         "at once. Keep it below the time after which you are killed: 30 s by default in "
         "Kubernetes, 10 s in `docker stop` (give it -t 30, or less here)")
      ->check(NumberIn(0.0, 86400.0))
      ->type_name("SECONDS")
      ->capture_default_str();
}

void Declare(CLI::App& app, Flags& flags) {
  app.description("Serves models over gRPC.");
  app.set_version_flag("--version", "ultrasketchd " ULTRASKETCH_VERSION);
  app.set_config("--config", "", "Read options from a TOML file: keys are the options' names")
      ->type_name("FILE");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.config_formatter(std::make_shared<TomlConfig>());
  app.add_flag("--print-config", flags.print_config,
               "Write the options that are in force, as a file for --config, and exit")
      ->configurable(false);
  DeclareModels(app, flags);
  DeclareAddresses(app, flags);
  DeclareServices(app, flags);
  DeclareSecurity(app, flags);
  DeclareEngine(app, flags);
  DeclareLimits(app, flags);
  DeclareLog(app, flags);
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

// Checks that what protects the gRPC address is whole, and enough for it.
absl::Status FinishSecurity(const Flags& flags, DaemonOptions& options) {
  const TlsFiles& tls = flags.tls;
  if (tls.certificate.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("TLS takes both --tls-cert and --tls-key, found only ",
                     tls.key.empty() ? "--tls-cert" : "--tls-key"));
  }
  if (tls.certificate.empty() && !tls.client_ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-client-ca is about TLS, which takes --tls-cert and --tls-key");
  }
  if (!tls.certificate.empty()) options.tls = tls;
  const ListenAddress& listen = options.server.listen;
  const bool is_loopback = IsLoopback(listen);
  if (!options.tls.has_value() && !is_loopback && !flags.insecure) {
    // Of a name that nobody knows, the start says so.
    US_RETURN_IF_ERROR(ResolveListenAddress(listen).status());
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen ", listen.ToString(),
        " is reached by other machines, in plain text: give --tls-cert and --tls-key; or "
        "--insecure, when something else protects it (docs/security.md); or listen on 127.0.0.1"));
  }
  options.server.admin_rpcs =
      flags.admin_rpcs == "on" ||
      (flags.admin_rpcs == "auto" && (is_loopback || !options.token_file.empty()));
  return absl::OkStatus();
}

// The rest of `options`.
absl::StatusOr<DaemonOptions> Finish(Flags flags) {
  DaemonOptions& options = flags.options;
  if (flags.models.empty() && options.model_repository.empty()) {
    return absl::InvalidArgumentError("nothing to serve: give --model or --model-repository");
  }
  US_ASSIGN_OR_RETURN(options.models, ParseModels(flags.models));
  options.log_format = flags.log_format == "json" ? LogFormat::kJson : LogFormat::kText;
  options.server.request_log.requests = flags.log_requests == "all"      ? LoggedRequests::kAll
                                        : flags.log_requests == "errors" ? LoggedRequests::kErrors
                                                                         : LoggedRequests::kNone;
  options.repository_poll_interval = absl::Seconds(flags.repository_poll_seconds);
  options.drain_patience = absl::Seconds(flags.drain_seconds);
  options.load.engine_loop.delivery_interval = absl::Milliseconds(flags.stream_interval_ms);
  options.load.engine_loop.cache_idle_time = absl::Seconds(flags.cache_idle_seconds);
  options.server.call_limits.max_unread_time = absl::Seconds(flags.max_unread_seconds);
  options.server.call_limits.refusals.max_pause = absl::Milliseconds(flags.refusal_pause_ms);
  options.server.max_connection_age = flags.max_connection_age_seconds > 0
                                          ? absl::Seconds(flags.max_connection_age_seconds)
                                          : absl::InfiniteDuration();
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
  US_RETURN_IF_ERROR(FinishSecurity(flags, options));
  return std::move(options);
}

// CLI11 speaks of INI files.
std::string DescribeConfigError(const CLI::ConfigError& error) {
  const absl::string_view message = error.what();
  const absl::string_view unknown = "INI was not able to parse ";
  if (!absl::StartsWith(message, unknown)) return std::string(message);
  return absl::StrCat("there is no option ", Quoted(S(message.substr(unknown.size()))));
}

}  // namespace

std::variant<DaemonOptions, ExitCode> ParseDaemonOptions(int argc, const char* const* argv) {
  CLI::App app("", "ultrasketchd");
  Flags flags;
  Declare(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ConfigError& error) {
    std::cerr << "ultrasketchd: " << app.get_config_ptr()->as<std::string>() << ": "
              << DescribeConfigError(error) << "\nRun with --help for more information.\n";
    return kExitUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (flags.print_config) {
    std::cout << app.config_to_str(/*default_also=*/true);
    return kExitOk;
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
