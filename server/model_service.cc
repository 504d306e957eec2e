#include "server/model_service.h"

#include <string>

#include "absl/status/status.h"

#include "server/status.h"

namespace ultrasketch {
namespace {

v1::ModelState ToMessage(ModelState state) {
  switch (state) {
    case ModelState::kLoading:
      return v1::MODEL_STATE_LOADING;
    case ModelState::kReady:
      return v1::MODEL_STATE_READY;
    case ModelState::kDraining:
      return v1::MODEL_STATE_DRAINING;
    case ModelState::kFailed:
      return v1::MODEL_STATE_FAILED;
  }
  return v1::MODEL_STATE_UNSPECIFIED;
}

void FillModel(const ModelHost::Listing& listing, v1::Model& message) {
  message.set_name(listing.name);
  message.set_state(ToMessage(listing.state));
  if (!listing.error.ok()) message.set_error(ToGrpcStatus(listing.error).error_message());
  if (listing.model == nullptr) return;
  const HostedModel& model = *listing.model;
  message.set_architecture(model.architecture);
  message.set_codec(model.codec);
  message.set_device(model.device);
  message.set_num_parameters(model.num_parameters);
  message.set_bits_per_weight_linear(model.bits_per_weight_linear);
  message.set_bits_per_weight_file(model.bits_per_weight_file);
  message.set_max_context_tokens(model.max_context_tokens);
  message.set_vocab_size(model.vocab_size);
  if (!model.weights_checksum.empty()) message.set_weights_checksum(model.weights_checksum);
  message.set_chat(model.chat_template.ok());
  const MemoryUsage usage = model.engine_loop->memory_usage();
  v1::MemoryUsage& memory = *message.mutable_memory();
  memory.set_weights_bytes(usage.weights);
  memory.set_embedding_bytes(usage.embedding);
  memory.set_kv_cache_bytes(usage.kv_cache);
  memory.set_workspace_bytes(usage.workspace);
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const v1::ListModelsRequest*,
                                                   v1::ListModelsResponse* response) {
  for (const ModelHost::Listing& listing : host_.List()) {
    FillModel(listing, *response->add_models());
  }
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request,
                                                 v1::Model* response) {
  if (request->name().empty()) return Answer(context, InvalidField("name", "required"));
  const absl::StatusOr<ModelHost::Listing> listing = host_.Get(request->name());
  if (listing.ok()) FillModel(*listing, *response);
  return Answer(context, listing.status());
}

grpc::ServerUnaryReactor* ModelService::LoadModel(grpc::CallbackServerContext* context,
                                                  const v1::LoadModelRequest* request,
                                                  v1::Model* response) {
  if (request->name().empty()) return Answer(context, InvalidField("name", "required"));
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const std::string name = request->name();
  host_.Load(name, [this, reactor, response, name](const absl::Status& status) {
    if (status.ok()) {
      // Gone again when somebody unloads it this very moment.
      const absl::StatusOr<ModelHost::Listing> listing = host_.Get(name);
      if (listing.ok()) FillModel(*listing, *response);
      reactor->Finish(ToGrpcStatus(listing.status()));
    } else {
      reactor->Finish(ToGrpcStatus(status));
    }
  });
  return reactor;
}

grpc::ServerUnaryReactor* ModelService::UnloadModel(grpc::CallbackServerContext* context,
                                                    const v1::UnloadModelRequest* request,
                                                    v1::UnloadModelResponse*) {
  if (request->name().empty()) return Answer(context, InvalidField("name", "required"));
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  host_.Unload(request->name(),
               [reactor](const absl::Status& status) { reactor->Finish(ToGrpcStatus(status)); });
  return reactor;
}

}  // namespace ultrasketch
