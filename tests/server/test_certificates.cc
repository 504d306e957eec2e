#include "tests/server/test_certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "engine/base/check.h"

namespace ultrasketch {
namespace {

struct Free {
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using CertificatePtr = std::unique_ptr<X509, Free>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Free>;
using BioPtr = std::unique_ptr<BIO, Free>;

std::string Contents(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<size_t>(size)};
}

std::string ToPem(X509& certificate) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  US_CHECK(PEM_write_bio_X509(bio.get(), &certificate) == 1);
  return Contents(bio.get());
}

std::string ToPem(EVP_PKEY& key, const char* password = nullptr) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  US_CHECK(PEM_write_bio_PKCS8PrivateKey(bio.get(), &key,
                                         password == nullptr ? nullptr : EVP_aes_256_cbc(), nullptr,
                                         0, nullptr, const_cast<char*>(password)) == 1);
  return Contents(bio.get());
}

void AddExtension(X509& certificate, X509& issuer, int id, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, &issuer, &certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, id, value);
  US_CHECK(extension != nullptr);
  X509_add_ext(&certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

// Unsigned; `issuer` null: its own.
CertificatePtr NewCertificate(const std::string& common_name, EVP_PKEY& key, X509* issuer,
                              int days_valid) {
  static long serial = 1;
  CertificatePtr certificate(X509_new());
  X509_set_version(certificate.get(), X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial++);
  constexpr long kDaySeconds = 86400;
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -10 * kDaySeconds);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), days_valid * kDaySeconds);
  X509_set_pubkey(certificate.get(), &key);
  X509_NAME* const name = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(common_name.c_str()), -1, -1,
                             0);
  X509_set_issuer_name(certificate.get(), issuer == nullptr ? name : X509_get_subject_name(issuer));
  return certificate;
}

}  // namespace

struct TestAuthority::Impl {
  KeyPtr key;
  CertificatePtr certificate;
};

TestAuthority::TestAuthority() : impl_(std::make_unique<Impl>()) {
  impl_->key.reset(EVP_EC_gen("P-256"));
  US_CHECK(impl_->key != nullptr);
  impl_->certificate = NewCertificate("test authority", *impl_->key, nullptr, 1);
  X509& certificate = *impl_->certificate;
  AddExtension(certificate, certificate, NID_basic_constraints, "critical,CA:TRUE");
  AddExtension(certificate, certificate, NID_subject_key_identifier, "hash");
  US_CHECK(X509_sign(&certificate, impl_->key.get(), EVP_sha256()) > 0);
  certificate_ = ToPem(certificate);
}

TestAuthority::~TestAuthority() = default;

PemPair TestAuthority::Issue(const std::string& common_name, int days_valid) const {
  const KeyPtr key(EVP_EC_gen("P-256"));
  US_CHECK(key != nullptr);
  const CertificatePtr certificate =
      NewCertificate(common_name, *key, impl_->certificate.get(), days_valid);
  AddExtension(*certificate, *impl_->certificate, NID_subject_alt_name,
               "DNS:localhost,IP:127.0.0.1");
  US_CHECK(X509_sign(certificate.get(), impl_->key.get(), EVP_sha256()) > 0);
  return {ToPem(*certificate), ToPem(*key)};
}

std::string EncryptedKey(const PemPair& pair) {
  const BioPtr bio(BIO_new_mem_buf(pair.key.data(), static_cast<int>(pair.key.size())));
  const KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  US_CHECK(key != nullptr);
  return ToPem(*key, "password");
}

}  // namespace ultrasketch
