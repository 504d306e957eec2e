// Tokens, and who may call what.
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "server/access_policy.h"
#include "server/token_file.h"
#include "tests/base/temporary_folder.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kUserToken[] = "user-token-0123456789";
constexpr char kAdminToken[] = "admin-token-0123456789";

TEST(TokenTableTest, KnowsTokensTheirNamesAndRoles) {
  const auto table = TokenTable::Parse(
      "# a comment\n\n  bare-token-0123456789  \r\nci:user:user-token-0123456789\n"
      "operator:admin:admin-token-0123456789");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->size(), 3u);
  ASSERT_TRUE(table->Find("bare-token-0123456789").has_value());
  EXPECT_EQ(table->Find("bare-token-0123456789")->name, "");
  EXPECT_EQ(table->Find("bare-token-0123456789")->role, Role::kUser);
  EXPECT_EQ(table->Find(kUserToken)->name, "ci");
  EXPECT_EQ(table->Find(kUserToken)->role, Role::kUser);
  EXPECT_EQ(table->Find(kAdminToken)->role, Role::kAdmin);
  EXPECT_FALSE(table->Find("").has_value());
  EXPECT_FALSE(table->Find("user-token-012345678").has_value());
  EXPECT_FALSE(table->Find("ci:user:user-token-0123456789").has_value());
}

TEST(TokenTableTest, RefusesOtherLinesByNumberAndNeverByText) {
  for (const char* line :
       {"short-secret", "two words-secret-0123456789", "name:secret-secret-0123456789",
        "name:owner:secret-secret-0123456789", ":user:secret-secret-0123456789",
        "a:user:b:secret-secret-0123456789", "secret\x01secret-0123456789"}) {
    const auto table = TokenTable::Parse(std::string("# first\nfine-token-0123456789\n") + line);
    ASSERT_TRUE(absl::IsInvalidArgument(table.status())) << line;
    EXPECT_THAT(S(table.status().message()), AllOf(HasSubstr("line 3"), Not(HasSubstr("secret"))));
  }
  EXPECT_FALSE(TokenTable::Parse("# nothing\n").ok());
  const auto twice = TokenTable::Parse("fine-token-0123456789\na:admin:fine-token-0123456789\n");
  EXPECT_THAT(S(twice.status().message()), HasSubstr("already"));
}

TEST(TokenFileTest, FollowsTheFile) {
  const TemporaryFolder folder;
  const std::string path = folder.Write("tokens", kUserToken);
  const auto file = TokenFile::Open(path, absl::ZeroDuration());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->Find(kUserToken).has_value());
  folder.Write("tokens", kAdminToken);
  EXPECT_FALSE((*file)->Find(kUserToken).has_value());
  EXPECT_TRUE((*file)->Find(kAdminToken).has_value());
  // What is broken or gone changes nothing: nobody is locked out by half a file.
  folder.Write("tokens", "two words");
  EXPECT_TRUE((*file)->Find(kAdminToken).has_value());
  std::filesystem::remove(path);
  EXPECT_TRUE((*file)->Find(kAdminToken).has_value());
  folder.Write("tokens", kUserToken);
  EXPECT_TRUE((*file)->Find(kUserToken).has_value());
}

TEST(TokenFileTest, SaysWhichFileIsWrong) {
  const TemporaryFolder folder;
  EXPECT_THAT(S(TokenFile::Open("/nonexistent/tokens").status().message()),
              HasSubstr("/nonexistent/tokens"));
  const std::string path = folder.Write("tokens", "x");
  EXPECT_THAT(S(TokenFile::Open(path).status().message()),
              AllOf(HasSubstr(path), HasSubstr("line 1")));
}

