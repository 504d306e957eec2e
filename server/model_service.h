// ultrasketch.v1.ModelService. See proto/ultrasketch/v1/model.proto.
#ifndef ULTRASKETCH_SERVER_MODEL_SERVICE_H_
#define ULTRASKETCH_SERVER_MODEL_SERVICE_H_

#include "server/model_host.h"
#include "server/request_log.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch {

// Lists the models, loads, unloads and measures them. Thread-safe.
class ModelService final : public v1::ModelService::CallbackService {
 public:
  // `host` and `log` must outlive the service.
  ModelService(ModelHost& host, const RequestLog& log) : host_(host), log_(log) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const v1::LoadModelRequest* request,
                                      v1::Model* response) override;
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const v1::UnloadModelRequest* request,
                                        v1::UnloadModelResponse* response) override;
  grpc::ServerUnaryReactor* MeasureOverhead(grpc::CallbackServerContext* context,
                                            const v1::MeasureOverheadRequest* request,
                                            v1::SketchOverhead* response) override;

 private:
  ModelHost& host_;
  const RequestLog& log_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_SERVICE_H_
