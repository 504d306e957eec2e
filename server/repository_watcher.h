// Follows a model repository: folders that come, change and go.
#ifndef ULTRASKETCH_SERVER_REPOSITORY_WATCHER_H_
#define ULTRASKETCH_SERVER_REPOSITORY_WATCHER_H_

#include <map>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "server/model_host.h"

namespace ultrasketch {

// Compares the repository with what it was the last time: a folder that is new or has changed is
// loaded when it has stayed the same from one look to the next (somebody may still be copying); one
// that is gone for two looks is unloaded (somebody may be moving a new version there). A repository
// that cannot be read changes nothing, and names that are served from elsewhere are left alone. Not
// thread-safe.
class RepositoryWatcher {
 public:
  // `host` must outlive the watcher. What the host knows of the repository counts as loaded.
  RepositoryWatcher(std::string repository, ModelHost& host);

  void Look();

 private:
  struct Folder {
    std::string seen;    // the fingerprint at the last look
    std::string loaded;  // the one that was loaded; empty: none
    int looks_gone = 0;  // in a row
  };

  const std::string repository_;
  ModelHost& host_;
  std::map<std::string, Folder> folders_;  // by name
};

// Looks every `interval` on a thread of its own, until destroyed.
class RepositoryPolling {
 public:
  RepositoryPolling(RepositoryWatcher watcher, absl::Duration interval);
  ~RepositoryPolling();
  RepositoryPolling(const RepositoryPolling&) = delete;
  RepositoryPolling& operator=(const RepositoryPolling&) = delete;

 private:
  void Run(absl::Duration interval);

  RepositoryWatcher watcher_;  // the thread's
  absl::Mutex mutex_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REPOSITORY_WATCHER_H_
