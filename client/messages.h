// Between the client's structs and the messages of proto/ultrasketch/v1.
#ifndef ULTRASKETCH_CLIENT_MESSAGES_H_
#define ULTRASKETCH_CLIENT_MESSAGES_H_

#include "absl/status/status.h"
#include <google/protobuf/message.h>

#include "client/client.h"
#include "ultrasketch/v1/generation.pb.h"
#include "ultrasketch/v1/model.pb.h"

namespace ultrasketch::client {

v1::GenerateRequest ToMessage(const GenerateRequest& request);
v1::ScoreRequest ToMessage(const ScoreRequest& request);
v1::TokenizeRequest ToMessage(const TokenizeRequest& request);

// INVALID_ARGUMENT, naming the field and the byte, where a string in `message` is not UTF-8: gRPC
// would not send it, and not say why.
absl::Status CheckUtf8(const google::protobuf::Message& message);

GenerateResponse FromMessage(const v1::GenerateResponse& message);
GenerateDelta FromMessage(const v1::GenerateDelta& message);
Score FromMessage(const v1::ScoreResponse& message);
ModelInfo FromMessage(const v1::Model& message);

// Adds one completion's deltas and final messages, in the order of the stream, to `response`.
// A message for completion `index` makes room for it.
void AddDelta(const GenerateDelta& delta, GenerateResponse* response);
void AddFinal(const v1::GenerateFinal& message, GenerateResponse* response);

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_MESSAGES_H_
