#include "client/load/load_worker.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

#include "client/grpc_status.h"
#include "engine/base/cpu_time.h"

namespace ultrasketch::client {
namespace {

// How long a worker waits for events before it looks whether the run is stopped or over.
constexpr double kTickSeconds = 0.05;

// How long a closed loop waits after a call that found no server.
constexpr double kUnreachableSeconds = 0.1;

// Messages that are built before they are due, at least.
constexpr size_t kMostReady = 64;

double ToSeconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + 1e-9 * duration.nanos();
}

// How long to wait before the call may be sent again; nullopt when the server does not want that.
std::optional<double> RetrySeconds(const grpc::Status& status, const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  if (const auto pushback = trailers.find("grpc-retry-pushback-ms"); pushback != trailers.end()) {
    int64_t milliseconds = -1;
    const absl::string_view text(pushback->second.data(), pushback->second.size());
    if (absl::SimpleAtoi(text, &milliseconds) && milliseconds >= 0) {
      return static_cast<double>(milliseconds) * 1e-3;
    }
    return std::nullopt;
  }
  const std::optional<absl::Duration> delay = RetryDelay(FromGrpcStatus(status));
  if (!delay.has_value()) return std::nullopt;
  return absl::ToDoubleSeconds(*delay);
}

}  // namespace

LoadRun::LoadRun(const Workload& workload, const SchedulePlan& plan, const LoadRunOptions& options)
    : workload_(workload),
      options_(options),
      is_closed_loop_(plan.loop == LoadLoop::kClosed),
      most_ready_(
          std::max(kMostReady, is_closed_loop_ ? static_cast<size_t>(plan.concurrency) : 0)),
      schedule_(plan) {
  const int64_t num_first = std::min<int64_t>(static_cast<int64_t>(most_ready_),
                                              plan.loop == LoadLoop::kTrace
                                                  ? static_cast<int64_t>(plan.trace_seconds.size())
                                                  : static_cast<int64_t>(most_ready_));
  for (int64_t index = 0; index < num_first; ++index) ready_[index] = BuildMessage(index);
  next_to_build_ = num_first;
  start_ = std::chrono::steady_clock::now();
  builder_ = std::thread([this] { BuildAhead(); });
}

LoadRun::~LoadRun() {
  {
    MutexLock lock(mutex_);
    is_over_ = true;
  }
  builder_.join();
}

std::optional<PreparedRequest> LoadRun::Next() {
  MutexLock lock(mutex_);
  if (options_.stop.stop_requested()) return std::nullopt;
  const std::optional<ScheduledRequest> scheduled = schedule_.Next(Now());
  if (!scheduled.has_value()) return std::nullopt;
  next_to_send_ = scheduled->index + 1;
  auto ready = ready_.extract(scheduled->index);
  if (!ready.empty()) return PreparedRequest{*scheduled, std::move(ready.mapped())};
  next_to_build_ = std::max(next_to_build_, next_to_send_);
  return PreparedRequest{*scheduled, BuildMessage(scheduled->index)};
}

v1::GenerateRequest LoadRun::BuildMessage(int64_t index) const {
  const LoadRequest request = workload_.Request(index);
  v1::GenerateRequest message;
  if (!options_.model.empty()) message.set_model(options_.model);
  message.mutable_token_ids()->mutable_ids()->Add(request.prompt_ids.begin(),
                                                  request.prompt_ids.end());
  message.set_max_tokens(request.output_tokens);
  message.set_ignore_eos(true);
  message.set_temperature(options_.temperature);
  message.set_seed(request.seed);
  message.set_max_response_bytes(-1);
  return message;
}

void LoadRun::BuildAhead() {
  // Many at a time, so that few requests wake this thread.
  bool is_filling = true;
  const auto has_work = [this, &is_filling]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return is_over_ || ready_.size() < (is_filling ? most_ready_ : most_ready_ / 2);
  };
  while (true) {
    int64_t index = 0;
    {
      MutexLock lock(mutex_);
      is_filling = ready_.size() < most_ready_ && is_filling;
      mutex_.Await(has_work);
      is_filling = true;
      const SchedulePlan& plan = schedule_.plan();
      const bool trace_has_ended =
          plan.loop == LoadLoop::kTrace &&
          next_to_build_ >= static_cast<int64_t>(plan.trace_seconds.size());
      if (is_over_ || trace_has_ended) return;
      index = next_to_build_++;
    }
    v1::GenerateRequest message = BuildMessage(index);
    MutexLock lock(mutex_);
    // Unless it was needed sooner, and built by who needed it.
    if (index >= next_to_send_) ready_[index] = std::move(message);
  }
}

