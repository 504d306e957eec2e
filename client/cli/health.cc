#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "client/cli/command.h"
#include "client/cli/connection.h"
#include "client/cli/output.h"
#include "client/client.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

constexpr absl::Duration kPollEvery = absl::Milliseconds(200);

// Whether asking again may give another answer: a server that starts is not there yet, or does not
// know all of its models.
bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsNotFound(status);
}

// False when a stop was requested in the meantime.
bool SleepUnlessStopped(absl::Duration duration, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, stop, absl::ToChronoMilliseconds(duration), [] { return false; });
  return !stop.stop_requested();
}

class HealthCommand : public Command {
 public:
  const char* name() const override { return "health"; }
  const char* summary() const override { return "Ask whether a server, or one model, serves"; }

  void Declare(CLI::App& app) override {
    connection_.Declare(app, "The server's address")->required();
    app.add_option("--service", service_, "A model's name; the server when left out")
        ->type_name("NAME");
    app.add_option("--wait", wait_seconds_, "Ask again until it serves, for so long at most")
        ->check(NumberIn(0.0, 1e6))
        ->type_name("SECONDS");
    DeclareTimeout(app, timeout_seconds_);
    app.footer(
        "Examples:\n"
        "  ultrasketch health --target localhost:8001 --service sketch\n"
        "  ultrasketch health --target localhost:8001 --wait 60\n"
        "\n"
        "The exit code is 0 when the answer is SERVING, and 1 for any other and without an answer\n"
        "within --timeout, 5 seconds when left out.");
  }

  std::string UsageError() const override { return connection_.UsageError(); }

  absl::Status Run(const Environment& environment) override {
    // Once: what comes through a pipe does not come again.
    US_ASSIGN_OR_RETURN(const client::ChannelOptions channel,
                        connection_.ReadOptions(environment.stop));
    const absl::Time end = absl::Now() + absl::Seconds(wait_seconds_);
    absl::Status asked = Ask(channel, environment.stop);
    while (MayPass(asked)) {
      const absl::Duration left = end - absl::Now();
      if (left <= absl::ZeroDuration()) break;
      if (!SleepUnlessStopped(std::min(kPollEvery, left), environment.stop)) {
        return absl::CancelledError("the wait was stopped");
      }
      asked = Ask(channel, environment.stop);
    }
    US_RETURN_IF_ERROR(asked);
    constexpr char kServing[] = "SERVING";
    if (environment.json) return WriteJson({{"service", service_}, {"status", kServing}});
    return WriteOutput(absl::StrCat(kServing, "\n"));
  }

 private:
  // OK when the answer is SERVING. Over a connection of its own: one that has failed waits longer
  // for its next attempt than we do.
  absl::Status Ask(const client::ChannelOptions& channel, const std::stop_token& stop) {
    US_ASSIGN_OR_RETURN(const auto client, client::Client::Create(connection_.target(), channel));
    client::CallOptions options;
    options.stop = stop;
    options.timeout = absl::Seconds(timeout_seconds_);
    const std::string asked =
        service_.empty() ? "the server" : absl::StrCat("service ", Quoted(service_));
    const absl::StatusOr<std::string> status = client->Health(service_, options);
    if (absl::IsNotFound(status.status())) return Annotate(status.status(), asked);
    US_RETURN_IF_ERROR(status.status());
    if (*status == "SERVING") return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(asked, " is ", *status));
  }

  Connection connection_;
  std::string service_;
  double wait_seconds_ = 0;
  double timeout_seconds_ = 5;
};

}  // namespace

std::unique_ptr<Command> MakeHealthCommand() { return std::make_unique<HealthCommand>(); }

}  // namespace ultrasketch::cli
