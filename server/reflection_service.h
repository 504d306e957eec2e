// gRPC server reflection, as grpc.reflection.v1 and v1alpha: gRPC 1.51's own serves v1alpha alone,
// and takes a thread for every stream.
#ifndef ULTRASKETCH_SERVER_REFLECTION_SERVICE_H_
#define ULTRASKETCH_SERVER_REFLECTION_SERVICE_H_

#include <string>
#include <utility>
#include <vector>

#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"

namespace ultrasketch {

// Describes what is linked into the program. Answers from gRPC's event threads; a stream holds one
// request and one response at a time. Thread-safe; `Service` is one of the two below.
template <typename Service, typename Request, typename Response>
class ReflectionService final : public Service::CallbackService {
 public:
  // Full names, in the order in which they are listed.
  explicit ReflectionService(std::vector<std::string> service_names)
      : service_names_(std::move(service_names)) {}

  grpc::ServerBidiReactor<Request, Response>* ServerReflectionInfo(
      grpc::CallbackServerContext* context) override;

 private:
  class Stream;

  const std::vector<std::string> service_names_;
};

using ReflectionV1 = ReflectionService<grpc::reflection::v1::ServerReflection,
                                       grpc::reflection::v1::ServerReflectionRequest,
                                       grpc::reflection::v1::ServerReflectionResponse>;
using ReflectionV1Alpha = ReflectionService<grpc::reflection::v1alpha::ServerReflection,
                                            grpc::reflection::v1alpha::ServerReflectionRequest,
                                            grpc::reflection::v1alpha::ServerReflectionResponse>;

extern template class ReflectionService<grpc::reflection::v1::ServerReflection,
                                        grpc::reflection::v1::ServerReflectionRequest,
                                        grpc::reflection::v1::ServerReflectionResponse>;
extern template class ReflectionService<grpc::reflection::v1alpha::ServerReflection,
                                        grpc::reflection::v1alpha::ServerReflectionRequest,
                                        grpc::reflection::v1alpha::ServerReflectionResponse>;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_REFLECTION_SERVICE_H_