struct LoadWorker::Stream {
  enum class Awaits { kStart, kMessage, kStatus };

  v1::GenerateRequest request;
  int64_t index = 0;
  LoadRecord record;

  // Of the attempt at hand.
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateStreamResponse>> reader;
  Awaits awaits = Awaits::kStart;
  double attempt_seconds = 0;  // when it was sent
  v1::GenerateStreamResponse response;
  grpc::Status status;
};

LoadWorker::LoadWorker(LoadRun& run, std::vector<v1::GenerationService::Stub*> stubs)
    : run_(run), stubs_(std::move(stubs)), thread_([this] { Loop(); }) {}

LoadWorker::~LoadWorker() {
  if (thread_.joinable()) thread_.join();
}

void LoadWorker::Finish(RunRecord& record) {
  thread_.join();
  std::move(requests_.begin(), requests_.end(), std::back_inserter(record.requests));
  std::move(rejections_.begin(), rejections_.end(), std::back_inserter(record.rejections));
  record.client.busiest_thread_share = std::max(record.client.busiest_thread_share, busy_share_);
}

void LoadWorker::Send(PreparedRequest request) {
  auto owned = std::make_unique<Stream>();
  Stream* const stream = owned.get();
  stream->request = std::move(request.message);
  stream->index = request.scheduled.index;
  stream->record.is_measured = request.scheduled.is_measured;
  stream->record.intended_seconds = request.scheduled.intended_seconds;
  stream->record.wanted_tokens = stream->request.max_tokens();
  stream->record.sent_seconds = run_.Now();
  {
    MutexLock lock(mutex_);
    streams_[stream] = std::move(owned);
  }
  StartAttempt(stream);
}

void LoadWorker::StartAttempt(Stream* stream) {
  const LoadRunOptions& options = run_.options();
  auto context = std::make_unique<grpc::ClientContext>();
  if (options.deadline < absl::InfiniteDuration()) {
    const double passed = run_.Now() - stream->record.intended_seconds;
    context->set_deadline(std::chrono::system_clock::now() +
                          absl::ToChronoNanoseconds(options.deadline - absl::Seconds(passed)));
  }
  if (options.num_clients > 1) {
    context->AddMetadata("client-id", absl::StrCat("bench-", stream->index % options.num_clients));
  }
  auto* stub = stubs_[num_started_.fetch_add(1) % stubs_.size()];
  auto reader = stub->PrepareAsyncGenerateStream(context.get(), stream->request, &queue_);
  auto* const call = reader.get();
  {
    MutexLock lock(mutex_);  // CancelAll looks at the context
    stream->reader = std::move(reader);
    stream->context = std::move(context);
    stream->awaits = Stream::Awaits::kStart;
    stream->attempt_seconds = run_.Now();
  }
  call->StartCall(stream);  // from here on the stream is the worker thread's
}

void LoadWorker::Loop() {
  const double wall_begin = run_.Now();
  const double cpu_begin = ThreadCpuSeconds();
  while (!run_.all_sent || !IsIdle()) {
    double wait = kTickSeconds;
    for (const std::optional<double> due : {FirstRetry(), FirstResume()}) {
      if (due.has_value()) wait = std::clamp(*due - run_.Now(), 0.0, wait);
    }
    void* tag = nullptr;
    bool ok = false;
    const auto deadline =
        std::chrono::system_clock::now() +
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::duration<double>(wait));
    if (queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT) {
      Handle(static_cast<Stream*>(tag), ok);
    }
    if (run_.options().stop.stop_requested()) CancelAll();
    SendDueRetries();
    ResumeDue();
  }
  const double wall = run_.Now() - wall_begin;
  busy_share_ = wall > 0 ? (ThreadCpuSeconds() - cpu_begin) / wall : 0;
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
  has_ended_ = true;
}

