// ultrasketch.v1.GenerationService. See proto/ultrasketch/v1/generation.proto.
#ifndef ULTRASKETCH_SERVER_GENERATION_SERVICE_H_
#define ULTRASKETCH_SERVER_GENERATION_SERVICE_H_

#include "server/metrics.h"
#include "server/model_call.h"
#include "server/model_host.h"
#include "server/refusal_pacer.h"
#include "server/request_log.h"
#include "server/work_queue.h"
#include "ultrasketch/v1/generation.grpc.pb.h"

namespace ultrasketch {

// Thread-safe. Must outlive the gRPC server that it is registered with.
class GenerationService final : public v1::GenerationService::CallbackService {
 public:
  // `host`, `metrics` and `request_log` must outlive the service.
  GenerationService(const ModelHost& host, Metrics& metrics, const RequestLog& request_log,
                    const WorkQueueOptions& long_texts, const CallLimits& limits);

  // What other services' calls that generate need.
  const CallEnvironment& environment() const { return environment_; }

  // Waits until no generation or scoring call is open. False when the deadline came first.
  bool AwaitNoCalls(absl::Time deadline) { return environment_.open_calls->AwaitNone(deadline); }

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override;
  grpc::ServerWriteReactor<v1::GenerateStreamResponse>* GenerateStream(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  RefusalPacer refusals_;
  WorkQueue long_texts_;
  const CallEnvironment environment_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_GENERATION_SERVICE_H_
