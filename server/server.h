// The gRPC server: generation and model services, KServe's protocol, health and reflection.
#ifndef ULTRASKETCH_SERVER_SERVER_H_
#define ULTRASKETCH_SERVER_SERVER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "server/listen_address.h"
#include "server/metrics.h"
#include "server/model_host.h"
#include "server/open_calls.h"
#include "server/request_log.h"
#include "server/token_file.h"
#include "server/transport_credentials.h"
#include "server/work_queue.h"

namespace ultrasketch {

struct ServerOptions {
  ListenAddress listen;
  // Larger requests are RESOURCE_EXHAUSTED without being read. Enough that a prompt of 10 MB still
  // gets an answer that names the model's limit.
  int max_message_bytes = 16 << 20;
  // Most bytes of metadata in one call. gRPC ends the connection of a client that sends more.
  int max_metadata_bytes = 64 << 10;
  // Connections at a time; further ones are closed as they come.
  int max_connections = 4096;
  // When a connection is about so old, a tenth more or less, its client is told to make calls on
  // another (GOAWAY); open calls finish. At least a second.
  absl::Duration max_connection_age = absl::InfiniteDuration();
  // What gRPC may hold in memory for all connections: messages on their way in, streams, unsent
  // answers. Over it gRPC ends streams and idle connections.
  int64_t max_transport_bytes = int64_t{1} << 30;
  // TLS; null: plain text.
  std::shared_ptr<TlsCertificates> certificates;
  // Who may call; null: whoever reaches the server.
  std::shared_ptr<TokenFile> tokens;
  // Whether LoadModel, UnloadModel and MeasureOverhead can be called.
  bool admin_rpcs = true;
  bool reflection = true;
  RequestLogOptions request_log;
  // Texts too long for gRPC's event threads: who waits to be tokenized.
  WorkQueueOptions long_texts;
  CallLimits call_limits;
  // Whether KServe's Open Inference Protocol is served: docs/kserve.md.
  bool kserve = true;
  // Whether health says SERVING for the server from the start, or after SetReady.
  bool is_ready = true;
};

// Thread-safe. Destruction cancels what is in flight.
class Server {
 public:
  // Listens and serves. `host` and `metrics` must outlive the server. Health follows the host's
  // models. An error says why the address cannot be listened on; a port that
  // another server listens on is one.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       ModelHost& host, Metrics& metrics);
  ~Server();

  // With the port that was picked.
  const ListenAddress& address() const;

  // What the health service answers for "" and the full names of the gRPC services, which are the
  // server. For a model's name it answers SERVING while the model is READY.
  void SetReady(bool is_ready);

  // Health answers NOT_SERVING for every name, for good.
  void SetNotServing();

  // Waits until no generation or scoring call is open, or for the deadline, and ends the server;
  // what is still open is cancelled. Calls that come meanwhile are the host's to refuse. A client
  // that watches health, or keeps a connection, is not waited for.
  void Shutdown(absl::Time deadline);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_SERVER_H_
