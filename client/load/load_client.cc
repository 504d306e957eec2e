#include "client/load/load_client.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include <grpcpp/grpcpp.h>

#include "client/load/load_worker.h"
#include "engine/base/cpu_time.h"
#include "engine/base/status.h"
#include "ultrasketch/v1/generation.grpc.pb.h"

namespace ultrasketch::client {
namespace {

constexpr std::chrono::milliseconds kProgressInterval(100);

// Between looks whether the workers have ended.
constexpr std::chrono::milliseconds kEndInterval(10);

// Sleeps until `due`, or until the run is stopped; reports progress meanwhile.
void SleepUntil(std::chrono::steady_clock::time_point due, const LoadRun& run) {
  const LoadRunOptions& options = run.options();
  while (!options.stop.stop_requested()) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= due) return;
    std::this_thread::sleep_until(std::min(due, now + kProgressInterval));
    if (options.progress != nullptr && due - now > kProgressInterval) {
      options.progress(run.num_ended, run.Now());
    }
  }
}

}  // namespace

struct LoadClient::Impl {
  int num_threads = 1;
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs;
};

LoadClient::LoadClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadClient::~LoadClient() = default;

absl::StatusOr<std::unique_ptr<LoadClient>> LoadClient::Connect(const LoadClientOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->num_threads = options.num_threads;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  ChannelOptions channel_options = options.channel;
  channel_options.own_connection = true;
  channel_options.retries = false;  // every attempt is to be seen, and none to be slowed down
  for (int i = 0; i < options.num_channels; ++i) {
    US_ASSIGN_OR_RETURN(auto channel, CreateChannel(options.target, channel_options));
    channel->GetState(/*try_to_connect=*/true);
    channels.push_back(std::move(channel));
  }
  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoNanoseconds(options.connect_timeout);
  for (size_t i = 0; i < channels.size(); ++i) {
    if (!channels[i]->WaitForConnected(deadline)) {
      return absl::UnavailableError(absl::StrCat(options.target, ": ", i, " of ", channels.size(),
                                                 " connections were there after ",
                                                 absl::FormatDuration(options.connect_timeout)));
    }
    impl->stubs.push_back(v1::GenerationService::NewStub(channels[i]));
  }
  return std::unique_ptr<LoadClient>(new LoadClient(std::move(impl)));
}

absl::StatusOr<RunRecord> LoadClient::Run(const Workload& workload, const SchedulePlan& plan,
                                          const LoadRunOptions& options) {
  std::vector<v1::GenerationService::Stub*> stubs;
  for (const auto& stub : impl_->stubs) stubs.push_back(stub.get());

  RunRecord record;
  record.plan = plan;
  LoadRun run(workload, plan, options);
  const double cpu_begin = ProcessCpuSeconds();
  std::vector<std::unique_ptr<LoadWorker>> workers;
  for (int i = 0; i < impl_->num_threads; ++i) {
    workers.push_back(std::make_unique<LoadWorker>(run, stubs));
  }
  size_t num_sent = 0;
  const auto send = [&](PreparedRequest request) {
    workers[num_sent++ % workers.size()]->Send(std::move(request));
  };
  if (plan.loop == LoadLoop::kClosed) {
    for (int64_t i = 0; i < plan.concurrency; ++i) {
      if (auto request = run.Next()) send(*std::move(request));
    }
  } else {
    while (auto request = run.Next()) {
      SleepUntil(
          run.start() + std::chrono::duration_cast<std::chrono::nanoseconds>(
                            std::chrono::duration<double>(request->scheduled.intended_seconds)),
          run);
      if (options.stop.stop_requested()) break;
      send(*std::move(request));
    }
  }
  run.all_sent = true;
  const auto is_running = [](const auto& worker) { return !worker->has_ended(); };
  while (std::any_of(workers.begin(), workers.end(), is_running)) {
    std::this_thread::sleep_for(kEndInterval);
    if (options.progress != nullptr) options.progress(run.num_ended, run.Now());
  }
  if (options.progress != nullptr) options.progress(run.num_ended, run.Now());
  record.client.wall_seconds = run.Now();
  record.client.cpu_seconds = ProcessCpuSeconds() - cpu_begin;
  for (const auto& worker : workers) worker->Finish(record);
  if (options.stop.stop_requested()) {
    return absl::CancelledError(absl::StrCat(record.requests.size(), " requests had ended"));
  }
  return record;
}

}  // namespace ultrasketch::client
