// Certificates and tokens, from the command to the server.
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/server.h"
#include "tests/e2e/tool.h"
#include "tests/server/test_certificates.h"

namespace ultrasketch {
namespace {

using ::testing::HasSubstr;

constexpr char kUserToken[] = "user-token-0123456789";
constexpr char kAdminToken[] = "admin-token-0123456789";

class SecurityTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(folder_.path(), "/", name);
    std::ofstream(path) << text;
    return path;
  }
  // A server with mutual TLS and tokens.
  TestServer Serve() {
    return TestServer({absl::StrCat("sample=", SAMPLE_MODEL_DIR)},
                      {"--tls-cert", Write("server.pem", server_.certificate), "--tls-key",
                       Write("server.key", server_.key), "--tls-client-ca", ca_, "--token-file",
                       Write("tokens", absl::StrCat("# tokens\nci:user:", kUserToken,
                                                    "\nop:admin:", kAdminToken, "\n"))});
  }
  Completed Run(const TestServer& server, std::vector<std::string> command,
                const std::vector<std::string>& more) {
    command.insert(command.end(), {"--target", server.address(), "--json"});
    command.insert(command.end(), more.begin(), more.end());
    return RunTool(command);
  }

  TemporaryFolder folder_;
  TestAuthority authority_;
  PemPair server_ = authority_.Issue("server");
  PemPair client_ = authority_.Issue("client");
  std::string ca_ = Write("ca.pem", authority_.certificate());
  std::vector<std::string> tls_ = {"--tls-ca",   ca_,
                                   "--tls-cert", Write("client.pem", client_.certificate),
                                   "--tls-key",  Write("client.key", client_.key)};
};

TEST_F(SecurityTest, TheCommandSpeaksMutualTlsAndSendsTokens) {
  TestServer server = Serve();
  std::vector<std::string> as_user = tls_;
  as_user.insert(as_user.end(), {"--token-file", Write("mine", absl::StrCat(kUserToken, "\n"))});
  const Completed generated =
      Run(server, {"generate", "--prompt", "It was", "--max-tokens", "3"}, as_user);
  EXPECT_EQ(generated.exit_code, 0) << generated.err;
  const Completed refused = Run(server, {"models", "load", "sample"}, as_user);
  EXPECT_EQ(ParseOutput(refused)["error"]["code"], "PERMISSION_DENIED");

  setenv("ULTRASKETCH_TOKEN", kAdminToken, 1);
  const Completed loaded = Run(server, {"models", "load", "sample"}, tls_);
  unsetenv("ULTRASKETCH_TOKEN");
  EXPECT_EQ(loaded.exit_code, 0) << loaded.err;

  EXPECT_EQ(ParseOutput(Run(server, {"models", "list"}, tls_))["error"]["code"], "UNAUTHENTICATED");
  EXPECT_EQ(Run(server, {"health"}, tls_).exit_code, 0);
  EXPECT_EQ(Run(server, {"health", "--timeout", "2"}, {"--tls-ca", ca_}).exit_code, 1);
  EXPECT_EQ(Run(server, {"health", "--timeout", "2"}, {}).exit_code, 1);
}

TEST_F(SecurityTest, TheCommandKeepsTokensOffForeignPlainText) {
  const std::string token = Write("mine", kUserToken);
  const Completed run = RunTool({"models", "list", "--target", "192.0.2.1:8001", "--token-file",
                                 token, "--timeout", "1", "--json"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(ParseOutput(run)["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_THAT(run.err, HasSubstr("plain text"));
  const Completed usage = RunTool({"health", "--target", "localhost:1", "--tls-cert", "a.pem"});
  EXPECT_EQ(usage.exit_code, 2);
  const Completed empty = RunTool({"models", "list", "--target", "localhost:1", "--token-file",
                                   Write("none", "# nothing\n"), "--json"});
  EXPECT_THAT(empty.err, HasSubstr("expected a token, found none"));
}

TEST_F(SecurityTest, ATokenThatNoHeaderCanCarryIsAnError) {
  for (const char* token : {"t\xC3\xB6ken", "two\nlines", "\x01"}) {
    setenv("ULTRASKETCH_TOKEN", token, 1);
    const Completed run = RunTool({"models", "list", "--target", "localhost:1", "--json"});
    unsetenv("ULTRASKETCH_TOKEN");
    EXPECT_EQ(run.exit_code, 1) << run.err;
    EXPECT_EQ(ParseOutput(run)["error"]["message"],
              "ULTRASKETCH_TOKEN: expected a token of printable ASCII without spaces");
  }
}

TEST_F(SecurityTest, ATokenMayComeThroughAPipe) {
  // It is asked for again and again, and the pipe is read once.
  const Completed run = RunProgram(
      {"/bin/bash", "-c",
       absl::StrCat(ULTRASKETCH_BINARY, " health --target unix:/nonexistent/socket --wait 0.5 ",
                    "--token-file <(echo a-token)")});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("[UNAVAILABLE]"));
}

}  // namespace
}  // namespace ultrasketch
