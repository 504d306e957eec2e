// Who may call what: decided for every call before a service sees it.
#ifndef ULTRASKETCH_SERVER_ACCESS_POLICY_H_
#define ULTRASKETCH_SERVER_ACCESS_POLICY_H_

#include <memory>
#include <optional>
#include <string_view>

#include "absl/status/status.h"

#include "server/token_file.h"

namespace ultrasketch {

// Thread-safe.
class AccessPolicy {
 public:
  // `tokens` null: whoever reaches the server may call it. `admin_rpcs`: whether LoadModel and
  // UnloadModel can be called at all.
  AccessPolicy(std::shared_ptr<TokenFile> tokens, bool admin_rpcs);

  // `method` as in HTTP/2's :path, "/package.Service/Method"; `authorization` as in the metadata of
  // that name, if it was sent. Health is open to everybody, so that probes need no secret.
  // UNAUTHENTICATED without a token that the file has; PERMISSION_DENIED for an admin's call that
  // is switched off, or with a user's token.
  absl::Status Check(std::string_view method, std::optional<std::string_view> authorization) const;

  // The name that the token file gives the caller; "": none.
  std::string CallerName(std::optional<std::string_view> authorization) const;

 private:
  const std::shared_ptr<TokenFile> tokens_;
  const bool admin_rpcs_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_ACCESS_POLICY_H_
