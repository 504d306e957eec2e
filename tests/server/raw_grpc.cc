#include "tests/server/raw_grpc.h"

#include <unistd.h>

#include <vector>

#include "absl/strings/str_cat.h"
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

std::string CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  // HealthCheckRequest { string service = 1; } and HealthCheckResponse { ServingStatus status = 1;
  // }
  const std::string request =
      service.empty()
          ? ""
          : absl::StrCat("\x0A", std::string(1, static_cast<char>(service.size())), service);
  const RawAnswer answer = CallRaw(channel, "/grpc.health.v1.Health/Check", request);
  if (answer.status.error_code() == grpc::StatusCode::NOT_FOUND) return "NOT_FOUND";
  if (!answer.status.ok()) return absl::StrCat("error: ", answer.status.error_message());
  if (answer.message == "\x08\x01") return "SERVING";
  if (answer.message == "\x08\x02") return "NOT_SERVING";
  return "UNKNOWN";
}

}  // namespace ultrasketch
