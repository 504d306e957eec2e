// `ultrasketch`: compresses models and generates text from them. See --help.
#include "absl/synchronization/mutex.h"

#include "client/cli/command.h"

int main(int argc, char** argv) {
  // Debian's Abseil looks for deadlocks, under one lock for all threads, whenever a mutex is taken
  // while another is held.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return ultrasketch::cli::RunCommandLine(argc, argv);
}
