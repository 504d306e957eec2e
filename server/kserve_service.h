// inference.GRPCInferenceService, KServe's Open Inference Protocol. See
// proto/inference/inference_service.proto and docs/kserve.md.
#ifndef ULTRASKETCH_SERVER_KSERVE_SERVICE_H_
#define ULTRASKETCH_SERVER_KSERVE_SERVICE_H_

#include <atomic>

#include "inference/inference_service.grpc.pb.h"

#include "server/generation_service.h"
#include "server/model_host.h"
#include "server/request_log.h"

namespace ultrasketch {

// Requests take the way of Generate and GenerateStream: same queue, limits and metrics.
// Thread-safe. Must outlive the gRPC server that it is registered with.
class KserveService final : public inference::GRPCInferenceService::CallbackService {
 public:
  // Both must outlive the service.
  KserveService(ModelHost& host, const GenerationService& generation)
      : host_(host), generation_(generation) {}

  // What ServerReady answers.
  void SetReady(bool is_ready) { is_ready_ = is_ready; }

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const inference::ServerLiveRequest* request,
                                       inference::ServerLiveResponse* response) override;
  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context,
                                        const inference::ServerReadyRequest* request,
                                        inference::ServerReadyResponse* response) override;
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context,
                                       const inference::ModelReadyRequest* request,
                                       inference::ModelReadyResponse* response) override;
  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest* request,
                                           inference::ServerMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context,
                                          const inference::ModelMetadataRequest* request,
                                          inference::ModelMetadataResponse* response) override;
  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context,
                                       const inference::ModelInferRequest* request,
                                       inference::ModelInferResponse* response) override;
  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>*
  ModelStreamInfer(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* RepositoryIndex(grpc::CallbackServerContext* context,
                                            const inference::RepositoryIndexRequest* request,
                                            inference::RepositoryIndexResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelLoad(
      grpc::CallbackServerContext* context, const inference::RepositoryModelLoadRequest* request,
      inference::RepositoryModelLoadResponse* response) override;
  grpc::ServerUnaryReactor* RepositoryModelUnload(
      grpc::CallbackServerContext* context, const inference::RepositoryModelUnloadRequest* request,
      inference::RepositoryModelUnloadResponse* response) override;

 private:
  const RequestLog& log() const { return generation_.environment().request_log; }

  ModelHost& host_;
  const GenerationService& generation_;
  std::atomic<bool> is_ready_ = false;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_KSERVE_SERVICE_H_
