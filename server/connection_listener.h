// Accepts connections for the gRPC server and counts them. gRPC's own listener takes any number of
// them, and once it has met the limit of file descriptors it never accepts again.
#ifndef ULTRASKETCH_SERVER_CONNECTION_LISTENER_H_
#define ULTRASKETCH_SERVER_CONNECTION_LISTENER_H_

#include <cstdint>
#include <memory>
#include <thread>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include <grpcpp/server_builder.h>
#include <sys/types.h>

#include "server/listen_address.h"
#include "server/metrics.h"

namespace ultrasketch {

// Thread-compatible; connections come and go on a thread of its own.
class ConnectionListener {
 public:
  using Acceptor = grpc::experimental::ExternalConnectionAcceptor;

  // Listens, and accepts from Start on. A connection over `max_connections`, or one that there is
  // no file descriptor for, is closed at once, so that its client learns of it rather than waits;
  // the next one is served when another has ended. `metrics` outlives the listener.
  static absl::StatusOr<std::unique_ptr<ConnectionListener>> Open(const ListenAddress& address,
                                                                  int max_connections,
                                                                  TransportMetrics& metrics);
  // Stops, if Stop was not called.
  ~ConnectionListener();

  // With the port that was picked.
  const ListenAddress& address() const { return sockets_.address(); }

  // Hands every connection to `acceptor`, of a server that has started. Once.
  void Start(std::unique_ptr<Acceptor> acceptor);

  // Accepts no more and closes the listening sockets. Connections stay.
  void Stop();

 private:
  ConnectionListener(ListeningSockets sockets, int max_connections, TransportMetrics& metrics);

  void ThreadMain();
  // Accepts what waits on a listening socket.
  void AcceptAll(int listener);
  // Lets go of the descriptor that is kept for this, to accept one connection and close it.
  void RefuseForWantOfDescriptors(int listener);
  // Forgets the connections that gRPC has closed.
  void Sweep(absl::Time now);
  void LogRefusal(const char* reason);

  ListeningSockets sockets_;
  const size_t max_connections_;
  TransportMetrics& metrics_;
  std::unique_ptr<Acceptor> acceptor_;
  int reserve_descriptor_ = -1;
  int stop_descriptor_ = -1;
  // By descriptor, the socket's inode: when gRPC has closed the descriptor, it is free, or another
  // file's.
  std::unordered_map<int, ino_t> connections_;
  absl::Time last_sweep_ = absl::InfinitePast();
  absl::Time last_refusal_log_ = absl::InfinitePast();
  std::thread thread_;
};

// Raises the soft limit of open files to the hard one, 2^20 at most, and returns it.
int64_t RaiseDescriptorLimit();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_CONNECTION_LISTENER_H_
