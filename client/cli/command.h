// A subcommand of `ultrasketch`.
#ifndef ULTRASKETCH_CLIENT_CLI_COMMAND_H_
#define ULTRASKETCH_CLIENT_CLI_COMMAND_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include <CLI/CLI.hpp>

#include "client/cli/interrupt.h"

namespace ultrasketch::cli {

// What a command runs in.
struct Environment {
  bool json = false;     // one JSON object on standard output, nothing else
  std::stop_token stop;  // requested by Ctrl-C and SIGTERM: finish soon, leave nothing half done
  // Where `stop` comes from; outlives the command.
  InterruptGuard* interrupt = nullptr;
};

// Lives as long as the process's one command line.
class Command {
 public:
  virtual ~Command() = default;

  virtual const char* name() const = 0;
  virtual const char* summary() const = 0;  // one line for the list of commands

  // Adds options, examples and nested commands to `app`; values are kept in this object.
  virtual void Declare(CLI::App& app) = 0;

  // What is wrong with a combination of options that each parsed well; "" when nothing is.
  virtual std::string UsageError() const { return ""; }

  // Does the work and writes the result to standard output.
  virtual absl::Status Run(const Environment& environment) = 0;
};

// Refuses what is not a whole number of at least `minimum` that an integer of type T holds. (CLI11
// alone would wrap around for an unsigned option, and cut at 64 bits.)
template <typename T>
CLI::Validator AtLeast(T minimum) {
  return CLI::Validator(
      [minimum](const std::string& text) {
        T value;
        if (absl::SimpleAtoi(text, &value) && value >= minimum) return std::string();
        return absl::StrCat("'", text, "' is not a whole number in [", minimum, ", ",
                            std::numeric_limits<T>::max(), "]");
      },
      "");
}

// Refuses what is not a number from `least` to `most`. (CLI::Range takes "nan" for one of any
// range.)
CLI::Validator NumberIn(double least, double most);

// --timeout SECONDS, more than 0. `seconds` stays infinite when it is left out.
void DeclareTimeout(CLI::App& app, double& seconds);

std::unique_ptr<Command> MakeCompressCommand();
std::unique_ptr<Command> MakeInspectCommand();
std::unique_ptr<Command> MakeEvalCommand();
std::unique_ptr<Command> MakeSelfTextCommand();
std::unique_ptr<Command> MakeGenerateCommand();
std::unique_ptr<Command> MakeChatCommand();
std::unique_ptr<Command> MakeTokenizeCommand();
std::unique_ptr<Command> MakeDetokenizeCommand();
std::unique_ptr<Command> MakeModelsCommand();
std::unique_ptr<Command> MakeHealthCommand();
std::unique_ptr<Command> MakeImportGgufCommand();
std::unique_ptr<Command> MakeBenchCommand();

// Parses the command line and runs it. Returns the exit code: 0 ok, 1 failed, 2 usage. Ctrl-C and
// SIGTERM are handled and SIGPIPE is ignored from here on.
int RunCommandLine(int argc, const char* const* argv);

}  // namespace ultrasketch::cli

#endif  // ULTRASKETCH_CLIENT_CLI_COMMAND_H_
