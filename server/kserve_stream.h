// ModelStreamInfer: requests that come and are answered on one stream, several at a time.
#ifndef ULTRASKETCH_SERVER_KSERVE_STREAM_H_
#define ULTRASKETCH_SERVER_KSERVE_STREAM_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "inference/inference_service.pb.h"
#include <grpcpp/support/server_callback.h>

#include "server/model_call.h"

namespace ultrasketch {

// Each request is a ModelCall of its own, with the stream's deadline and client. At most
// kMaxOpenRequests are open: the next is read when one of them has been answered. What a request
// generates is merged while its turn to be written has not come; requests take turns.
//
// Lives until gRPC is done with it and the engine has released its requests.
class KserveStream final : public grpc::ServerBidiReactor<inference::ModelInferRequest,
                                                          inference::ModelStreamInferResponse>,
                           public std::enable_shared_from_this<KserveStream> {
 public:
  static constexpr size_t kMaxOpenRequests = 64;

  // `context` is gRPC's and lives until OnDone.
  static std::shared_ptr<KserveStream> Create(const CallEnvironment& environment,
                                              grpc::CallbackServerContext* context);

  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override { self_.reset(); }

 private:
  class Request;

  KserveStream(const CallEnvironment& environment, grpc::CallbackServerContext* context)
      : environment_(environment), context_(context) {}

  // The client reads no more: ends what is open.
  void GiveUp() ABSL_LOCKS_EXCLUDED(mutex_);
  // The request has something to write.
  void Enqueue(std::shared_ptr<Request> request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next read or write, or ends the stream, when it is time to.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CallEnvironment environment_;
  grpc::CallbackServerContext* const context_;
  std::shared_ptr<KserveStream> self_;  // until OnDone

  absl::Mutex mutex_;
  std::set<std::shared_ptr<Request>> open_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Request>> writable_ ABSL_GUARDED_BY(mutex_);  // each once
  std::shared_ptr<Request> writing_ ABSL_GUARDED_BY(mutex_);  // whose response is with gRPC
  bool is_last_response_ ABSL_GUARDED_BY(mutex_) = false;     // of that request
  inference::ModelInferRequest incoming_;                     // with gRPC while is_reading_
  inference::ModelStreamInferResponse outgoing_;              // with gRPC while writing_
  bool is_reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_read_all_ ABSL_GUARDED_BY(mutex_) = false;
  bool client_reads_ ABSL_GUARDED_BY(mutex_) = true;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_KSERVE_STREAM_H_
