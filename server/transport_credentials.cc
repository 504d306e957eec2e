#include "server/transport_credentials.h"

#include <algorithm>
#include <ctime>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "server/log.h"

namespace ultrasketch {
namespace {

constexpr int64_t kMaxPemBytes = int64_t{4} << 20;

struct FreeOpenSsl {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using OpenSslPtr = std::unique_ptr<T, FreeOpenSsl>;

OpenSslPtr<BIO> Reader(const std::string& text) {
  return OpenSslPtr<BIO>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// OpenSSL would ask on the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

// The first certificate of a PEM file.
absl::StatusOr<OpenSslPtr<X509>> ParseCertificate(const std::string& path, const std::string& pem) {
  const auto reader = Reader(pem);
  OpenSslPtr<X509> certificate(PEM_read_bio_X509(reader.get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a certificate in PEM (BEGIN CERTIFICATE), found none"));
  }
  return certificate;
}

absl::StatusOr<OpenSslPtr<EVP_PKEY>> ParseKey(const std::string& path, const std::string& pem) {
  const auto reader = Reader(pem);
  OpenSslPtr<EVP_PKEY> key(PEM_read_bio_PrivateKey(reader.get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        path,
        ": expected a private key in PEM (BEGIN PRIVATE KEY) without a password, found none"));
  }
  return key;
}

absl::Time NotAfter(const X509& certificate) {
  std::tm time = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &time) != 1) return absl::InfiniteFuture();
  return absl::FromTM(time, absl::UTCTimeZone());
}

absl::StatusOr<std::shared_ptr<const TlsIdentity>> ReadIdentity(const TlsFiles& files) {
  const auto identity = std::make_shared<TlsIdentity>();
  US_ASSIGN_OR_RETURN(identity->certificate, ReadFile(files.certificate, kMaxPemBytes));
  US_ASSIGN_OR_RETURN(identity->key, ReadFile(files.key, kMaxPemBytes));
  US_ASSIGN_OR_RETURN(const auto certificate,
                      ParseCertificate(files.certificate, identity->certificate));
  US_ASSIGN_OR_RETURN(const auto key, ParseKey(files.key, identity->key));
  const bool belong_together = X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (!belong_together) {
    return absl::InvalidArgumentError(absl::StrCat(files.key,
                                                   ": expected the private key of the "
                                                   "certificate in ",
                                                   files.certificate, ", found another one"));
  }
  if (!files.client_ca.empty()) {
    US_ASSIGN_OR_RETURN(identity->client_ca, ReadFile(files.client_ca, kMaxPemBytes));
    US_RETURN_IF_ERROR(ParseCertificate(files.client_ca, identity->client_ca).status());
  }
  const absl::Time not_after = NotAfter(*certificate);
  identity->not_after = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", not_after, absl::UTCTimeZone());
  if (not_after < absl::Now()) {
    LogEvent(LogLevel::kWarning, "certificate_expired",
             {{"file", files.certificate}, {"not_after", identity->not_after}});
  }
  return identity;
}

std::vector<std::string> Paths(const TlsFiles& files) {
  std::vector<std::string> paths = {files.certificate, files.key};
  if (!files.client_ca.empty()) paths.push_back(files.client_ca);
  return paths;
}

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

// What decides on each call.
struct CallGuard {
  std::shared_ptr<const AccessPolicy> policy;
  RefusedCallObserver on_refused;

