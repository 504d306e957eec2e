#include "client/cli/bench_serve.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"

#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/client.h"
#include "client/load/http_get.h"
#include "engine/base/status.h"
#include "engine/bench/load/load_page.h"
#include "engine/bench/load/metrics_delta.h"

namespace ultrasketch::cli {
namespace {

// What a run's own calls, as long as nothing is measured, may take.
constexpr absl::Duration kCallTimeout = absl::Seconds(60);
constexpr absl::Duration kMetricsTimeout = absl::Seconds(10);

// The model to load: `name`, or the server's only one.
absl::StatusOr<client::ModelInfo> FindModel(client::Client& client, const std::string& name,
                                            const client::CallOptions& options) {
  if (!name.empty()) return client.GetModel(name, options);
  US_ASSIGN_OR_RETURN(std::vector<client::ModelInfo> models, client.ListModels(options));
  if (models.size() == 1) return std::move(models.front());
  return absl::InvalidArgumentError(absl::StrCat(
      "the server has ", models.size(), " models: expected --model with one of ",
      absl::StrJoin(models, ", ", [](std::string* text, const client::ModelInfo& model) {
        absl::StrAppend(text, model.name);
      })));
}

// The counters at `url`; none when it is empty.
absl::StatusOr<Counters> ReadCounters(const std::string& url) {
  if (url.empty()) return Counters();
  US_ASSIGN_OR_RETURN(const client::HttpUrl parsed, client::ParseHttpUrl(url));
  US_ASSIGN_OR_RETURN(const std::string page, client::HttpGet(parsed, kMetricsTimeout));
  return ParseCounters(page);
}

nlohmann::ordered_json ToJson(const client::ModelInfo& model) {
  return {{"name", model.name},
          {"architecture", model.architecture},
          {"codec", model.codec},
          {"device", model.device},
          {"parameters", model.num_parameters},
          {"bits_per_weight_linear", model.bits_per_weight_linear},
          {"max_context_tokens", model.max_context_tokens}};
}

}  // namespace

void ServeBench::Declare(CLI::App& app) {
  connection_.Declare(app, "The server to load")->required();
  app.add_option("--model", run_.model, "A model's name; may be left out when there is only one")
      ->type_name("NAME");
  flags_.DeclareOpenLoop(app);
  flags_.DeclareCommon(app);
  const char* client = "Client";
  app.add_option("--channels", client_.num_channels, "Connections; requests take them in turns")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->type_name("N")
      ->group(client);
  app.add_option("--threads", client_.num_threads, "Threads that receive")
      ->check(CLI::Range(1, 256))
      ->capture_default_str()
      ->type_name("N")
      ->group(client);
  app.add_option("--clients", run_.num_clients,
                 "Requests say in turns that they are of one of so many clients (client-id)")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str()
      ->type_name("N")
      ->group(client);
  DeclareSeconds(app, "--deadline", deadline_, "Of each request, from when it was due")
      ->group(client);
  app.add_flag("--retry", run_.retry,
               "Send refused requests again after the delay that the server asks for (with "
               "--concurrency)")
      ->group(client);
  app.add_option("--metrics", metrics_url_,
                 "Read the server's counters here before and after each run")
      ->type_name("http://HOST:PORT/metrics")
      ->group(client);
  app.footer(
      "Times of an open loop count from when a request was due, whatever the client or the server\n"
      "did meanwhile. What the figures mean: docs/benchmarking.md.\n"
      "Examples:\n"
      "  ultrasketch bench serve --target localhost:8001 --concurrency 1,64 --duration 20s\n"
      "  ultrasketch bench serve --target localhost:8001 --model sketch --rate 10,20,40 \\\n"
      "    --prompt-tokens lognormal:200:0.8:700 --output-tokens 16:256 --slo-ttft 200ms "
      "--slo-itl 20ms \\\n    --html load.html");
}

std::string ServeBench::UsageError() const {
  if (std::string error = connection_.UsageError(); !error.empty()) return error;
  if (std::string error = flags_.UsageError(); !error.empty()) return error;
  const bool has_open_loop = flags_.HasOpenLoop();
  if (!has_open_loop && !flags_.HasClosedLoop()) {
    return "one of --concurrency, --rate and --trace is required";
  }
  if (run_.retry && has_open_loop) return "--retry needs --concurrency";
  if (!metrics_url_.empty()) {
    if (const auto url = client::ParseHttpUrl(metrics_url_); !url.ok()) {
      return absl::StrCat("--metrics: ", url.status().message());
    }
  }
  return "";
}

absl::Status ServeBench::Run(const Environment& environment) {
  client::CallOptions call;
  call.timeout = kCallTimeout;
  call.stop = environment.stop;
  client_.target = connection_.target();
  US_ASSIGN_OR_RETURN(client_.channel, connection_.ReadOptions(environment.stop));
  US_ASSIGN_OR_RETURN(const auto client, client::Client::Create(client_.target, client_.channel));
  US_ASSIGN_OR_RETURN(const client::ModelInfo model, FindModel(*client, run_.model, call));
  run_.model = model.name;
  if (model.state != "ready") {
    return absl::UnavailableError(absl::StrCat("model ", model.name, " is ", model.state,
                                               model.error.empty() ? "" : ": ", model.error));
  }
  US_RETURN_IF_ERROR(
      flags_.Prepare(model.vocab_size, model.max_context_tokens, environment.stop,
                     [&](std::string_view piece) -> absl::StatusOr<std::vector<int32_t>> {
                       client::TokenizeRequest request;
                       request.model = model.name;
                       request.text = std::string(piece);
                       request.add_special_tokens = false;
                       request.split_special_tokens = true;
                       US_ASSIGN_OR_RETURN(client::Tokens tokens, client->Tokenize(request, call));
                       return std::move(tokens.ids);
                     }));
  US_ASSIGN_OR_RETURN(const auto load, client::LoadClient::Connect(client_));

  run_.temperature = flags_.temperature();
  run_.deadline = absl::Seconds(deadline_);
  run_.stop = environment.stop;
  std::vector<LoadSummary> runs;
  const std::vector<SchedulePlan> plans = flags_.Plans();
  for (size_t i = 0; i < plans.size(); ++i) {
    US_ASSIGN_OR_RETURN(const Counters before, ReadCounters(metrics_url_));
    absl::StatusOr<RunRecord> record;
    {
      ProgressBar progress(NameLoad(plans[i]));
      run_.progress = [&](int64_t num_ended, double seconds) {
        ShowProgress(plans[i], num_ended, seconds, progress);
      };
      record = load->Run(flags_.WorkloadOf(i), plans[i], run_);
    }
    US_RETURN_IF_ERROR(record.status());
    runs.push_back(flags_.Summarize(*record));
    US_ASSIGN_OR_RETURN(const Counters after, ReadCounters(metrics_url_));
    runs.back().server_counters = AddedBetween(before, after);
    US_RETURN_IF_ERROR(CheckSomeSucceeded(runs.back()));
  }
  const nlohmann::ordered_json head = {{"target", client_.target},
                                       {"model", ToJson(model)},
                                       {"client",
                                        {{"channels", client_.num_channels},
                                         {"threads", client_.num_threads},
                                         {"clients", run_.num_clients},
                                         {"retry", run_.retry}}}};
  return flags_.Write(
      head, absl::StrCat(model.name, " at ", client_.target),
      absl::StrFormat("%s, codec %s, %.3f bits per weight (linear), on %s", model.architecture,
                      model.codec, model.bits_per_weight_linear, model.device),
      runs, environment);
}

}  // namespace ultrasketch::cli
