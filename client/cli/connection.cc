#include "client/cli/connection.h"

#include <cstdint>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"

#include "client/cli/input.h"
#include "engine/base/status.h"
#include "engine/base/strings.h"

namespace ultrasketch::cli {
namespace {

constexpr int64_t kMaxTokenFileBytes = int64_t{1} << 24;

}  // namespace

CLI::Option* Connection::Declare(CLI::App& app, const std::string& target_description) {
  CLI::Option* const target =
      app.add_option("--target", target_, target_description)->type_name("HOST:PORT");
  const char* group = "Connection";
  app.add_flag("--tls", tls_, "Use TLS; the other --tls options imply it")->group(group);
  app.add_option("--tls-ca", tls_ca_,
                 "Roots that the server's certificate must come from (PEM); the system's when left "
                 "out")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--tls-cert", tls_certificate_, "The client's certificate, for mutual TLS (PEM)")
      ->type_name("FILE")
      ->group(group);
  app.add_option("--tls-key", tls_key_, "Its private key (PEM)")->type_name("FILE")->group(group);
  app.add_option("--tls-server-name", tls_server_name_,
                 "The name that the server's certificate must have, when it is not the target's")
      ->type_name("NAME")
      ->group(group);
  app.add_option("--token-file", token_file_,
                 "Send the token in this file; that of ULTRASKETCH_TOKEN in the environment when "
                 "left out")
      ->type_name("FILE")
      ->group(group);
  app.add_flag("--insecure", insecure_, "Send the token in plain text to another machine")
      ->group(group);
  return target;
}

std::string Connection::UsageError() const {
  if (tls_certificate_.empty() != tls_key_.empty()) {
    return "--tls-cert and --tls-key come together";
  }
  return "";
}

absl::StatusOr<client::ChannelOptions> Connection::ReadOptions(const std::stop_token& stop) const {
  client::ChannelOptions options;
  if (tls_ || !tls_ca_.empty() || !tls_certificate_.empty() || !tls_server_name_.empty()) {
    client::TlsOptions& tls = options.tls.emplace();
    if (!tls_ca_.empty()) {
      US_ASSIGN_OR_RETURN(tls.ca, ReadInput(tls_ca_, stop));
    }
    if (!tls_certificate_.empty()) {
      US_ASSIGN_OR_RETURN(tls.certificate, ReadInput(tls_certificate_, stop));
      US_ASSIGN_OR_RETURN(tls.key, ReadInput(tls_key_, stop));
    }
    tls.server_name = tls_server_name_;
  }
  if (!token_file_.empty()) {
    US_ASSIGN_OR_RETURN(const std::string text, ReadInput(token_file_, stop, kMaxTokenFileBytes));
    auto token = ParseTokenFile(text);
    if (!token.ok()) return Annotate(token.status(), token_file_);
    options.token = *std::move(token);
  } else if (const char* token = std::getenv("ULTRASKETCH_TOKEN"); token != nullptr) {
    options.token = std::string(absl::StripAsciiWhitespace(token));
    US_RETURN_IF_ERROR(Annotate(client::CheckToken(options.token), "ULTRASKETCH_TOKEN"));
  }
  options.insecure_token = insecure_;
  return options;
}

absl::StatusOr<std::unique_ptr<client::Client>> Connection::Connect(
    const std::stop_token& stop) const {
  US_ASSIGN_OR_RETURN(const client::ChannelOptions options, ReadOptions(stop));
  return client::Client::Create(target_, options);
}

absl::StatusOr<std::string> ParseTokenFile(std::string_view text) {
  for (absl::string_view line : absl::StrSplit(A(text), '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const absl::string_view token = line.substr(line.rfind(':') + 1);  // npos + 1 is 0
    US_RETURN_IF_ERROR(client::CheckToken(S(token)));
    if (!token.empty()) return std::string(token);
  }
  return absl::InvalidArgumentError("expected a token, found none");
}

}  // namespace ultrasketch::cli
