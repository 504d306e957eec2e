#include "server/access_policy.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "engine/base/strings.h"

namespace ultrasketch {
namespace {

constexpr absl::string_view kHealthPrefix = "/grpc.health.v1.Health/";

bool IsAdminMethod(std::string_view method) {
  for (const std::string_view admin_method :
       {"/ultrasketch.v1.ModelService/LoadModel", "/ultrasketch.v1.ModelService/UnloadModel",
        "/ultrasketch.v1.ModelService/MeasureOverhead",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload"}) {
    if (method == admin_method) return true;
  }
  return false;
}

// The scheme's name is case-insensitive (RFC 9110, 11.1). nullopt: no bearer token.
std::optional<std::string_view> BearerToken(std::string_view authorization) {
  constexpr size_t kSchemeBytes = 7;
  if (!absl::EqualsIgnoreCase(A(authorization.substr(0, kSchemeBytes)), "Bearer ")) {
    return std::nullopt;
  }
  absl::string_view token = A(authorization.substr(kSchemeBytes));
  while (absl::ConsumePrefix(&token, " ")) {
  }
  return S(token);
}

}  // namespace

AccessPolicy::AccessPolicy(std::shared_ptr<TokenFile> tokens, bool admin_rpcs)
    : tokens_(std::move(tokens)), admin_rpcs_(admin_rpcs) {}

absl::Status AccessPolicy::Check(std::string_view method,
                                 std::optional<std::string_view> authorization) const {
  if (absl::StartsWith(A(method), kHealthPrefix)) return absl::OkStatus();
  Role role = Role::kAdmin;
  if (tokens_ != nullptr) {
    if (!authorization.has_value()) {
      return absl::UnauthenticatedError(
          "a token is required: metadata 'authorization: Bearer TOKEN'");
    }
    const auto token = BearerToken(*authorization);
    if (!token.has_value()) {
      return absl::UnauthenticatedError(
          "authorization: expected 'Bearer TOKEN', found another scheme");
    }
    const auto owner = tokens_->Find(*token);
    if (!owner.has_value()) {
      return absl::UnauthenticatedError("authorization: the server does not know this token");
    }
    role = owner->role;
  }
  if (!IsAdminMethod(method)) return absl::OkStatus();
  const std::string_view name = method.substr(method.rfind('/') + 1);
  if (!admin_rpcs_) {
    return absl::PermissionDeniedError(
        absl::StrCat(A(name), " is switched off on this server (--admin-rpcs)"));
  }
  if (role != Role::kAdmin) {
    return absl::PermissionDeniedError(
        absl::StrCat(A(name), " needs a token of role admin, and this one's is user"));
  }
  return absl::OkStatus();
}

std::string AccessPolicy::CallerName(std::optional<std::string_view> authorization) const {
  if (tokens_ == nullptr || !authorization.has_value()) return "";
  const auto token = BearerToken(*authorization);
  if (!token.has_value()) return "";
  const auto owner = tokens_->Find(*token);
  return owner.has_value() ? owner->name : "";
}

}  // namespace ultrasketch
