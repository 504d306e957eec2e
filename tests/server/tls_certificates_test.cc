#include <filesystem>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/strings.h"
#include "server/transport_credentials.h"
#include "tests/base/temporary_folder.h"
#include "tests/server/test_certificates.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TlsCertificatesTest : public ::testing::Test {
 protected:
  TlsFiles Write(const PemPair& pair) {
    return {folder_.Write("cert.pem", pair.certificate), folder_.Write("key.pem", pair.key), ""};
  }
  static std::string ErrorOf(const TlsFiles& files) {
    const auto certificates = TlsCertificates::Open(files);
    EXPECT_FALSE(certificates.ok());
    return std::string(certificates.status().message());
  }

  TemporaryFolder folder_;
  TestAuthority authority_;
};

TEST_F(TlsCertificatesTest, RefusesWhatCannotServe) {
  const PemPair pair = authority_.Issue("server");
  TlsFiles files = Write(pair);
  EXPECT_TRUE(TlsCertificates::Open(files).ok());

  folder_.Write("key.pem", authority_.Issue("other").key);
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr(files.key), HasSubstr("found another one")));
  folder_.Write("key.pem", EncryptedKey(pair));
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr(files.key), HasSubstr("without a password")));
  folder_.Write("key.pem", "");
  EXPECT_THAT(ErrorOf(files), HasSubstr(files.key));
  files = Write({"no certificate", pair.key});
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr(files.certificate), HasSubstr("BEGIN CERTIFICATE")));
  files = Write(pair);
  files.client_ca = folder_.Write("ca.pem", pair.key);
  EXPECT_THAT(ErrorOf(files), HasSubstr(files.client_ca));
  files.client_ca = "/nonexistent/ca.pem";
  EXPECT_THAT(ErrorOf(files), HasSubstr("/nonexistent/ca.pem"));
}

TEST_F(TlsCertificatesTest, AReplacementCountsWhenItIsWhole) {
  const PemPair first = authority_.Issue("first");
  const PemPair second = authority_.Issue("second");
  const auto certificates = TlsCertificates::Open(Write(first), absl::ZeroDuration());
  ASSERT_TRUE(certificates.ok()) << certificates.status();
  EXPECT_EQ((*certificates)->Current()->certificate, first.certificate);
  folder_.Write("cert.pem", second.certificate);  // and still the first one's key
  EXPECT_EQ((*certificates)->Current()->certificate, first.certificate);
  EXPECT_EQ((*certificates)->Current()->key, first.key);
  folder_.Write("key.pem", second.key);
  EXPECT_EQ((*certificates)->Current()->certificate, second.certificate);
  EXPECT_EQ((*certificates)->Current()->key, second.key);
  std::filesystem::remove(folder_.File("cert.pem"));
  EXPECT_EQ((*certificates)->Current()->certificate, second.certificate);
}

TEST_F(TlsCertificatesTest, ExpiredOnesAreServed) {
  const auto certificates = TlsCertificates::Open(Write(authority_.Issue("old", -1)));
  ASSERT_TRUE(certificates.ok()) << certificates.status();
  EXPECT_LT((*certificates)->Current()->not_after,
            absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone()));
}

}  // namespace
}  // namespace ultrasketch
