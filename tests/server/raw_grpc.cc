#include "tests/server/raw_grpc.h"

#include <poll.h>
#include <unistd.h>

#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "engine/base/check.h"

namespace ultrasketch {

RawConnection::RawConnection(int port) : descriptor_(socket(AF_INET, SOCK_STREAM, 0)) {
  US_CHECK(descriptor_ >= 0);
  const timeval timeout = {5, 0};
  setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
}

RawConnection::RawConnection(int descriptor, Adopt) : descriptor_(descriptor) {
  US_CHECK(descriptor_ >= 0);
}

RawConnection::~RawConnection() {
  if (descriptor_ >= 0) close(descriptor_);
}

bool RawConnection::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

std::string RawConnection::ReceiveAll() {
  std::string received;
  char buffer[4096];
  while (true) {
    const ssize_t size = recv(descriptor_, buffer, sizeof(buffer), 0);
    if (size <= 0) return received;
    received.append(buffer, static_cast<size_t>(size));
  }
}

void RawConnection::Reset() {
  const linger reset = {1, 0};
  setsockopt(descriptor_, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  close(descriptor_);
  descriptor_ = -1;
}

BreakableProxy::BreakableProxy(int server_port) : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  US_CHECK(bind(listener_, reinterpret_cast<const sockaddr*>(&address), size) == 0);
  US_CHECK(listen(listener_, 1) == 0);
  US_CHECK(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  US_CHECK(pipe(stop_pipe_) == 0);
  thread_ = std::thread([this, server_port] { ThreadMain(server_port); });
}

BreakableProxy::~BreakableProxy() {
  Break();
  close(listener_);
  close(stop_pipe_[0]);
}

void BreakableProxy::Break() {
  if (!thread_.joinable()) return;
  close(stop_pipe_[1]);
  thread_.join();
}

void BreakableProxy::ThreadMain(int server_port) {
  pollfd accepting[] = {{listener_, POLLIN, 0}, {stop_pipe_[0], POLLIN, 0}};
  poll(accepting, 2, -1);
  if (accepting[1].revents != 0) return;
  RawConnection client(accept(listener_, nullptr, nullptr), RawConnection::Adopt());
  RawConnection server(server_port);
  while (true) {
    pollfd events[] = {{client.descriptor(), POLLIN, 0},
                       {server.descriptor(), POLLIN, 0},
                       {stop_pipe_[0], POLLIN, 0}};
    poll(events, 3, -1);
    if (events[2].revents != 0) break;
    char buffer[4096];
    bool is_open = true;
    for (const auto& [from, to, event] :
         {std::tuple(&client, &server, events[0]), std::tuple(&server, &client, events[1])}) {
      if (event.revents == 0) continue;
      const ssize_t num_bytes = recv(from->descriptor(), buffer, sizeof(buffer), 0);
      is_open = is_open && num_bytes > 0 &&
                to->Send(std::string_view(buffer, static_cast<size_t>(num_bytes)));
    }
    if (!is_open) break;
  }
  client.Reset();
  server.Reset();
}

std::string ExchangeBytes(int port, std::string_view request) {
  RawConnection connection(port);
  EXPECT_TRUE(connection.Send(request));
  return connection.ReceiveAll();
}

RawAnswer CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                  std::string_view request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  grpc::CompletionQueue queue;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  RawAnswer answer;
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  if (wait()) {
    const grpc::Slice slice(request.data(), request.size());
    call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    wait();
    grpc::ByteBuffer buffer;
    call->Read(&buffer, nullptr);
    std::vector<grpc::Slice> slices;
    if (wait() && buffer.Dump(&slices).ok()) {
      for (const grpc::Slice& part : slices) {
        answer.message.append(reinterpret_cast<const char*>(part.begin()), part.size());
      }
    }
  }
  call->Finish(&answer.status, nullptr);
  wait();
  queue.Shutdown();
  while (wait()) {
  }
  return answer;
}

struct HealthWatch::Impl {
  explicit Impl(const std::shared_ptr<grpc::Channel>& channel)
      : stub(grpc::health::v1::Health::NewStub(channel)) {}

  grpc::ClientContext context;
  std::unique_ptr<grpc::health::v1::Health::Stub> stub;
  std::unique_ptr<grpc::ClientReader<grpc::health::v1::HealthCheckResponse>> reader;
  grpc::health::v1::HealthCheckResponse answer;
};

HealthWatch::HealthWatch(const std::shared_ptr<grpc::Channel>& channel, const std::string& service)
    : impl_(std::make_unique<Impl>(channel)) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  impl_->reader = impl_->stub->Watch(&impl_->context, request);
  EXPECT_NE(Next(), "") << "the first answer";
}

HealthWatch::~HealthWatch() {
  impl_->context.TryCancel();
  impl_->reader->Finish();
}

std::string HealthWatch::status() const {
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(impl_->answer.status());
}

std::string HealthWatch::Next() { return impl_->reader->Read(&impl_->answer) ? status() : ""; }

std::string CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(channel)->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return "NOT_FOUND";
  if (!status.ok()) return absl::StrCat("error: ", status.error_message());
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
}

}  // namespace ultrasketch
