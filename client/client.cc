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

// A request about the model of this name.
template <typename Message>
Message Named(const std::string& name) {
  Message message;
  message.set_name(name);
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

// A unary call.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Invoke(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request, const CallOptions& options) {
  US_RETURN_IF_ERROR(CheckUtf8(request));
  Call call(options);
  Response response;
  const grpc::Status status = (stub.*method)(call.context(), request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

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
  US_ASSIGN_OR_RETURN(const v1::GenerateResponse message,
                      Invoke(*impl_->generation, &v1::GenerationService::Stub::Generate,
                             AnySize(ToMessage(request)), options));
  return FromMessage(message);
}

absl::StatusOr<GenerateResponse> Client::GenerateStream(
    const GenerateRequest& request, const std::function<void(const GenerateDelta&)>& on_delta,
    const CallOptions& options) {
  const v1::GenerateRequest sent = AnySize(ToMessage(request));
  US_RETURN_IF_ERROR(CheckUtf8(sent));
  Call call(options);
  const auto reader = impl_->generation->GenerateStream(call.context(), sent);
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
  US_ASSIGN_OR_RETURN(const v1::ScoreResponse message,
                      Invoke(*impl_->generation, &v1::GenerationService::Stub::Score,
                             AnySize(ToMessage(request)), options));
  return FromMessage(message);
}

absl::StatusOr<Tokens> Client::Tokenize(const TokenizeRequest& request,
                                        const CallOptions& options) {
  US_ASSIGN_OR_RETURN(const v1::TokenizeResponse message,
                      Invoke(*impl_->generation, &v1::GenerationService::Stub::Tokenize,
                             AnySize(ToMessage(request)), options));
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
  US_ASSIGN_OR_RETURN(const v1::DetokenizeResponse message,
                      Invoke(*impl_->generation, &v1::GenerationService::Stub::Detokenize,
                             AnySize(std::move(request)), options));
  return message.text();
}

absl::StatusOr<std::string> Client::Health(const std::string& service, const CallOptions& options) {
  using grpc::health::v1::HealthCheckResponse;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  US_ASSIGN_OR_RETURN(
      const HealthCheckResponse message,
      Invoke(*impl_->health, &grpc::health::v1::Health::Stub::Check, request, options));
  if (!HealthCheckResponse::ServingStatus_IsValid(message.status())) {
    return absl::DataLossError(
        absl::StrCat("the server gave an unknown health, ", static_cast<int>(message.status())));
  }
  return HealthCheckResponse::ServingStatus_Name(message.status());
}

absl::StatusOr<std::vector<ModelInfo>> Client::ListModels(const CallOptions& options) {
  US_ASSIGN_OR_RETURN(const v1::ListModelsResponse message,
                      Invoke(*impl_->models, &v1::ModelService::Stub::ListModels,
                             v1::ListModelsRequest(), options));
  std::vector<ModelInfo> models;
  for (const v1::Model& model : message.models()) models.push_back(FromMessage(model));
  return models;
}

absl::StatusOr<ModelInfo> Client::GetModel(const std::string& name, const CallOptions& options) {
  US_ASSIGN_OR_RETURN(const v1::Model message,
                      Invoke(*impl_->models, &v1::ModelService::Stub::GetModel,
                             Named<v1::GetModelRequest>(name), options));
  return FromMessage(message);
}

absl::StatusOr<ModelInfo> Client::LoadModel(const std::string& name, const CallOptions& options) {
  US_ASSIGN_OR_RETURN(const v1::Model message,
                      Invoke(*impl_->models, &v1::ModelService::Stub::LoadModel,
                             Named<v1::LoadModelRequest>(name), options));
  return FromMessage(message);
}

absl::Status Client::UnloadModel(const std::string& name, const CallOptions& options) {
  return Invoke(*impl_->models, &v1::ModelService::Stub::UnloadModel,
                Named<v1::UnloadModelRequest>(name), options)
      .status();
}

absl::StatusOr<SketchOverhead> Client::MeasureOverhead(const std::string& name,
                                                       const CallOptions& options) {
  US_ASSIGN_OR_RETURN(const v1::SketchOverhead message,
                      Invoke(*impl_->models, &v1::ModelService::Stub::MeasureOverhead,
                             Named<v1::MeasureOverheadRequest>(name), options));
  return SketchOverhead{message.prefill_ratio(), message.decode_ratio()};
}

}  // namespace ultrasketch::client
