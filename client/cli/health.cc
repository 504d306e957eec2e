#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

#include "client/cli/command.h"
#include "client/cli/connection.h"
#include "client/cli/output.h"
#include "client/client.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

class HealthCommand : public Command {
 public:
  const char* name() const override { return "health"; }
  const char* summary() const override { return "Ask whether a server, or one model, serves"; }

  void Declare(CLI::App& app) override {
    connection_.Declare(app, "The server's address")->required();
    app.add_option("--service", service_, "A model's name; the server when left out")
        ->type_name("NAME");
    DeclareTimeout(app, timeout_seconds_);
    app.footer(
        "Example:\n  ultrasketch health --target localhost:8001 --service sketch\n"
        "\n"
        "The exit code is 0 when the answer is SERVING, and 1 for any other and without an answer\n"
        "within --timeout, 5 seconds when left out.");
  }

  std::string UsageError() const override { return connection_.UsageError(); }

  absl::Status Run(const Environment& environment) override {
    US_ASSIGN_OR_RETURN(const auto client, connection_.Connect());
    client::CallOptions options;
    options.stop = environment.stop;
    options.timeout = absl::Seconds(timeout_seconds_);
    US_ASSIGN_OR_RETURN(const std::string status, client->Health(service_, options));
    if (status != "SERVING") {
      return absl::UnavailableError(
          absl::StrCat(service_.empty() ? "the server" : absl::StrCat("service ", Quoted(service_)),
                       " is ", status));
    }
    if (environment.json) return WriteJson({{"service", service_}, {"status", status}});
    return WriteOutput(absl::StrCat(status, "\n"));
  }

 private:
  Connection connection_;
  std::string service_;
  double timeout_seconds_ = 5;
};

}  // namespace

std::unique_ptr<Command> MakeHealthCommand() { return std::make_unique<HealthCommand>(); }

}  // namespace ultrasketch::cli
