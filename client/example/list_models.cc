// Lists a server's models through the generated stubs.
//
//   list_models HOST:PORT
#include <iostream>

#include <grpcpp/grpcpp.h>

#include "ultrasketch/v1/model.grpc.pb.h"

namespace v1 = ultrasketch::v1;

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: list_models HOST:PORT\n";
    return 2;
  }
  const auto stub =
      v1::ModelService::NewStub(grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  const grpc::Status status = stub->ListModels(&context, v1::ListModelsRequest(), &response);
  if (!status.ok()) {
    std::cerr << status.error_message() << '\n';
    return 1;
  }
  for (const v1::Model& model : response.models()) {
    std::cout << model.name() << ' ' << v1::ModelState_Name(model.state()) << '\n';
  }
  return 0;
}
