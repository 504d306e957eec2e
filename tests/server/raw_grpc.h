// Talking to a server below the level of generated stubs.
#ifndef ULTRASKETCH_TESTS_SERVER_RAW_GRPC_H_
#define ULTRASKETCH_TESTS_SERVER_RAW_GRPC_H_

#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

namespace ultrasketch {

// A connected TCP socket to 127.0.0.1. Closed on destruction.
class RawConnection {
 public:
  explicit RawConnection(int port);
  // Takes over a connected socket.
  struct Adopt {};
  RawConnection(int descriptor, Adopt);
  ~RawConnection();
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;

  // Sends what the peer takes. False when it has closed the connection.
  bool Send(std::string_view bytes);
  // Everything up to the end of the stream, or until the peer is silent for 5 seconds.
  std::string ReceiveAll();
  // Closes with a reset rather than an end of stream.
  void Reset();

  int descriptor() const { return descriptor_; }

 private:
  int descriptor_ = -1;
};

// Passes the bytes of one TCP connection on to a server, both ways, until it is broken.
class BreakableProxy {
 public:
  explicit BreakableProxy(int server_port);
  ~BreakableProxy();

  // Where it takes the connection.
  int port() const { return port_; }

  // Resets both sides, as when the client's machine loses power and its network says so.
  void Break();

 private:
  void ThreadMain(int server_port);

  int port_ = 0;
  int listener_ = -1;
  int stop_pipe_[2] = {-1, -1};
  std::thread thread_;
};

// Sends `request` and returns all that comes back until the peer closes.
std::string ExchangeBytes(int port, std::string_view request);

// A call with serialized messages: unary, or the first answer of a bidirectional stream whose
// client sends one message.
struct RawAnswer {
  grpc::Status status;
  std::string message;
};
RawAnswer CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                  std::string_view request);

// grpc.health.v1.Health.Watch of a service, or of the server, open until destruction.
class HealthWatch {
 public:
  // Waits for the first answer.
  explicit HealthWatch(const std::shared_ptr<grpc::Channel>& channel,
                       const std::string& service = "");
  ~HealthWatch();

  // The last answer: "SERVING", "NOT_SERVING", ...
  std::string status() const;
  // Waits for the next one; "" when the stream has ended.
  std::string Next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// grpc.health.v1.Health.Check: "SERVING", "NOT_SERVING", ... or the error's code, "NOT_FOUND".
std::string CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVER_RAW_GRPC_H_
