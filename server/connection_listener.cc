#include "server/connection_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "engine/base/check.h"
#include "server/log.h"

namespace ultrasketch {
namespace {

// How stale the count of connections may be, in the metric and against the limit.
constexpr absl::Duration kCountInterval = absl::Seconds(1);
constexpr absl::Duration kFullSweepInterval = absl::Milliseconds(10);
constexpr absl::Duration kLogInterval = absl::Seconds(10);
// Connections accepted from one socket before the others are looked at.
constexpr int kMaxAccepted = 64;

int OpenReserve() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionListener>> ConnectionListener::Open(
    const ListenAddress& address, int max_connections, TransportMetrics& metrics) {
  absl::StatusOr<ListeningSockets> sockets = ListeningSockets::Open(address);
  if (!sockets.ok()) return sockets.status();
  return std::unique_ptr<ConnectionListener>(
      new ConnectionListener(*std::move(sockets), max_connections, metrics));
}

ConnectionListener::ConnectionListener(ListeningSockets sockets, int max_connections,
                                       TransportMetrics& metrics)
    : sockets_(std::move(sockets)),
      max_connections_(static_cast<size_t>(max_connections)),
      metrics_(metrics),
      reserve_descriptor_(OpenReserve()),
      stop_descriptor_(eventfd(0, EFD_CLOEXEC)) {
  US_CHECK(stop_descriptor_ >= 0);
}

ConnectionListener::~ConnectionListener() {
  Stop();
  if (reserve_descriptor_ >= 0) close(reserve_descriptor_);
  close(stop_descriptor_);
}

void ConnectionListener::Start(std::unique_ptr<Acceptor> acceptor) {
  acceptor_ = std::move(acceptor);
  thread_ = std::thread([this] { ThreadMain(); });
}

void ConnectionListener::Stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  US_CHECK(write(stop_descriptor_, &one, sizeof(one)) == sizeof(one));
  thread_.join();
  sockets_.Close();
}

void ConnectionListener::ThreadMain() {
  std::vector<pollfd> events = {{stop_descriptor_, POLLIN, 0}};
  for (const int descriptor : sockets_.descriptors()) events.push_back({descriptor, POLLIN, 0});
  while (true) {
    const int timeout_ms =
        connections_.empty() ? -1 : static_cast<int>(absl::ToInt64Milliseconds(kCountInterval));
    poll(events.data(), events.size(), timeout_ms);
    if (events[0].revents != 0) return;
    for (size_t i = 1; i < events.size(); ++i) {
      if (events[i].revents != 0) AcceptAll(events[i].fd);
    }
    const absl::Time now = absl::Now();
    if (now - last_sweep_ >= kCountInterval) Sweep(now);
  }
}

void ConnectionListener::AcceptAll(int listener) {
  for (int i = 0; i < kMaxAccepted; ++i) {
    const int descriptor = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor < 0) {
      if (errno == EMFILE || errno == ENFILE) RefuseForWantOfDescriptors(listener);
      // Anything else is one connection's own, or that there is no further one.
      return;
    }
    if (connections_.size() >= max_connections_) {
      const absl::Time now = absl::Now();
      if (now - last_sweep_ >= kFullSweepInterval) Sweep(now);
    }
    struct stat status = {};
    if (connections_.size() >= max_connections_ || fstat(descriptor, &status) != 0) {
      metrics_.refused_for_limit.Increment();
      LogRefusal("max_connections");
      close(descriptor);
      continue;
    }
    const int yes = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    connections_[descriptor] = status.st_ino;
    metrics_.connections.Set(static_cast<double>(connections_.size()));
    Acceptor::NewConnectionParameters connection;
    connection.listener_fd = listener;
    connection.fd = descriptor;
    acceptor_->HandleNewConnection(&connection);
  }
}

void ConnectionListener::RefuseForWantOfDescriptors(int listener) {
  metrics_.refused_for_descriptors.Increment();
  LogRefusal("file_descriptors");
  if (reserve_descriptor_ >= 0) {
    close(reserve_descriptor_);
    const int descriptor = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (descriptor >= 0) close(descriptor);
    reserve_descriptor_ = OpenReserve();
  } else {
    // Somebody else has taken it: the connections wait, and this thread must not spin.
    pollfd stop = {stop_descriptor_, POLLIN, 0};
    poll(&stop, 1, static_cast<int>(absl::ToInt64Milliseconds(kFullSweepInterval)));
    reserve_descriptor_ = OpenReserve();
  }
}

void ConnectionListener::Sweep(absl::Time now) {
  last_sweep_ = now;
  for (auto connection = connections_.begin(); connection != connections_.end();) {
    struct stat status = {};
    const bool is_open =
        fstat(connection->first, &status) == 0 && status.st_ino == connection->second;
    connection = is_open ? std::next(connection) : connections_.erase(connection);
  }
  metrics_.connections.Set(static_cast<double>(connections_.size()));
}

void ConnectionListener::LogRefusal(const char* reason) {
  const absl::Time now = absl::Now();
  if (now - last_refusal_log_ < kLogInterval) return;
  last_refusal_log_ = now;
  LogEvent(LogLevel::kWarning, "connection_refused",
           {{"reason", reason}, {"connections", LogNumber(connections_.size())}});
}

int64_t RaiseDescriptorLimit() {
  constexpr rlim_t kMost = rlim_t{1} << 20;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlim_t wanted = std::min(limit.rlim_max, kMost);
  if (wanted > limit.rlim_cur) {
    const rlimit raised = {wanted, limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  return static_cast<int64_t>(std::min(limit.rlim_cur, kMost));
}

}  // namespace ultrasketch
