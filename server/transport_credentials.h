// What protects the connections of the gRPC server: TLS whose certificates are replaced while it
// runs, or nothing; and the access policy on each call.
#ifndef ULTRASKETCH_SERVER_TRANSPORT_CREDENTIALS_H_
#define ULTRASKETCH_SERVER_TRANSPORT_CREDENTIALS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/security/server_credentials.h>

#include "server/access_policy.h"
#include "server/watched_files.h"

namespace ultrasketch {

// Paths of PEM files.
struct TlsFiles {
  std::string certificate;  // the server's, then what leads from it to a root
  std::string key;          // not encrypted
  std::string client_ca;    // roots of clients' certificates, which are then required; empty: none
};

// What the files hold.
struct TlsIdentity {
  std::string certificate;
  std::string key;
  std::string client_ca;
  std::string not_after;  // of the first certificate, as 2027-01-31T00:00:00Z

  bool operator==(const TlsIdentity&) const = default;
};

// The files as they are now. Thread-safe.
class TlsCertificates {
 public:
  // Reads the files. INVALID_ARGUMENT for what is no certificate or no key, and for a key that is
  // not the certificate's; errors of reading as they are. A certificate that has expired is logged.
  static absl::StatusOr<std::unique_ptr<TlsCertificates>> Open(
      TlsFiles files, absl::Duration look_interval = absl::Seconds(1));

  // Reads the files again when one of them has changed, which is looked at once in `look_interval`.
  // When they cannot be read, or do not belong together, as between two steps of a replacement,
  // that is logged (certificate_not_reloaded), and what was there stays.
  std::shared_ptr<const TlsIdentity> Current() ABSL_LOCKS_EXCLUDED(mutex_);

  bool requires_client_certificates() const { return !files_.client_ca.empty(); }

 private:
  TlsCertificates(TlsFiles files, absl::Duration look_interval);

  const TlsFiles files_;
  absl::Mutex mutex_;
  WatchedFiles watched_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const TlsIdentity> current_ ABSL_GUARDED_BY(mutex_);
};

// Hears of a call that the policy refuses; `method` as AccessPolicy::Check has it. On any thread.
using RefusedCallObserver =
    std::function<void(std::string_view method, const absl::Status& status)>;

// `certificates` null: plain text. `policy` decides on every call. The result must outlive the
// server that uses it.
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(
    std::shared_ptr<TlsCertificates> certificates, std::shared_ptr<const AccessPolicy> policy,
    RefusedCallObserver on_refused);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_TRANSPORT_CREDENTIALS_H_
