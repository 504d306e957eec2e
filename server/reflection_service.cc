#include "server/reflection_service.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;

const DescriptorPool& Pool() {
  // gRPC's library, which serves the health service, has no descriptor of it: ours is linked in by
  // being named.
  [[maybe_unused]] static const auto* const health =
      grpc::health::v1::HealthCheckRequest::descriptor();
  return *DescriptorPool::generated_pool();
}

// Serialized: `file`, then what it imports, each once.
template <typename Response>
void AddFiles(const FileDescriptor& file, std::set<const FileDescriptor*>& added,
              Response& response) {
  if (!added.insert(&file).second) return;
  google::protobuf::FileDescriptorProto message;
  file.CopyTo(&message);
  *response.mutable_file_descriptor_response()->add_file_descriptor_proto() =
      message.SerializeAsString();
  for (int i = 0; i < file.dependency_count(); ++i) AddFiles(*file.dependency(i), added, response);
}

template <typename Response>
void SetError(grpc::StatusCode code, std::string message, Response& response) {
  response.mutable_error_response()->set_error_code(code);
  response.mutable_error_response()->set_error_message(std::move(message));
}

template <typename Response>
void SetFile(const FileDescriptor* file, std::string_view kind, const std::string& name,
             Response& response) {
  if (file == nullptr) {
    SetError(grpc::StatusCode::NOT_FOUND, absl::StrCat("no ", A(kind), " ", Quoted(name)),
             response);
    return;
  }
  std::set<const FileDescriptor*> added;
  AddFiles(*file, added, response);
}

template <typename Response>
void SetExtensionNumbers(const std::string& type_name, Response& response) {
  const Descriptor* const type = Pool().FindMessageTypeByName(type_name);
  if (type == nullptr) {
    SetError(grpc::StatusCode::NOT_FOUND, absl::StrCat("no message type ", Quoted(type_name)),
             response);
    return;
  }
  auto& numbers = *response.mutable_all_extension_numbers_response();
  numbers.set_base_type_name(type->full_name());
  std::vector<const FieldDescriptor*> extensions;
  Pool().FindAllExtensions(type, &extensions);
  for (const FieldDescriptor* extension : extensions) {
    numbers.add_extension_number(extension->number());
  }
}

template <typename Request, typename Response>
void Respond(const Request& request, const std::vector<std::string>& service_names,
             Response& response) {
  response.Clear();
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  switch (request.message_request_case()) {
    case Request::kFileByFilename:
      return SetFile(Pool().FindFileByName(request.file_by_filename()), "file",
                     request.file_by_filename(), response);
    case Request::kFileContainingSymbol:
      return SetFile(Pool().FindFileContainingSymbol(request.file_containing_symbol()), "symbol",
                     request.file_containing_symbol(), response);
    case Request::kFileContainingExtension: {
      const auto& wanted = request.file_containing_extension();
      const Descriptor* const type = Pool().FindMessageTypeByName(wanted.containing_type());
      const FieldDescriptor* const extension =
          type == nullptr ? nullptr : Pool().FindExtensionByNumber(type, wanted.extension_number());
      return SetFile(extension == nullptr ? nullptr : extension->file(), "extension",
                     absl::StrCat(wanted.containing_type(), " ", wanted.extension_number()),
                     response);
    }
    case Request::kAllExtensionNumbersOfType:
      return SetExtensionNumbers(request.all_extension_numbers_of_type(), response);
    case Request::kListServices:
      for (const std::string& name : service_names) {
        response.mutable_list_services_response()->add_service()->set_name(name);
      }
      return;
    case Request::MESSAGE_REQUEST_NOT_SET:
      return SetError(grpc::StatusCode::INVALID_ARGUMENT,
                      "message_request: one of its fields is required", response);
  }
}

}  // namespace

// Reads, answers, reads. Deletes itself when gRPC is done with it.
template <typename Service, typename Request, typename Response>
class ReflectionService<Service, Request, Response>::Stream final
    : public grpc::ServerBidiReactor<Request, Response> {
 public:
  explicit Stream(const std::vector<std::string>& service_names) : service_names_(service_names) {
    this->StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return this->Finish(grpc::Status::OK);
    Respond(request_, service_names_, response_);
    this->StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return this->Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client has gone"));
    this->StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  const std::vector<std::string>& service_names_;
  Request request_;
  Response response_;
};

template <typename Service, typename Request, typename Response>
grpc::ServerBidiReactor<Request, Response>*
ReflectionService<Service, Request, Response>::ServerReflectionInfo(grpc::CallbackServerContext*) {
  return new Stream(service_names_);
}

template class ReflectionService<grpc::reflection::v1::ServerReflection,
                                 grpc::reflection::v1::ServerReflectionRequest,
                                 grpc::reflection::v1::ServerReflectionResponse>;
template class ReflectionService<grpc::reflection::v1alpha::ServerReflection,
                                 grpc::reflection::v1alpha::ServerReflectionRequest,
                                 grpc::reflection::v1alpha::ServerReflectionResponse>;

}  // namespace ultrasketch
