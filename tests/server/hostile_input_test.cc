// Peers that do not speak gRPC, or speak it badly: the server goes on serving others.
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/server/raw_grpc.h"
#include "tests/server/test_server.h"

namespace ultrasketch {
namespace {

class HostileInputTest : public ::testing::Test {
 protected:
  int port() { return server_.server().address().port; }
  void ExpectServes() {
    EXPECT_TRUE(GenerateStream(server_, Request("still serving")).status.ok());
    server_.WaitUntilIdle();
  }
  TestServer server_;
};

std::string RandomBytes(std::mt19937& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST_F(HostileInputTest, RandomBytes) {
  std::mt19937 random(1);
  for (int i = 0; i < 50; ++i) {
    RawConnection connection(port());
    connection.Send(RandomBytes(random, 1 + random() % 5000));
    if (i % 2 == 0) connection.Reset();
  }
  ExpectServes();
}

TEST_F(HostileInputTest, RandomFramesAfterAProperPreface) {
  std::mt19937 random(2);
  for (int i = 0; i < 50; ++i) {
    RawConnection connection(port());
    connection.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    connection.Send(std::string("\0\0\0\4\0\0\0\0\0", 9));  // empty SETTINGS
    connection.Send(RandomBytes(random, 1 + random() % 2000));
  }
  ExpectServes();
}

TEST_F(HostileInputTest, ConnectionsThatStayHalfOpen) {
  std::vector<std::unique_ptr<RawConnection>> connections;
  for (int i = 0; i < 200; ++i) {
    connections.push_back(std::make_unique<RawConnection>(port()));
    connections.back()->Send("PRI * HT");
  }
  ExpectServes();
}

TEST_F(HostileInputTest, PlainHttp) {
  RawConnection connection(port());
  connection.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  connection.ReceiveAll();
  ExpectServes();
}

TEST_F(HostileInputTest, MessagesThatAreNotProtobuf) {
  const std::string text = "\x12\x01x";  // GenerateRequest { text: "x" }
  const std::vector<std::pair<const char*, std::string>> messages = {
      {"text that is cut short", "\x12\x05hel"},
      {"a length that never ends", "\x12" + std::string(11, '\xFF')},
      {"a length beyond the message", "\x12\xFF\xFF\xFF\xFF\x07"},
      {"a number that is cut short", text + "\x20\x80"},
      {"a number of eleven bytes", text + "\x20" + std::string(10, '\x80') + "\x01"},
      {"a float that is cut short", text + std::string("\x35\0\0", 3)},
      {"field number zero", text + std::string("\x02\0", 2)},
      {"wire type 6", text + "\x0E"},
      {"wire type 7", text + "\x0F"},
      {"a group that ends and never began", text + "\x0C"},
      {"a group that begins and never ends", text + "\x0B"},
      {"a tag that is cut short", text + "\x80"},
  };
  const auto channel = server_.NewChannel();
  const auto generate = [&](const std::string& message) {
    return CallRaw(channel, "/ultrasketch.v1.GenerationService/Generate", message).status;
  };
  EXPECT_TRUE(generate(text).ok());
  for (const auto& [what, message] : messages) {
    // What gRPC's callback API answers to what it cannot parse, before it calls the service.
    EXPECT_EQ(generate(message).error_code(), grpc::StatusCode::UNIMPLEMENTED) << what;
  }
  // Fields that are not known are no error.
  EXPECT_TRUE(generate(text + "\xFA\x3F\x01x").ok());
  ExpectServes();
}

TEST_F(HostileInputTest, StringsThatAreNotUtf8) {
  // GenerateRequest { string text = 2; }
  const RawAnswer answer = CallRaw(
      server_.NewChannel(), "/ultrasketch.v1.GenerationService/Generate", "\x12\x02\xFF\xFE");
  EXPECT_FALSE(answer.status.ok());
  ExpectServes();
}

TEST_F(HostileInputTest, ManyRequestsAtOnce) {
  const auto stub = v1::GenerationService::NewStub(server_.NewChannel());
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>>> readers;
  for (int i = 0; i < 600; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->GenerateStream(contexts.back().get(), Request("all at once", 2)));
  }
  int num_ok = 0;
  for (auto& reader : readers) {
    const grpc::Status status = ReadAll(*reader).status;
    if (status.ok()) {
      ++num_ok;
    } else {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    }
  }
  EXPECT_GT(num_ok, 0);
  ExpectServes();
}

}  // namespace
}  // namespace ultrasketch
