#include "server/repository_watcher.h"

#include <utility>

#include "server/log.h"
#include "server/model_repository.h"

namespace ultrasketch {
namespace {

// What became of a folder's loading is in ListModels and in the host's own log lines.
void Ignore(const absl::Status&) {}

}  // namespace

RepositoryWatcher::RepositoryWatcher(std::string repository, ModelHost& host)
    : repository_(std::move(repository)), host_(host) {
  const auto sources = FindModels(repository_);
  if (!sources.ok()) return;
  for (const ModelSource& source : *sources) {
    if (host_.FolderOf(source.name) != source.folder) continue;
    const std::string fingerprint = FolderFingerprint(source.folder);
    folders_[source.name] = {fingerprint, fingerprint, 0};
  }
}

void RepositoryWatcher::Look() {
  const auto sources = FindModels(repository_);
  if (!sources.ok()) {
    LogEvent(LogLevel::kWarning, "repository",
             {{"error", std::string(sources.status().message())}});
    return;
  }
  for (auto& [name, folder] : folders_) ++folder.looks_gone;
  for (const ModelSource& source : *sources) {
    if (host_.FolderOf(source.name).value_or(source.folder) != source.folder) continue;
    Folder& folder = folders_[source.name];
    folder.looks_gone = 0;
    const std::string fingerprint = FolderFingerprint(source.folder);
    const bool is_settled = fingerprint == folder.seen;
    folder.seen = fingerprint;
    if (!is_settled) continue;
    // Unreadable: a model that is there goes on, and of a new one the host shall know why it fails.
    if (fingerprint.empty() ? host_.Get(source.name).ok() : fingerprint == folder.loaded) continue;
    folder.loaded = fingerprint;
    host_.Load(source.name, Ignore);
  }
  for (auto folder = folders_.begin(); folder != folders_.end();) {
    const auto& [name, state] = *folder;
    if (state.looks_gone < 2) {
      ++folder;
    } else if (state.loaded.empty() || !host_.Get(name).ok()) {
      folder = folders_.erase(folder);
    } else {
      // Again at the next look, if it is still being loaded.
      host_.Unload(name, Ignore);
      ++folder;
    }
  }
}

RepositoryPolling::RepositoryPolling(RepositoryWatcher watcher, absl::Duration interval)
    : watcher_(std::move(watcher)), thread_([this, interval] { Run(interval); }) {}

RepositoryPolling::~RepositoryPolling() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  thread_.join();
}

void RepositoryPolling::Run(absl::Duration interval) {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&is_stopping_), interval)) return;
    }
    watcher_.Look();
  }
}

}  // namespace ultrasketch
