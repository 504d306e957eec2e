// Sends a workload to a server and notes down what comes back: many streams from few threads.
//
// A thread of the load generator polls a completion queue of gRPC and handles the events of its
// streams; the caller's thread sends what arrives in an open loop. Requests are built before they
// are due.
#ifndef ULTRASKETCH_CLIENT_LOAD_LOAD_CLIENT_H_
#define ULTRASKETCH_CLIENT_LOAD_LOAD_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "client/channel.h"
#include "client/client.h"
#include "engine/bench/load/load_record.h"
#include "engine/bench/load/schedule.h"
#include "engine/bench/load/workload.h"

namespace ultrasketch::client {

struct LoadClientOptions {
  std::string target;      // as Client::Create takes it
  ChannelOptions channel;  // each has a connection of its own, and no retries, whatever this says
  int num_channels = 1;    // TCP connections; streams take them in turns
  int num_threads = 1;     // that handle the streams' events, each those of every num_threads-th
  absl::Duration connect_timeout = absl::Seconds(10);
};

struct LoadRunOptions {
  std::string model;
  float temperature = 0;
  absl::Duration deadline = absl::InfiniteDuration();  // of a request, from when it was due
  // Refused requests are sent again after the delay that the server asks for, as often as it asks,
  // and keep their place in a closed loop meanwhile. Errors without a delay are final.
  bool retry = false;
  // More than 1: requests say in turns that they are of one of so many clients (metadata
  // "client-id").
  int num_clients = 1;
  std::stop_token stop;
  // Called on the caller's thread some times a second; null: never.
  std::function<void(int64_t num_ended, double seconds)> progress;
};

// One run at a time.
class LoadClient {
 public:
  // Connects all channels. UNAVAILABLE when that takes longer than the timeout; INVALID_ARGUMENT
  // for an empty target.
  static absl::StatusOr<std::unique_ptr<LoadClient>> Connect(const LoadClientOptions& options);
  ~LoadClient();
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;

  // Returns when every request that the schedule gives has ended; errors of requests are in their
  // records. CANCELLED when `options.stop` was requested: what is in flight is cancelled then.
  absl::StatusOr<RunRecord> Run(const Workload& workload, const SchedulePlan& plan,
                                const LoadRunOptions& options);

 private:
  struct Impl;
  explicit LoadClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_LOAD_LOAD_CLIENT_H_
