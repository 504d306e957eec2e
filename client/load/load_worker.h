// One thread of the load generator and its streams.
#ifndef ULTRASKETCH_CLIENT_LOAD_LOAD_WORKER_H_
#define ULTRASKETCH_CLIENT_LOAD_LOAD_WORKER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include <grpcpp/grpcpp.h>

#include "client/load/load_client.h"
#include "engine/base/mutex.h"
#include "ultrasketch/v1/generation.grpc.pb.h"

namespace ultrasketch::client {

// A request that is ready to be sent when it is due.
struct PreparedRequest {
  ScheduledRequest scheduled;
  v1::GenerateRequest message;
};

// What the threads of one run share: the schedule, and a thread that builds messages before they
// are due. Thread-safe.
class LoadRun {
 public:
  // The arguments outlive the object. The run's clock starts here.
  LoadRun(const Workload& workload, const SchedulePlan& plan, const LoadRunOptions& options);
  ~LoadRun();
  LoadRun(const LoadRun&) = delete;
  LoadRun& operator=(const LoadRun&) = delete;

  // Seconds since the start of the run.
  double Now() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  std::chrono::steady_clock::time_point start() const { return start_; }

  // The next request of the schedule; nullopt when there is none, and when the run is stopped.
  std::optional<PreparedRequest> Next();

  const LoadRunOptions& options() const { return options_; }
  bool is_closed_loop() const { return is_closed_loop_; }

  // Set when the caller's thread sends nothing more: a worker without streams ends then.
  std::atomic<bool> all_sent = false;
  std::atomic<int64_t> num_ended = 0;

 private:
  v1::GenerateRequest BuildMessage(int64_t index) const;
  void BuildAhead();

  const Workload& workload_;
  const LoadRunOptions& options_;
  const bool is_closed_loop_;
  const size_t most_ready_;
  std::chrono::steady_clock::time_point start_;
  Mutex mutex_;
  Schedule schedule_ ABSL_GUARDED_BY(mutex_);
  std::map<int64_t, v1::GenerateRequest> ready_ ABSL_GUARDED_BY(mutex_);  // by index
  int64_t next_to_build_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_to_send_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread builder_;
};

// Handles the events of its streams on a thread of its own.
class LoadWorker {
 public:
  // `stubs` outlive the worker; its streams take them in turns.
  LoadWorker(LoadRun& run, std::vector<v1::GenerationService::Stub*> stubs);
  // Waits for the thread, which ends when all is sent and every stream has ended.
  ~LoadWorker();
  LoadWorker(const LoadWorker&) = delete;
  LoadWorker& operator=(const LoadWorker&) = delete;

  // From any thread, before run.all_sent is set.
  void Send(PreparedRequest request);

  // Whether the thread has nothing left to do.
  bool has_ended() const { return has_ended_; }

  // Waits for the thread and adds what the worker has noted down to `record`.
  void Finish(RunRecord& record);

 private:
  struct Stream;

  void Loop();
  void StartAttempt(Stream* stream);
  void Handle(Stream* stream, bool ok);
  void TakeMessage(Stream& stream);
  void EndAttempt(Stream* stream);
  void EndRequest(Stream* stream, double now, const grpc::Status& status);
  void SendDueRetries();
  void ResumeDue();
  std::optional<double> FirstRetry() const;
  std::optional<double> FirstResume() const;
  void CancelAll();
  bool IsIdle();

  LoadRun& run_;
  const std::vector<v1::GenerationService::Stub*> stubs_;
  grpc::CompletionQueue queue_;
  std::atomic<size_t> num_started_ = 0;
  std::atomic<bool> has_ended_ = false;
  Mutex mutex_;
  std::unordered_map<Stream*, std::unique_ptr<Stream>> streams_ ABSL_GUARDED_BY(mutex_);

  // Of the worker's thread alone, until Finish.
  std::multimap<double, Stream*> retries_;  // by when they are due
  std::multiset<double> resumes_;           // when places of the closed loop are taken again
  std::vector<LoadRecord> requests_;
  std::vector<RejectionRecord> rejections_;
  double busy_share_ = 0;

  std::thread thread_;
};

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_LOAD_LOAD_WORKER_H_
