// A page over plain HTTP: what reading a server's metrics needs, and no more.
#ifndef ULTRASKETCH_CLIENT_LOAD_HTTP_GET_H_
#define ULTRASKETCH_CLIENT_LOAD_HTTP_GET_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ultrasketch::client {

struct HttpUrl {
  std::string host;  // an IPv6 address without brackets
  std::string port = "80";
  std::string path;  // from its '/' on
};

// "http://HOST[:PORT][/PATH]"; without a path, "/metrics". INVALID_ARGUMENT for anything else.
absl::StatusOr<HttpUrl> ParseHttpUrl(std::string_view url);

// The body of an answer with status 200, at most 64 MiB. UNAVAILABLE when there is no such answer
// within `timeout`; redirects are not followed.
absl::StatusOr<std::string> HttpGet(const HttpUrl& url, absl::Duration timeout);

}  // namespace ultrasketch::client

#endif  // ULTRASKETCH_CLIENT_LOAD_HTTP_GET_H_
