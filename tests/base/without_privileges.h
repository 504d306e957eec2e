// Runs a part of a test as somebody whom the modes of files bind, which they do not root.
#ifndef ULTRASKETCH_TESTS_BASE_WITHOUT_PRIVILEGES_H_
#define ULTRASKETCH_TESTS_BASE_WITHOUT_PRIVILEGES_H_

#include <grp.h>
#include <unistd.h>

#include <functional>
#include <string>

#include <sys/wait.h>

namespace ultrasketch {

// The result of `part`, called in a child process: as nobody (user and group 65534) when this
// process is root's, else as whoever it is. "" when the child fails. Threads of this process do not
// exist in the child.
inline std::string WithoutPrivileges(const std::function<std::string()>& part) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  const pid_t child = fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    const bool dropped = geteuid() != 0 ||
                         (setgroups(0, nullptr) == 0 && setresgid(kNobody, kNobody, kNobody) == 0 &&
                          setresuid(kNobody, kNobody, kNobody) == 0);
    const std::string result = dropped ? part() : "";
    const ssize_t written = write(ends[1], result.data(), result.size());
    _exit(written == static_cast<ssize_t>(result.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string result;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) {
    result.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  const bool ended = child > 0 && waitpid(child, &status, 0) == child;
  return ended && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? result : "";
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_BASE_WITHOUT_PRIVILEGES_H_
