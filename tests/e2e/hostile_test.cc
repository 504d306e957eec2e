// What a server must survive, and how it says what was wrong.
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/server.h"
#include "tests/e2e/tool.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

std::string SampleModel() { return absl::StrCat("sample=", SAMPLE_MODEL_DIR); }

client::GenerateRequest Request(const std::string& prompt) {
  client::GenerateRequest request;
  request.prompt = prompt;
  request.max_tokens = 4;
  return request;
}

void ExpectServes(const TestServer& server) {
  const auto response = server.Connect()->Generate(Request("It was"));
  EXPECT_TRUE(response.ok()) << response.status();
}

TEST(HostileTest, SurvivesBytesThatAreNoProtocol) {
  TestServer server({SampleModel()});
  std::mt19937 generator(1);
  std::vector<std::string> messages = {
      "", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      // A valid preface, then frames of nonsense.
      absl::StrCat("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", std::string(4096, '\xff'))};
  for (int i = 0; i < 20; ++i) {
    std::string noise(1 + generator() % 20000, '\0');
    for (char& c : noise) c = static_cast<char>(generator());
    messages.push_back(noise);
  }
  for (const std::string& message : messages) {
    ExchangeBytes(server.port(), message, absl::Milliseconds(100));
  }
  ExpectServes(server);
  EXPECT_EQ(server.Stop(), 0);
}

TEST(HostileTest, RefusesBadRequestsByNameAndGoesOn) {
  TestServer server({SampleModel()});
  const auto client = server.Connect();

  const absl::Status huge = client->Generate(Request(std::string(10 << 20, 'a'))).status();
  EXPECT_TRUE(absl::IsInvalidArgument(huge) || absl::IsResourceExhausted(huge)) << huge;

  const absl::Status empty = client->Generate(Request("")).status();
  // A tokenizer that adds a beginning-of-sequence token makes one token of it.
  EXPECT_TRUE(empty.ok() || absl::IsInvalidArgument(empty)) << empty;

  client::GenerateRequest request = Request("a");
  request.model = "nobody";
  const absl::Status unknown = client->Generate(request).status();
  EXPECT_TRUE(absl::IsNotFound(unknown)) << unknown;
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("nobody"));

  request = Request("a");
  request.max_tokens = 0;
  const absl::Status none = client->Generate(request).status();
  EXPECT_TRUE(absl::IsInvalidArgument(none)) << none;
  EXPECT_THAT(std::string(none.message()), HasSubstr("max_tokens"));

  request = Request("a");
  request.temperature = -1;
  const absl::Status cold = client->Generate(request).status();
  EXPECT_TRUE(absl::IsInvalidArgument(cold)) << cold;
  EXPECT_THAT(std::string(cold.message()), HasSubstr("temperature"));

  request = Request("a");
  request.prompt = std::vector<int32_t>{1, 2, 1 << 30};
  const absl::Status ids = client->Generate(request).status();
  EXPECT_TRUE(absl::IsInvalidArgument(ids)) << ids;
  EXPECT_THAT(std::string(ids.message()), HasSubstr("token_ids"));

  // The same over a stream.
  request = Request("a");
  request.max_tokens = -5;
  EXPECT_TRUE(absl::IsInvalidArgument(client->GenerateStream(request, nullptr).status()));

  ExpectServes(server);
  EXPECT_TRUE(server.WaitUntilIdle("sample"));
  EXPECT_EQ(server.Stop(), 0);
}

TEST(HostileTest, ATakenPortEndsTheSecondServer) {
  TestServer server({SampleModel()});
  const Completed second = RunProgram({ULTRASKETCHD_BINARY, "--model", SampleModel(), "--listen",
                                       server.address(), "--metrics-listen", "127.0.0.1:0"});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, HasSubstr(server.address()));
  ExpectServes(server);
}

TEST(HostileTest, AMissingModelFolderEndsTheServer) {
  const Completed run = RunProgram({ULTRASKETCHD_BINARY, "--model", "m=/nonexistent/model",
                                    "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("/nonexistent/model"));
}

}  // namespace
}  // namespace ultrasketch
