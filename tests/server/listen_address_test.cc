#include "server/listen_address.h"

#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

TEST(ListenAddressTest, ParsesHostAndPort) {
  for (const char* text : {"127.0.0.1:8001", "localhost:0", "[::1]:65535", "a-b.example:1"}) {
    const auto address = ParseListenAddress(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
  EXPECT_EQ(ParseListenAddress("[::1]:80")->host, "::1");
  EXPECT_EQ(ParseListenAddress("[::1]:80")->port, 80);
}

TEST(ListenAddressTest, RejectsAnythingElse) {
  for (const char* text : {"", ":", "8001", "host", "host:", ":8001", "host:-1", "host:65536",
                           "host:80x", "::1:80", "[::1]", "[]:80", "a b:80", "unix:/tmp/x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseListenAddress(text).status())) << text;
  }
}

TEST(ListenAddressTest, ResolvesNames) {
  const auto address = ResolveListenAddress({"127.0.0.1", 7});
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->ToString(), "127.0.0.1:7");
}

TEST(ListenAddressTest, ATakenPortIsAnError) {
  const int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name = {};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(descriptor, reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  ASSERT_EQ(listen(descriptor, 1), 0);
  socklen_t size = sizeof(name);
  ASSERT_EQ(getsockname(descriptor, reinterpret_cast<sockaddr*>(&name), &size), 0);
  const ListenAddress address = {"127.0.0.1", ntohs(name.sin_port)};

  const absl::Status status = CheckCanListen(address);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(S(status.message()), HasSubstr(address.ToString()));
  EXPECT_THAT(S(status.message()), HasSubstr("in use"));
  close(descriptor);
  EXPECT_TRUE(CheckCanListen(address).ok());
}

}  // namespace
}  // namespace ultrasketch
