// Certificates made when the test runs.
#ifndef ULTRASKETCH_TESTS_SERVER_TEST_CERTIFICATES_H_
#define ULTRASKETCH_TESTS_SERVER_TEST_CERTIFICATES_H_

#include <memory>
#include <string>

namespace ultrasketch {

struct PemPair {
  std::string certificate;
  std::string key;
};

// Signs certificates. Each is for the names "localhost" and 127.0.0.1.
class TestAuthority {
 public:
  TestAuthority();
  ~TestAuthority();

  // The root, in PEM.
  const std::string& certificate() const { return certificate_; }

  PemPair Issue(const std::string& common_name, int days_valid = 1) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::string certificate_;
};

// `pair.key` encrypted with a password.
std::string EncryptedKey(const PemPair& pair);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_SERVER_TEST_CERTIFICATES_H_
