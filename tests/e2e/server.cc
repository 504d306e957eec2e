#include "tests/e2e/server.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace ultrasketch {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

int PortOf(const std::string& address) {
  int port = 0;
  const size_t colon = address.rfind(':');
  if (colon != std::string::npos)
    static_cast<void>(absl::SimpleAtoi(address.substr(colon + 1), &port));
  return port;
}

// The value of `key` in the first line of a log that has it.
std::string LogField(const std::string& log, const std::string& key) {
  for (const absl::string_view word : absl::StrSplit(log, absl::ByAnyChar(" \n"))) {
    if (absl::StartsWith(word, absl::StrCat(key, "="))) {
      return std::string(word.substr(key.size() + 1));
    }
  }
  return "";
}

}  // namespace

TestServer::TestServer(const std::vector<std::string>& models,
                       const std::vector<std::string>& more_arguments) {
  std::vector<std::string> arguments = {ULTRASKETCHD_BINARY, "--listen", "127.0.0.1:0",
                                        "--metrics-listen", "127.0.0.1:0"};
  for (const std::string& model : models) {
    arguments.push_back("--model");
    arguments.push_back(model);
  }
  arguments.insert(arguments.end(), more_arguments.begin(), more_arguments.end());
  process_ = std::make_unique<Process>(std::move(arguments));
  const bool ready = process_->WaitFor(
      [](const std::string&, const std::string& log) {
        return absl::StrContains(log, "event=serving");
      },
      kPatience);
  address_ = LogField(process_->err(), "listen");
  metrics_address_ = LogField(process_->err(), "metrics");
  EXPECT_TRUE(ready && port() > 0 && PortOf(metrics_address_) > 0)
      << "the server did not come up: " << process_->err();
}

std::string TestServer::metrics_url() const {
  return absl::StrCat("http://", metrics_address_, "/metrics");
}

int TestServer::port() const { return PortOf(address_); }

std::unique_ptr<client::Client> TestServer::Connect() const {
  // An idle client notices that a server goes away when it polls, every five seconds unless told
  // otherwise, and the server waits for it.
  setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "50", /*overwrite=*/1);
  return *client::Client::Create(address_);
}

std::string TestServer::Metrics() const {
  const std::string answer =
      ExchangeBytes(PortOf(metrics_address_), "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n",
                    absl::Seconds(5));
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? "" : answer.substr(body + 4);
}

std::optional<double> TestServer::MetricOf(const std::string& page, const std::string& name,
                                           const std::vector<std::string>& labels) {
  for (const absl::string_view line : absl::StrSplit(page, '\n')) {
    if (!absl::StartsWith(line, absl::StrCat(name, "{")) &&
        !absl::StartsWith(line, absl::StrCat(name, " "))) {
      continue;
    }
    bool matches = true;
    for (const std::string& label : labels) matches = matches && absl::StrContains(line, label);
    double value;
    if (matches && absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) return value;
  }
  return std::nullopt;
}

bool TestServer::WaitUntilIdle(const std::string& model) const {
  const absl::Time deadline = absl::Now() + kPatience;
  const std::vector<std::string> labels = {absl::StrCat("model=\"", model, "\""), "state=\"used\""};
  while (absl::Now() < deadline) {
    const std::optional<double> used = Metric("ultrasketch_kv_blocks", labels);
    if (!used.has_value()) return false;
    if (*used == 0) return true;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return false;
}

int TestServer::Stop() {
  process_->Signal(SIGTERM);
  return process_->Wait(kPatience);
}

std::string ExchangeBytes(int port, const std::string& bytes, absl::Duration timeout) {
  const int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    // The other side may close at the first bad byte: then the rest is not sent.
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t count =
          send(connection, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) break;
      sent += static_cast<size_t>(count);
    }
    shutdown(connection, SHUT_WR);
    const absl::Time deadline = absl::Now() + timeout;
    std::vector<char> buffer(1 << 16);
    while (absl::Now() < deadline) {
      pollfd descriptor = {connection, POLLIN, 0};
      if (poll(&descriptor, 1, 10) <= 0) continue;
      const ssize_t count = recv(connection, buffer.data(), buffer.size(), 0);
      if (count <= 0) break;
      answer.append(buffer.data(), static_cast<size_t>(count));
    }
  }
  close(connection);
  return answer;
}

}  // namespace ultrasketch
