#include "server/model_service.h"

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

#include "server/logged_answer.h"
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

void FillOverhead(const SketchOverhead& overhead, v1::SketchOverhead& message) {
  message.set_prefill_ratio(overhead.prefill);
  message.set_decode_ratio(overhead.decode);
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
  message.set_kv_cache_type(KvCacheTypeName(model.kv_cache_type));
  if (!model.weights_checksum.empty()) message.set_weights_checksum(model.weights_checksum);
  if (model.evaluation.has_value()) {
    v1::Evaluation& evaluation = *message.mutable_evaluation();
    evaluation.set_perplexity(model.evaluation->perplexity);
    evaluation.set_dense_perplexity(model.evaluation->dense_perplexity);
    evaluation.set_num_tokens(model.evaluation->tokens);
    evaluation.set_context_tokens(static_cast<int32_t>(model.evaluation->context_tokens));
  }
  message.set_chat(model.chat_template.ok());
  if (const std::optional<SketchOverhead> overhead = model.overhead.Get()) {
    FillOverhead(*overhead, *message.mutable_sketch_overhead());
  }
  const MemoryUsage usage = model.engine_loop->memory_usage();
  v1::MemoryUsage& memory = *message.mutable_memory();
  memory.set_weights_bytes(usage.weights);
  memory.set_embedding_bytes(usage.embedding);
  memory.set_kv_cache_bytes(usage.kv_cache);
  memory.set_workspace_bytes(usage.workspace);
}

}  // namespace

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const v1::ListModelsRequest*,
                                                   v1::ListModelsResponse* response) {
  LoggedAnswer answering(log_, "ListModels", context, "");
  for (const ModelHost::Listing& listing : host_.List()) {
    FillModel(listing, *response->add_models());
  }
  return answering.Finish(absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request,
                                                 v1::Model* response) {
  LoggedAnswer answering(log_, "GetModel", context, request->name());
  if (request->name().empty()) return answering.Finish(InvalidField("name", "required"));
  const absl::StatusOr<ModelHost::Listing> listing = host_.Get(request->name());
  if (listing.ok()) FillModel(*listing, *response);
  return answering.Finish(listing.status());
}

grpc::ServerUnaryReactor* ModelService::LoadModel(grpc::CallbackServerContext* context,
                                                  const v1::LoadModelRequest* request,
                                                  v1::Model* response) {
  const std::string name = request->name();
  const auto answering = std::make_shared<LoggedAnswer>(log_, "LoadModel", context, name);
  if (name.empty()) return answering->Finish(InvalidField("name", "required"));
  grpc::ServerUnaryReactor* const reactor = answering->reactor();
  host_.Load(name, [this, answering, response, name](const absl::Status& status) {
    if (!status.ok()) {
      answering->Finish(status);
      return;
    }
    // Gone again when somebody unloads it this very moment.
    const absl::StatusOr<ModelHost::Listing> listing = host_.Get(name);
    if (listing.ok()) FillModel(*listing, *response);
    answering->Finish(listing.status());
  });
  return reactor;
}

grpc::ServerUnaryReactor* ModelService::UnloadModel(grpc::CallbackServerContext* context,
                                                    const v1::UnloadModelRequest* request,
                                                    v1::UnloadModelResponse*) {
  const auto answering =
      std::make_shared<LoggedAnswer>(log_, "UnloadModel", context, request->name());
  if (request->name().empty()) return answering->Finish(InvalidField("name", "required"));
  grpc::ServerUnaryReactor* const reactor = answering->reactor();
  host_.Unload(request->name(),
               [answering](const absl::Status& status) { answering->Finish(status); });
  return reactor;
}

grpc::ServerUnaryReactor* ModelService::MeasureOverhead(grpc::CallbackServerContext* context,
                                                        const v1::MeasureOverheadRequest* request,
                                                        v1::SketchOverhead* response) {
  const auto answering =
      std::make_shared<LoggedAnswer>(log_, "MeasureOverhead", context, request->name());
  if (request->name().empty()) return answering->Finish(InvalidField("name", "required"));
  grpc::ServerUnaryReactor* const reactor = answering->reactor();
  host_.MeasureOverhead(request->name(),
                        [answering, response](const absl::StatusOr<SketchOverhead>& overhead) {
                          if (overhead.ok()) FillOverhead(*overhead, *response);
                          answering->Finish(overhead.status());
                        });
  return reactor;
}

}  // namespace ultrasketch
