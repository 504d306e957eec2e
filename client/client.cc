#include "client/client.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include <grpcpp/grpcpp.h>

#include "client/channel.h"
#include "client/grpc_status.h"
#include "client/messages.h"
#include "engine/base/status.h"
#include "ultrasketch/v1/generation.grpc.pb.h"
#include "ultrasketch/v1/model.grpc.pb.h"

namespace ultrasketch::client {
namespace {

// Tells the server that the channel takes answers of any size: see Client::Create.
template <typename Message>
Message AnySize(Message message) {
  message.set_max_response_bytes(-1);
  return message;
}

// One call's context: deadline, and cancellation for as long as the object lives.
class Call {
 public:
  explicit Call(const CallOptions& options)
      : on_stop_(options.stop, [this] { context_.TryCancel(); }) {
    // Longer ones would overflow the clock.
    if (options.timeout < absl::Hours(24 * 365 * 100)) {
      context_.set_deadline(std::chrono::system_clock::now() +
                            absl::ToChronoNanoseconds(options.timeout));
    }
  }

  grpc::ClientContext* context() { return &context_; }

 private:
  grpc::ClientContext context_;
  std::stop_callback<std::function<void()>> on_stop_;  // ends before context_ does
};

}  // namespace

struct Client::Impl {
  explicit Impl(const std::shared_ptr<grpc::Channel>& channel)
      : generation(v1::GenerationService::NewStub(channel)),
        models(v1::ModelService::NewStub(channel)),
        health(grpc::health::v1::Health::NewStub(channel)) {}

  std::unique_ptr<v1::GenerationService::Stub> generation;
  std::unique_ptr<v1::ModelService::Stub> models;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const std::string& target,
                                                       const ChannelOptions& options) {
  US_ASSIGN_OR_RETURN(auto channel, CreateChannel(target, options));
  return std::unique_ptr<Client>(new Client(std::make_unique<Impl>(channel)));
}

absl::StatusOr<GenerateResponse> Client::Generate(const GenerateRequest& request,
                                                  const CallOptions& options) {
  Call call(options);
  v1::GenerateResponse message;
  const grpc::Status status =
      impl_->generation->Generate(call.context(), AnySize(ToMessage(request)), &message);
  if (!status.ok()) return FromGrpcStatus(status);
  return FromMessage(message);
}

absl::StatusOr<GenerateResponse> Client::GenerateStream(
    const GenerateRequest& request, const std::function<void(const GenerateDelta&)>& on_delta,
    const CallOptions& options) {
  Call call(options);
  const auto reader =
      impl_->generation->GenerateStream(call.context(), AnySize(ToMessage(request)));
  GenerateResponse response;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    if (message.has_model()) response.model = message.model();
    if (message.has_delta()) {
      const GenerateDelta delta = FromMessage(message.delta());
      AddDelta(delta, &response);
      if (on_delta) on_delta(delta);
    } else if (message.has_final()) {
      AddFinal(message.final(), &response);
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpcStatus(status);
  if (response.completions.empty()) {
    return absl::DataLossError("the server ended the stream without a final message");
  }
  return response;
}

absl::StatusOr<Score> Client::ScoreText(const ScoreRequest& request, const CallOptions& options) {
  Call call(options);
  v1::ScoreResponse message;
  const grpc::Status status =
      impl_->generation->Score(call.context(), AnySize(ToMessage(request)), &message);
  if (!status.ok()) return FromGrpcStatus(status);
  return FromMessage(message);
}

absl::StatusOr<Tokens> Client::Tokenize(const TokenizeRequest& request,
                                        const CallOptions& options) {
  Call call(options);
  v1::TokenizeResponse message;
  const grpc::Status status =
      impl_->generation->Tokenize(call.context(), AnySize(ToMessage(request)), &message);
  if (!status.ok()) return FromGrpcStatus(status);
  Tokens tokens;
  tokens.ids.assign(message.token_ids().begin(), message.token_ids().end());
  tokens.spellings.assign(message.tokens().begin(), message.tokens().end());
  return tokens;
}

absl::StatusOr<std::string> Client::Detokenize(const std::string& model,
                                               absl::Span<const int32_t> token_ids,
                                               bool skip_special_tokens,
                                               const CallOptions& options) {
  v1::DetokenizeRequest request;
  if (!model.empty()) request.set_model(model);
  request.mutable_token_ids()->Add(token_ids.begin(), token_ids.end());
  request.set_skip_special_tokens(skip_special_tokens);
  Call call(options);
  v1::DetokenizeResponse message;
  const grpc::Status status =
      impl_->generation->Detokenize(call.context(), AnySize(std::move(request)), &message);
  if (!status.ok()) return FromGrpcStatus(status);
  return message.text();
}

absl::StatusOr<std::string> Client::Health(const std::string& service, const CallOptions& options) {
  using grpc::health::v1::HealthCheckResponse;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  Call call(options);
  HealthCheckResponse message;
  const grpc::Status status = impl_->health->Check(call.context(), request, &message);
  if (!status.ok()) return FromGrpcStatus(status);
  if (!HealthCheckResponse::ServingStatus_IsValid(message.status())) {
    return absl::DataLossError(
        absl::StrCat("the server gave an unknown health, ", static_cast<int>(message.status())));
  }
  return HealthCheckResponse::ServingStatus_Name(message.status());
}

absl::StatusOr<std::vector<ModelInfo>> Client::ListModels(const CallOptions& options) {
  Call call(options);
  v1::ListModelsResponse message;
  const grpc::Status status = impl_->models->ListModels(call.context(), {}, &message);
  if (!status.ok()) return FromGrpcStatus(status);
  std::vector<ModelInfo> models;
  for (const v1::Model& model : message.models()) models.push_back(FromMessage(model));
  return models;
}

absl::StatusOr<ModelInfo> Client::GetModel(const std::string& name, const CallOptions& options) {
  v1::GetModelRequest request;
  request.set_name(name);
  Call call(options);
  v1::Model message;
  const grpc::Status status = impl_->models->GetModel(call.context(), request, &message);
  if (!status.ok()) return FromGrpcStatus(status);
  return FromMessage(message);
}

absl::StatusOr<ModelInfo> Client::LoadModel(const std::string& name, const CallOptions& options) {
  v1::LoadModelRequest request;
  request.set_name(name);
  Call call(options);
  v1::Model message;
  const grpc::Status status = impl_->models->LoadModel(call.context(), request, &message);
  if (!status.ok()) return FromGrpcStatus(status);
  return FromMessage(message);
}

absl::Status Client::UnloadModel(const std::string& name, const CallOptions& options) {
  v1::UnloadModelRequest request;
  request.set_name(name);
  Call call(options);
  v1::UnloadModelResponse message;
  return FromGrpcStatus(impl_->models->UnloadModel(call.context(), request, &message));
}

absl::StatusOr<SketchOverhead> Client::MeasureOverhead(const std::string& name,
                                                       const CallOptions& options) {
  v1::MeasureOverheadRequest request;
  request.set_name(name);
  Call call(options);
  v1::SketchOverhead message;
  const grpc::Status status = impl_->models->MeasureOverhead(call.context(), request, &message);
  if (!status.ok()) return FromGrpcStatus(status);
  return SketchOverhead{message.prefill_ratio(), message.decode_ratio()};
}

}  // namespace ultrasketch::client
