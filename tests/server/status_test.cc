#include "server/status.h"

#include <string>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::IsEmpty;

TEST(StatusTest, OkIsOkWithoutDetails) {
  const grpc::Status status = ToGrpcStatus(absl::OkStatus());
  EXPECT_TRUE(status.ok());
  EXPECT_THAT(status.error_details(), IsEmpty());
}

TEST(StatusTest, KeepsCodeAndMessage) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "what happened"));
    EXPECT_EQ(status.error_code(), code);
    EXPECT_EQ(status.error_message(), "what happened");
    EXPECT_THAT(DetailsOf(status).fields, IsEmpty());
  }
}

TEST(StatusTest, NamesTheField) {
  const grpc::Status status = ToGrpcStatus(InvalidField("max_tokens", "0 is less than 1"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "max_tokens: 0 is less than 1");
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("max_tokens"));
}

TEST(StatusTest, OnlyIdentifiersAreFields) {
  for (const char* message : {"no field", ": nothing", "Two words: x", "a b: x", "max_tokens:x"}) {
    EXPECT_THAT(DetailsOf(ToGrpcStatus(absl::InvalidArgumentError(message))).fields, IsEmpty())
        << message;
  }
}

TEST(StatusTest, CarriesReasonAndRetryDelay) {
  const absl::Status status = WithRetryDelay(
      WithReason(absl::ResourceExhaustedError("full"), "QUEUE_FULL"), absl::Milliseconds(1250));
  const ErrorDetails details = DetailsOf(ToGrpcStatus(status));
  EXPECT_EQ(details.reason, "QUEUE_FULL");
  EXPECT_EQ(details.retry_delay, absl::Milliseconds(1250));
}

TEST(StatusTest, OtherPayloadsStayInside) {
  absl::Status status = absl::InternalError("x");
  status.SetPayload("type.example.com/private", absl::Cord("secret"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(ToGrpcStatus(status).error_details()));
  EXPECT_EQ(details.details_size(), 0);
}

TEST(StatusTest, CutsLongMessagesBetweenCharacters) {
  std::string message = "text: ";
  while (message.size() < 100'000) message += "\xE2\x82\xAC";
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError(message));
  EXPECT_LE(status.error_message().size(), 1100u);
  EXPECT_LE(status.error_details().size(), 4096u);
  EXPECT_TRUE(IsValidUtf8(status.error_message()));
  EXPECT_THAT(status.error_message(), EndsWith("..."));
  EXPECT_THAT(DetailsOf(status).fields, ElementsAre("text"));
}

TEST(StatusTest, MessagesThatAreNotUtf8AreEscaped) {
  const grpc::Status status =
      ToGrpcStatus(absl::InternalError("a\xFF"
                                       "b"));
  EXPECT_EQ(status.error_message(), "\"a\\xffb\"");
}

}  // namespace
}  // namespace ultrasketch