void LoadWorker::Handle(Stream* stream, bool ok) {
  switch (stream->awaits) {
    case Stream::Awaits::kStart:
      stream->awaits = Stream::Awaits::kMessage;
      stream->reader->Read(&stream->response, stream);
      return;
    case Stream::Awaits::kMessage:
      if (ok) {
        TakeMessage(*stream);
        stream->reader->Read(&stream->response, stream);
      } else {
        stream->awaits = Stream::Awaits::kStatus;
        stream->reader->Finish(&stream->status, stream);
      }
      return;
    case Stream::Awaits::kStatus:
      EndAttempt(stream);
      return;
  }
}

void LoadWorker::TakeMessage(Stream& stream) {
  LoadRecord& record = stream.record;
  if (stream.response.has_delta()) {
    const int num_tokens = stream.response.delta().token_ids_size();
    if (num_tokens > 0) record.AddTokens(run_.Now(), num_tokens);
  } else if (stream.response.has_final()) {
    const v1::GenerateFinal& final = stream.response.final();
    record.prompt_tokens = final.usage().prompt_tokens();
    record.cached_prompt_tokens = final.usage().cached_prompt_tokens();
    record.queue_seconds = ToSeconds(final.timing().queue());
    record.prefill_seconds = ToSeconds(final.timing().prefill());
    record.mean_batch_size = final.timing().mean_batch_size();
  }
}

void LoadWorker::EndAttempt(Stream* stream) {
  const double now = run_.Now();
  const grpc::Status& status = stream->status;
  LoadRecord& record = stream->record;
  const bool is_rejected =
      status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && record.messages.empty();
  if (is_rejected) {
    rejections_.push_back({record.is_measured, now, now - stream->attempt_seconds});
  }
  if (run_.options().retry && record.messages.empty() && !status.ok() &&
      !run_.options().stop.stop_requested()) {
    if (const std::optional<double> delay = RetrySeconds(status, *stream->context)) {
      retries_.emplace(now + *delay, stream);
      return;
    }
  }
  EndRequest(stream, now, status);
}

void LoadWorker::EndRequest(Stream* stream, double now, const grpc::Status& status) {
  LoadRecord& record = stream->record;
  record.end_seconds = now;
  record.code = static_cast<absl::StatusCode>(status.error_code());
  if (!status.ok()) {
    record.reason = ErrorReason(status);
    record.message = status.error_message();
  }
  requests_.push_back(std::move(record));
  ++run_.num_ended;
  {
    MutexLock lock(mutex_);
    streams_.erase(stream);
  }
  if (!run_.is_closed_loop()) return;
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    resumes_.insert(now + kUnreachableSeconds);
    return;
  }
  if (auto next = run_.Next()) Send(*std::move(next));
}

void LoadWorker::ResumeDue() {
  while (!resumes_.empty() && *resumes_.begin() <= run_.Now()) {
    resumes_.erase(resumes_.begin());
    if (auto next = run_.Next()) Send(*std::move(next));
  }
}

std::optional<double> LoadWorker::FirstRetry() const {
  return retries_.empty() ? std::nullopt : std::optional(retries_.begin()->first);
}

std::optional<double> LoadWorker::FirstResume() const {
  return resumes_.empty() ? std::nullopt : std::optional(*resumes_.begin());
}

void LoadWorker::SendDueRetries() {
  while (!retries_.empty() && retries_.begin()->first <= run_.Now()) {
    Stream* stream = retries_.begin()->second;
    retries_.erase(retries_.begin());
    ++stream->record.num_retries;
    StartAttempt(stream);
  }
}

void LoadWorker::CancelAll() {
  resumes_.clear();
  while (!retries_.empty()) {
    Stream* stream = retries_.begin()->second;
    retries_.erase(retries_.begin());
    EndRequest(stream, run_.Now(), grpc::Status(grpc::StatusCode::CANCELLED, "stopped"));
  }
  MutexLock lock(mutex_);
  for (const auto& [stream, owned] : streams_) {
    if (stream->context != nullptr) stream->context->TryCancel();
  }
}

bool LoadWorker::IsIdle() {
  MutexLock lock(mutex_);
  return streams_.empty() && resumes_.empty();
}

}  // namespace ultrasketch::client
