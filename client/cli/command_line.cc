#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <new>
#include <string_view>

#include "absl/strings/str_cat.h"

#include "client/cli/command.h"
#include "client/cli/finetune.h"
#include "client/cli/interrupt.h"
#include "client/cli/output.h"

namespace ultrasketch::cli {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr char kDescription[] =
    "Compresses Llama-family language models with hash sketches, and generates text from them\n"
    "here or through a server.";

std::vector<std::unique_ptr<Command>> MakeCommands() {
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeCompressCommand());
  commands.push_back(MakeInspectCommand());
  commands.push_back(MakeEvalCommand());
  commands.push_back(MakeSelfTextCommand());
  commands.push_back(MakeGenerateCommand());
  commands.push_back(MakeChatCommand());
  commands.push_back(MakeTokenizeCommand());
  commands.push_back(MakeDetokenizeCommand());
  commands.push_back(MakeModelsCommand());
  commands.push_back(MakeHealthCommand());
  commands.push_back(MakeImportGgufCommand());
  commands.push_back(MakeBenchCommand());
  return commands;
}

// The innermost command on the command line, as the user spelled it.
const CLI::App* ParsedCommand(const CLI::App* app, std::string* path) {
  *path = app->get_name();
  while (!app->get_subcommands().empty()) {
    app = app->get_subcommands().front();
    absl::StrAppend(path, " ", app->get_name());
  }
  return app;
}

int FailUsage(const CLI::App& app, std::string_view message) {
  std::string path;
  ParsedCommand(&app, &path);
  std::cerr << path << ": " << message << "\nTry '" << path << " --help'.\n";
  return kExitUsage;
}

// `path` is the command as the user spelled it.
int Finish(const absl::Status& status, const std::string& path, const Environment& environment) {
  if (status.ok()) return kExitOk;
  if (IsBrokenPipe(status)) return kExitFailed;
  const bool interrupted = environment.stop.stop_requested() && absl::IsCancelled(status);
  const std::string code = absl::StatusCodeToString(status.code());
  const std::string message =
      interrupted ? absl::StrCat("interrupted: ", status.message()) : std::string(status.message());
  std::cerr << path << ": " << message << (interrupted ? "" : absl::StrCat(" [", code, "]"))
            << "\n";
  if (environment.json) {
    // The command has written nothing yet: results are written last.
    WriteJson({{"error", {{"code", code}, {"message", message}}}}).IgnoreError();
  }
  return kExitFailed;
}

}  // namespace

CLI::Validator NumberIn(double least, double most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        double value;
        if (absl::SimpleAtod(text, &value) && value >= least && value <= most) return std::string();
        return absl::StrCat("'", text, "' is not a number in [", least, ", ", most, "]");
      },
      absl::StrCat("FLOAT in [", least, " - ", most, "]"));
}

void DeclareTimeout(CLI::App& app, double& seconds) {
  const auto is_positive = [](const std::string& text) {
    double value;
    if (absl::SimpleAtod(text, &value) && value > 0) return std::string();
    return absl::StrCat("'", text, "' is not a number of seconds greater than 0");
  };
  app.add_option("--timeout", seconds, "Give up after this long")
      ->check(CLI::Validator(is_positive, ""))
      ->type_name("SECONDS");
}

int RunCommandLine(int argc, const char* const* argv) {
  // Writes fail with an error instead, which is reported, and what was half written is removed.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  // gRPC's own lines on standard error say nothing that the status does not.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);

  CLI::App app(kDescription, "ultrasketch");
  app.require_subcommand(1);
  app.set_help_flag("-h,--help", "Show this help and exit");
  app.set_version_flag("--version", "ultrasketch " ULTRASKETCH_VERSION,
                       "Show the version and exit");
  app.get_formatter()->column_width(34);
  app.footer(
      "'ultrasketch COMMAND --help' shows a command's options and an example.\n"
      "Exit codes: 0 ok, 1 failed, 2 usage.");

  const std::vector<std::unique_ptr<Command>> commands = MakeCommands();
  Environment environment;
  for (const auto& command : commands) {
    CLI::App* declared = app.add_subcommand(command->name(), command->summary());
    command->Declare(*declared);
    // A command is its own, or its nested ones.
    const auto leaves = declared->get_subcommands([](CLI::App*) { return true; });
    for (CLI::App* leaf : leaves.empty() ? std::vector<CLI::App*>{declared} : leaves) {
      leaf->add_flag("--json", environment.json, "Write one JSON object to standard output");
    }
  }

  app.add_subcommand(kFinetuneName, kFinetuneSummary);
  if (argc > 1 && argv[1] == std::string_view(kFinetuneName)) {
    const absl::Span<const char* const> arguments(argv + 2, static_cast<size_t>(argc - 2));
    environment.json =
        std::count(arguments.begin(), arguments.end(), std::string_view("--json")) > 0;
    return Finish(BecomeTrainer(arguments), absl::StrCat(app.get_name(), " ", kFinetuneName),
                  environment);
  }

  const auto is_command = [&](std::string_view word) {
    return std::any_of(commands.begin(), commands.end(),
                       [&](const auto& command) { return word == command->name(); });
  };
  if (argc > 1 && argv[1][0] != '-' && !is_command(argv[1])) {
    return FailUsage(app, absl::StrCat("there is no command '", argv[1], "'"));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    app.exit(request);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    return FailUsage(app, error.what());
  }

  for (const auto& command : commands) {
    if (!app.got_subcommand(command->name())) continue;
    if (const std::string error = command->UsageError(); !error.empty()) {
      return FailUsage(app, error);
    }
    InterruptGuard interrupt;
    environment.stop = interrupt.stop();
    environment.interrupt = &interrupt;
    absl::Status status;
    try {
      status = command->Run(environment);
    } catch (const std::bad_alloc&) {
      status = absl::ResourceExhaustedError("out of memory");
    } catch (const std::exception& error) {  // of a library, against our expectations
      status = absl::InternalError(error.what());
    }
    std::string path;
    ParsedCommand(&app, &path);
    return Finish(status, path, environment);
  }
  return kExitUsage;
}

}  // namespace ultrasketch::cli
