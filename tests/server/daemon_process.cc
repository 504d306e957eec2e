#include "tests/server/daemon_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <grpcpp/grpcpp.h>
#include <sys/wait.h>

#include "engine/base/check.h"

extern char** environ;

namespace ultrasketch {

using ::testing::HasSubstr;
using ::testing::Not;

Daemon::Daemon(std::vector<std::string> arguments, bool pick_ports, int max_open_files) {
  arguments.insert(arguments.begin(), ULTRASKETCHD_PATH);
  if (pick_ports) {
    for (const char* argument :
         {"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--threads", "1"}) {
      arguments.emplace_back(argument);
    }
  }
  const char* program = ULTRASKETCHD_PATH;
  if (max_open_files > 0) {
    program = "/bin/sh";
    arguments.insert(
        arguments.begin(),
        {program, "-c", "ulimit -n " + std::to_string(max_open_files) + " && exec \"$0\" \"$@\""});
  }
  int pipe_ends[2];
  US_CHECK(pipe2(pipe_ends, O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  US_CHECK(posix_spawn(&process_, program, &actions, nullptr, argv.data(), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_ends[1]);
  stderr_ = pipe_ends[0];
}

Daemon::~Daemon() {
  if (process_ != 0) {
    kill(process_, SIGKILL);
    Wait();
  }
  close(stderr_);
}

std::string Daemon::AwaitLine(const std::string& text) {
  std::string line;
  char c = 0;
  while (read(stderr_, &c, 1) == 1) {
    output_ += c;
    if (c != '\n') {
      line += c;
    } else if (line.find(text) != std::string::npos) {
      return line;
    } else {
      line.clear();
    }
  }
  return "";
}

int Daemon::Wait() {
  int status = 0;
  US_CHECK(waitpid(process_, &status, 0) == process_);
  process_ = 0;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int Daemon::WaitForEnd() {
  AwaitLine("\n");
  return Wait();
}

void Daemon::Signal(int signal) { kill(process_, signal); }

void Daemon::AwaitServing() {
  const std::string line = AwaitLine("event=serving");
  ASSERT_NE(line, "") << output_;
  listen_ = ValueOf(line, "listen");
  metrics_port_ = std::stoi(ValueOf(line, "metrics").substr(std::string("127.0.0.1:").size()));
  stub_ = v1::GenerationService::NewStub(
      grpc::CreateChannel("ipv4:" + listen_, grpc::InsecureChannelCredentials()));
}

std::string Daemon::ValueOf(const std::string& line, const std::string& key) {
  const size_t begin = line.find(" " + key + "=");
  if (begin == std::string::npos) return "";
  const size_t value = begin + key.size() + 2;
  return line.substr(value, line.find(' ', value) - value);
}

void ExpectFailure(std::vector<std::string> arguments, int exit_code, const std::string& message,
                   bool pick_ports) {
  Daemon daemon(std::move(arguments), pick_ports);
  EXPECT_EQ(daemon.WaitForEnd(), exit_code);
  EXPECT_THAT(daemon.output(), HasSubstr(message));
  EXPECT_THAT(daemon.output(), Not(HasSubstr("event=serving")));
}

}  // namespace ultrasketch
