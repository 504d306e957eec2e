// ultrasketch.v1.ModelService. See proto/ultrasketch/v1/model.proto.
#ifndef ULTRASKETCH_SERVER_MODEL_SERVICE_H_
#define ULTRASKETCH_SERVER_MODEL_SERVICE_H_

#include "server/model_host.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch {

// Lists the models, loads and unloads them. Thread-safe.
class ModelService final : public v1::ModelService::CallbackService {
 public:
  // `host` must outlive the service.
  explicit ModelService(ModelHost& host) : host_(host) {}

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

 private:
  ModelHost& host_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_SERVICE_H_
