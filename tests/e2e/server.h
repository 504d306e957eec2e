// A running `ultrasketchd`.
#ifndef ULTRASKETCH_TESTS_E2E_SERVER_H_
#define ULTRASKETCH_TESTS_E2E_SERVER_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/client.h"
#include "tests/e2e/process.h"

namespace ultrasketch {

// Serves on free ports of the loopback interface. Killed on destruction.
class TestServer {
 public:
  // `models` are NAME=DIR. Fails the test when it does not come up.
  explicit TestServer(const std::vector<std::string>& models,
                      const std::vector<std::string>& more_arguments = {});

  const std::string& address() const { return address_; }  // HOST:PORT of the gRPC service
  int port() const;
  std::string metrics_url() const;  // http://HOST:PORT/metrics
  Process& process() { return *process_; }

  // A client of its own connection.
  std::unique_ptr<client::Client> Connect() const;

  // The page that Prometheus scrapes; "" when there is no answer.
  std::string Metrics() const;

  // The value of the sample whose line starts with `name` and contains all of `labels`: now, or on
  // a page.
  std::optional<double> Metric(const std::string& name,
                               const std::vector<std::string>& labels) const {
    return MetricOf(Metrics(), name, labels);
  }
  static std::optional<double> MetricOf(const std::string& page, const std::string& name,
                                        const std::vector<std::string>& labels);

  // Waits until the model holds no cache blocks; false when it still does after some seconds.
  bool WaitUntilIdle(const std::string& model) const;

  // SIGTERM, and the exit code.
  int Stop();

 private:
  std::unique_ptr<Process> process_;
  std::string address_;
  std::string metrics_address_;
};

// A TCP connection to a port of the loopback interface: writes `bytes`, closes its sending side and
// returns what comes back until the other side closes or `timeout` has passed.
std::string ExchangeBytes(int port, const std::string& bytes, absl::Duration timeout);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_E2E_SERVER_H_
