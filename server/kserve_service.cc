#include "server/kserve_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/generate_call.h"
#include "server/kserve_request.h"
#include "server/kserve_response.h"
#include "server/kserve_stream.h"
#include "server/logged_answer.h"
#include "server/response_limit.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

class InferExchange final : public GenerateExchange {
 public:
  InferExchange(const inference::ModelInferRequest& message,
                inference::ModelInferResponse* infer_response)
      : infer_response_(infer_response) {
    invalid = TranslateInferRequest(message, &call_);
    if (invalid.ok() && call_.stream) {
      invalid = InvalidField("stream", "ModelInfer answers once; ModelStreamInfer streams");
    }
    request = std::move(call_.request);
  }

  absl::Status Answer(const absl::Status& outcome) override {
    if (!outcome.ok()) return ForKserve(outcome);
    std::swap(call_.request, request);
    FillInferResponse(call_, OutputsOf(response), infer_response_);
    US_ASSIGN_OR_RETURN(const int64_t limit, MaxResponseBytes(call_.request));
    return CheckResponseBytes(static_cast<int64_t>(infer_response_->ByteSizeLong()), limit);
  }

 private:
  InferCall call_;  // but for its request, until there is an answer
  inference::ModelInferResponse* const infer_response_;
};

std::string_view StateText(ModelState state) {
  switch (state) {
    case ModelState::kReady:
      return "READY";
    case ModelState::kLoading:
      return "LOADING";
    case ModelState::kDraining:
      return "UNLOADING";
    case ModelState::kFailed:
      return "UNAVAILABLE";
  }
  return "UNKNOWN";
}

absl::Status CheckRepository(const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  return InvalidField("repository_name",
                      absl::StrCat("expected none, found ", Quoted(name, 64),
                                   ": the server has one repository, which has no name"));
}

// `Message` loads or unloads a model.
template <typename Message>
absl::Status CheckRepositoryRequest(const Message& message) {
  US_RETURN_IF_ERROR(CheckRepository(message.repository_name()));
  if (message.model_name().empty()) return InvalidField("model_name", "required");
  for (const auto& [name, parameter] : message.parameters()) {
    // tritonclient sends it with every unloading; no model depends on another here.
    if (name == "unload_dependents") continue;
    return InvalidField(
        "parameters",
        absl::StrCat(Quoted(name, 64), " is not supported: a model is what its folder says"));
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* KserveService::ServerLive(grpc::CallbackServerContext* context,
                                                    const inference::ServerLiveRequest*,
                                                    inference::ServerLiveResponse* response) {
  response->set_live(true);
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* KserveService::ServerReady(grpc::CallbackServerContext* context,
                                                     const inference::ServerReadyRequest*,
                                                     inference::ServerReadyResponse* response) {
  response->set_ready(is_ready_);
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* KserveService::ModelReady(grpc::CallbackServerContext* context,
                                                    const inference::ModelReadyRequest* request,
                                                    inference::ModelReadyResponse* response) {
  const absl::StatusOr<ModelHost::Listing> listing = host_.Get(request->name());
  response->set_ready(listing.ok() && listing->state == ModelState::kReady &&
                      CheckKserveVersion(request->name(), request->version()).ok());
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* KserveService::ServerMetadata(
    grpc::CallbackServerContext* context, const inference::ServerMetadataRequest*,
    inference::ServerMetadataResponse* response) {
  response->set_name("ultrasketch");
  response->set_version(ULTRASKETCH_VERSION);
  for (const char* extension : {"model_repository", "parameters"}) {
    response->add_extensions(extension);
  }
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* KserveService::ModelMetadata(
    grpc::CallbackServerContext* context, const inference::ModelMetadataRequest* request,
    inference::ModelMetadataResponse* response) {
  absl::Status status = CheckKserveVersion(request->name(), request->version());
  if (status.ok()) {
    const auto model = host_.FindReady(request->name());
    status = model.status();
    if (model.ok()) {
      response->set_name((*model)->name);
      response->add_versions(std::string(kKserveModelVersion));
      response->set_platform(absl::StrCat("ultrasketch_", (*model)->codec));
      FillInputMetadata(response);
      FillOutputMetadata(response);
    }
  }
  return Answer(context, status);
}

grpc::ServerUnaryReactor* KserveService::ModelInfer(grpc::CallbackServerContext* context,
                                                    const inference::ModelInferRequest* request,
                                                    inference::ModelInferResponse* response) {
  auto exchange = std::make_unique<InferExchange>(*request, response);
  const v1::GenerateRequest& generate = exchange->request;  // stays where it is
  const auto call =
      GenerateCall::Create(generation_.environment(), "ModelInfer", context, std::move(exchange));
  call->model_call().record().SetPrompt(generate.text());
  const size_t input_bytes = InputBytes(generate);
  call->Start(input_bytes);
  return call.get();
}

grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>*
KserveService::ModelStreamInfer(grpc::CallbackServerContext* context) {
  return KserveStream::Create(generation_.environment(), context).get();
}

grpc::ServerUnaryReactor* KserveService::RepositoryIndex(
    grpc::CallbackServerContext* context, const inference::RepositoryIndexRequest* request,
    inference::RepositoryIndexResponse* response) {
  LoggedAnswer answer(log(), "RepositoryIndex", context, "");
  const absl::Status status = CheckRepository(request->repository_name());
  if (!status.ok()) return answer.Finish(status);
  for (const ModelHost::Listing& listing : host_.List()) {
    if (request->ready() && listing.state != ModelState::kReady) continue;
    auto& model = *response->add_models();
    model.set_name(listing.name);
    model.set_version(std::string(kKserveModelVersion));
    model.set_state(std::string(StateText(listing.state)));
    if (!listing.error.ok()) model.set_reason(ToGrpcStatus(listing.error).error_message());
  }
  return answer.Finish(absl::OkStatus());
}

grpc::ServerUnaryReactor* KserveService::RepositoryModelLoad(
    grpc::CallbackServerContext* context, const inference::RepositoryModelLoadRequest* request,
    inference::RepositoryModelLoadResponse*) {
  const auto answer =
      std::make_shared<LoggedAnswer>(log(), "RepositoryModelLoad", context, request->model_name());
  const absl::Status status = CheckRepositoryRequest(*request);
  if (!status.ok()) return answer->Finish(status);
  grpc::ServerUnaryReactor* const reactor = answer->reactor();
  host_.Load(request->model_name(),
             [answer](const absl::Status& outcome) { answer->Finish(outcome); });
  return reactor;
}

grpc::ServerUnaryReactor* KserveService::RepositoryModelUnload(
    grpc::CallbackServerContext* context, const inference::RepositoryModelUnloadRequest* request,
    inference::RepositoryModelUnloadResponse*) {
  const auto answer = std::make_shared<LoggedAnswer>(log(), "RepositoryModelUnload", context,
                                                     request->model_name());
  const absl::Status status = CheckRepositoryRequest(*request);
  if (!status.ok()) return answer->Finish(status);
  grpc::ServerUnaryReactor* const reactor = answer->reactor();
  host_.Unload(request->model_name(),
               [answer](const absl::Status& outcome) { answer->Finish(outcome); });
  return reactor;
}

}  // namespace ultrasketch
