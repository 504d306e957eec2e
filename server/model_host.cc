#include "server/model_host.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/strings.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

constexpr size_t kMaxNameBytes = 128;
constexpr size_t kMaxListedNames = 16;

bool IsUsableName(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return c > ' ' && c <= '~' && c != '"' && c != '\'' && c != '\\';
  });
}

}  // namespace

absl::Status ModelHost::Add(std::shared_ptr<HostedModel> model) {
  if (!IsUsableName(model->name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        Quoted(model->name), " is no usable name of a model: expected 1 to ", kMaxNameBytes,
        " printable ASCII characters without spaces, quotes and backslashes"));
  }
  absl::MutexLock lock(&mutex_);
  const std::string name = model->name;
  if (!models_.try_emplace(name, Listing{std::move(model), ModelState::kReady}).second) {
    return absl::AlreadyExistsError(absl::StrCat("a model named ", name, " is hosted already"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const HostedModel>> ModelHost::FindReady(
    std::string_view name) const {
  absl::MutexLock lock(&mutex_);
  if (name.empty() && models_.size() > 1) {
    return InvalidField("model",
                        absl::StrCat("required, because the server hosts several: ", Names()));
  }
  const auto found = name.empty() ? models_.begin() : models_.find(name);
  if (found == models_.end()) return NotFound(name);
  const Listing& listing = found->second;
  if (listing.state != ModelState::kReady) {
    return WithReason(
        absl::UnavailableError(absl::StrCat("model ", listing.model->name, " is shutting down")),
        "DRAINING");
  }
  return listing.model;
}

std::vector<ModelHost::Listing> ModelHost::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<Listing> listings;
  for (const auto& [name, listing] : models_) listings.push_back(listing);
  return listings;
}

absl::StatusOr<ModelHost::Listing> ModelHost::Get(std::string_view name) const {
  absl::MutexLock lock(&mutex_);
  const auto found = models_.find(name);
  if (found == models_.end()) return NotFound(name);
  return found->second;
}

void ModelHost::Drain(absl::Time deadline) {
  std::vector<std::shared_ptr<const HostedModel>> models;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [name, listing] : models_) {
      listing.state = ModelState::kDraining;
      models.push_back(listing.model);
    }
  }
  // Together: a loop that is waited for must not keep the next from refusing and finishing.
  std::vector<std::thread> threads;
  threads.reserve(models.size());
  for (const auto& model : models) {
    threads.emplace_back([&model, deadline] { model->engine_loop->Drain(deadline); });
  }
  for (std::thread& thread : threads) thread.join();
}

absl::Status ModelHost::NotFound(std::string_view name) const {
  const std::string what =
      name.empty() ? "no model is hosted" : absl::StrCat("model ", Quoted(name), " is not hosted");
  return WithReason(
      absl::NotFoundError(models_.empty() ? what : absl::StrCat(what, "; hosted are: ", Names())),
      "MODEL_NOT_FOUND");
}

std::string ModelHost::Names() const {
  std::string names;
  size_t num_listed = 0;
  for (const auto& [name, listing] : models_) {
    if (num_listed == kMaxListedNames) {
      absl::StrAppend(&names, " and ", models_.size() - num_listed, " more");
      break;
    }
    absl::StrAppend(&names, num_listed == 0 ? "" : ", ", name);
    ++num_listed;
  }
  return names;
}

}  // namespace ultrasketch