  // gRPC's callback for each call, on the thread that received it.
  static void Process(void* state, grpc_auth_context*, const grpc_metadata* metadata,
                      size_t num_metadata, grpc_process_auth_metadata_done_cb done,
                      void* done_data) {
    const auto& guard = *static_cast<const CallGuard*>(state);
    std::string_view path;
    std::optional<std::string_view> authorization;
    for (size_t i = 0; i < num_metadata; ++i) {
      const std::string_view key = View(metadata[i].key);
      if (key == ":path") path = View(metadata[i].value);
      if (key == "authorization") authorization = View(metadata[i].value);
    }
    const absl::Status status = guard.policy->Check(path, authorization);
    if (status.ok()) {
      done(done_data, nullptr, 0, nullptr, 0, GRPC_STATUS_OK, nullptr);
      return;
    }
    guard.on_refused(path, status);
    const std::string message(status.message());
    done(done_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.code()),
         message.c_str());
  }
};

// For one listening port: gRPC wants to be given the certificates at the first handshake, and then
// only when they are others.
struct CertificateFetcher {
  std::shared_ptr<TlsCertificates> certificates;
  std::shared_ptr<const TlsIdentity> given;

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* user_data, grpc_ssl_server_certificate_config** config) {
    auto& fetcher = *static_cast<CertificateFetcher*>(user_data);
    auto current = fetcher.certificates->Current();
    if (current == fetcher.given) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {current->key.c_str(), current->certificate.c_str()};
    // gRPC aborts without roots, also where it asks for no client's certificate and uses none.
    const std::string& roots =
        current->client_ca.empty() ? current->certificate : current->client_ca;
    *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
    fetcher.given = std::move(current);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }
};

class PolicedCredentials final : public grpc::ServerCredentials {
 public:
  PolicedCredentials(std::shared_ptr<TlsCertificates> certificates, CallGuard guard)
      : certificates_(std::move(certificates)), guard_(std::move(guard)) {}

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    US_CHECK(false);  // the guard is the processor
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    grpc_server_credentials* const credentials = NewCredentials();
    grpc_server_credentials_set_auth_metadata_processor(
        credentials, {CallGuard::Process, /*destroy=*/nullptr, &guard_});
    const int port = grpc_server_add_http2_port(server, address.c_str(), credentials);
    grpc_server_credentials_release(credentials);
    return port;
  }

  grpc_server_credentials* NewCredentials() {
    if (certificates_ == nullptr) return grpc_insecure_server_credentials_create();
    CertificateFetcher& fetcher = *fetchers_.emplace_back(
        std::make_unique<CertificateFetcher>(CertificateFetcher{certificates_, nullptr}));
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            certificates_->requires_client_certificates()
                ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            CertificateFetcher::Fetch, &fetcher));
  }

  const std::shared_ptr<TlsCertificates> certificates_;
  CallGuard guard_;
  std::vector<std::unique_ptr<CertificateFetcher>> fetchers_;
};

}  // namespace

TlsCertificates::TlsCertificates(TlsFiles files, absl::Duration look_interval)
    : files_(std::move(files)), watched_(Paths(files_), look_interval) {}

absl::StatusOr<std::unique_ptr<TlsCertificates>> TlsCertificates::Open(
    TlsFiles files, absl::Duration look_interval) {
  std::unique_ptr<TlsCertificates> certificates(
      new TlsCertificates(std::move(files), look_interval));
  absl::MutexLock lock(&certificates->mutex_);
  certificates->watched_.HaveChanged();  // from before the reading: a change in between is seen
  US_ASSIGN_OR_RETURN(certificates->current_, ReadIdentity(certificates->files_));
  return certificates;
}

std::shared_ptr<const TlsIdentity> TlsCertificates::Current() {
  absl::MutexLock lock(&mutex_);
  if (!watched_.HaveChanged()) return current_;
  auto read = ReadIdentity(files_);
  if (!read.ok()) {
    LogEvent(LogLevel::kError, "certificate_not_reloaded",
             {{"error", std::string(read.status().message())}});
  } else if (**read != *current_) {
    current_ = *std::move(read);
    LogEvent(LogLevel::kInfo, "certificate_reloaded",
             {{"file", files_.certificate}, {"not_after", current_->not_after}});
  }
  return current_;
}

std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    std::shared_ptr<TlsCertificates> certificates, std::shared_ptr<const AccessPolicy> policy,
    RefusedCallObserver on_refused) {
  return std::make_shared<PolicedCredentials>(std::move(certificates),
                                              CallGuard{std::move(policy), std::move(on_refused)});
}

}  // namespace ultrasketch