class AccessPolicyTest : public ::testing::Test {
 protected:
  std::shared_ptr<TokenFile> Tokens() {
    return *TokenFile::Open(folder_.Write(
        "tokens", std::string("ci:user:") + kUserToken + "\noperator:admin:" + kAdminToken + "\n"));
  }
  static absl::StatusCode Code(const AccessPolicy& policy, std::string_view method,
                               std::optional<std::string_view> authorization) {
    return policy.Check(method, authorization).code();
  }

  const std::string as_user_ = std::string("Bearer ") + kUserToken;
  const std::string as_admin_ = std::string("bearer  ") + kAdminToken;
  TemporaryFolder folder_;
};

TEST_F(AccessPolicyTest, TokensAndRolesDecide) {
  const AccessPolicy policy(Tokens(), /*admin_rpcs=*/true);
  const auto kOk = absl::StatusCode::kOk;
  const auto kUnauthenticated = absl::StatusCode::kUnauthenticated;
  for (const char* method :
       {"/ultrasketch.v1.GenerationService/Generate", "/ultrasketch.v1.ModelService/ListModels",
        "/inference.GRPCInferenceService/ModelInfer", "/no.such.Service/Method", ""}) {
    EXPECT_EQ(Code(policy, method, std::nullopt), kUnauthenticated) << method;
    EXPECT_EQ(Code(policy, method, "Bearer wrong-token-0123456789"), kUnauthenticated);
    EXPECT_EQ(Code(policy, method, kUserToken), kUnauthenticated);
    EXPECT_EQ(Code(policy, method, std::string("Basic ") + kUserToken), kUnauthenticated);
    EXPECT_EQ(Code(policy, method, "Bearer"), kUnauthenticated);
    EXPECT_EQ(Code(policy, method, as_user_), kOk);
    EXPECT_EQ(Code(policy, method, as_admin_), kOk);
  }
  for (const char* method :
       {"/ultrasketch.v1.ModelService/LoadModel", "/ultrasketch.v1.ModelService/UnloadModel",
        "/ultrasketch.v1.ModelService/MeasureOverhead",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload"}) {
    EXPECT_EQ(Code(policy, method, std::nullopt), kUnauthenticated) << method;
    EXPECT_EQ(Code(policy, method, as_user_), absl::StatusCode::kPermissionDenied);
    EXPECT_EQ(Code(policy, method, as_admin_), kOk);
  }
  EXPECT_EQ(Code(policy, "/grpc.health.v1.Health/Check", std::nullopt), kOk);
  EXPECT_EQ(Code(policy, "/grpc.health.v1.Health/Watch", "Bearer nonsense"), kOk);
}

TEST_F(AccessPolicyTest, WithoutTokensEverybodyMayCallWhatIsOn) {
  const AccessPolicy on(nullptr, /*admin_rpcs=*/true);
  EXPECT_TRUE(on.Check("/ultrasketch.v1.ModelService/LoadModel", std::nullopt).ok());
  const AccessPolicy off(nullptr, /*admin_rpcs=*/false);
  EXPECT_TRUE(off.Check("/ultrasketch.v1.GenerationService/Score", std::nullopt).ok());
  EXPECT_TRUE(
      absl::IsPermissionDenied(off.Check("/ultrasketch.v1.ModelService/LoadModel", std::nullopt)));
}

TEST_F(AccessPolicyTest, AdminsCannotCallWhatIsOff) {
  const AccessPolicy policy(Tokens(), /*admin_rpcs=*/false);
  EXPECT_EQ(Code(policy, "/ultrasketch.v1.ModelService/UnloadModel", as_admin_),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(AccessPolicyTest, KnowsCallersByName) {
  const AccessPolicy policy(Tokens(), /*admin_rpcs=*/true);
  EXPECT_EQ(policy.CallerName(as_user_), "ci");
  EXPECT_EQ(policy.CallerName(as_admin_), "operator");
  EXPECT_EQ(policy.CallerName("Bearer x"), "");
  EXPECT_EQ(policy.CallerName(std::nullopt), "");
}

}  // namespace
}  // namespace ultrasketch
