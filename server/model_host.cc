#include "server/model_host.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "engine/base/status.h"
#include "engine/base/strings.h"
#include "server/log.h"
#include "server/status.h"

namespace ultrasketch {
namespace {

constexpr size_t kMaxNameBytes = 128;
constexpr size_t kMaxListedNames = 16;
// How often a replaced model is looked at, until nobody uses it.
constexpr absl::Duration kReplacedPolling = absl::Milliseconds(5);

absl::Status ShuttingDown() {
  return WithReason(absl::UnavailableError("the server is shutting down"), "DRAINING");
}

template <typename Callback>
void CallAll(std::vector<Callback> callbacks, const absl::Status& status) {
  for (Callback& done : callbacks) done(status);
}

absl::Status NotReady(const std::string& name, ModelState state) {
  return absl::FailedPreconditionError(
      absl::StrCat("model ", name, " is ", A(ModelStateName(state)), ": expected READY"));
}

absl::Status Unloaded(const std::string& name) {
  return absl::FailedPreconditionError(absl::StrCat("model ", name, " was unloaded or replaced"));
}

}  // namespace

absl::Status CheckModelName(std::string_view name) {
  // Health knows the services by these.
  for (const std::string_view package : {"ultrasketch.v1.", "grpc."}) {
    if (name.substr(0, package.size()) == package) {
      return InvalidField("name", absl::StrCat(Quoted(name), " is no usable name of a model: ",
                                               A(package), " begins the names of services"));
    }
  }
  if (!name.empty() && name.size() <= kMaxNameBytes &&
      std::all_of(name.begin(), name.end(), [](char c) {
        return c > ' ' && c <= '~' && c != '"' && c != '\'' && c != '\\';
      })) {
    return absl::OkStatus();
  }
  return InvalidField(
      "name",
      absl::StrCat(Quoted(name), " is no usable name of a model: expected 1 to ", kMaxNameBytes,
                   " printable ASCII characters without spaces, quotes and "
                   "backslashes"));
}

std::string_view ModelStateName(ModelState state) {
  switch (state) {
    case ModelState::kLoading:
      return "LOADING";
    case ModelState::kReady:
      return "READY";
    case ModelState::kDraining:
      return "DRAINING";
    case ModelState::kFailed:
      return "FAILED";
  }
  return "";
}

ModelHost::ModelHost(ModelHostOptions options)
    : options_(std::move(options)), loading_thread_([this] { LoadingThread(); }) {}

ModelHost::~ModelHost() {
  Drain(absl::InfinitePast());
  loading_thread_.join();
  JoinRetired();
}

absl::Status ModelHost::Add(std::shared_ptr<HostedModel> model) {
  US_RETURN_IF_ERROR(CheckModelName(model->name));
  absl::MutexLock lock(&mutex_);
  if (is_draining_) return ShuttingDown();
  Entry& entry = entries_[model->name];
  const std::string name = model->name;
  std::swap(entry.model, model);
  entry.error = absl::OkStatus();
  SetState(name, entry, ModelState::kReady);
  if (model != nullptr) Retire(std::move(model), /*is_replaced=*/true, [](const absl::Status&) {});
  return absl::OkStatus();
}

absl::Status ModelHost::AddSource(const ModelSource& source) {
  US_RETURN_IF_ERROR(CheckModelName(source.name));
  absl::MutexLock lock(&mutex_);
  const auto [known, is_new] = folders_.try_emplace(source.name, source.folder);
  if (is_new) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("a model named ", source.name,
                                               " is hosted already, from ", known->second,
                                               ": found ", source.folder, " too"));
}

absl::StatusOr<ModelSource> ModelHost::FindSource(const std::string& name) const {
  US_RETURN_IF_ERROR(CheckModelName(name));
  {
    absl::MutexLock lock(&mutex_);
    const auto known = folders_.find(name);
    if (known != folders_.end()) return ModelSource{name, known->second};
  }
  if (options_.repository.empty()) {
    return WithReason(absl::NotFoundError(absl::StrCat(
                          "model ", Quoted(name),
                          " is none of those that the server was started with, and it has no "
                          "--model-repository to look for others")),
                      "MODEL_NOT_FOUND");
  }
  auto source = FindModel(options_.repository, name);
  if (absl::IsNotFound(source.status())) return WithReason(source.status(), "MODEL_NOT_FOUND");
  return source;
}

void ModelHost::Load(const std::string& name, Done done) {
  if (options_.loader == nullptr) {
    return done(absl::UnimplementedError("this server loads no models"));
  }
  const absl::StatusOr<ModelSource> source = FindSource(name);
  if (!source.ok()) return done(source.status());
  {
    absl::MutexLock lock(&mutex_);
    if (!is_draining_) {
      folders_[name] = source->folder;
      Entry& entry = entries_[name];
      entry.waiting.push_back(std::move(done));
      if (!entry.waits_for_loading) {
        entry.waits_for_loading = true;
        queue_.push_back(name);
        if (entry.state != ModelState::kReady) SetState(name, entry, ModelState::kLoading);
      }
      return;
    }
  }
  done(ShuttingDown());
}

void ModelHost::LoadingThread() {
  while (true) {
    std::optional<std::string> name;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &ModelHost::HasWork));
      if (is_draining_) break;
      if (!queue_.empty()) {
        name = std::move(queue_.front());
        queue_.pop_front();
      }
    }
    if (name.has_value()) {
      LoadOne(*name);
    } else {
      MeasureOne();
    }
    JoinRetired();
  }
  // Whoever still waits learns why nothing came of it.
  std::vector<Done> waiting;
  std::vector<MeasureDone> measuring;
  {
    absl::MutexLock lock(&mutex_);
    queue_.clear();
    for (Measurement& measurement : to_measure_) {
      std::move(measurement.waiting.begin(), measurement.waiting.end(),
                std::back_inserter(measuring));
    }
    to_measure_.clear();
    for (auto& [name, entry] : entries_) {
      entry.waits_for_loading = false;
      std::move(entry.waiting.begin(), entry.waiting.end(), std::back_inserter(waiting));
      entry.waiting.clear();
      if (entry.model == nullptr && entry.state == ModelState::kLoading) {
        entry.error = ShuttingDown();
        SetState(name, entry, ModelState::kFailed);
      }
    }
  }
  CallAll(std::move(waiting), ShuttingDown());
  CallAll(std::move(measuring), ShuttingDown());
}

void ModelHost::MeasureOverhead(const std::string& name, MeasureDone done) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = entries_.find(name);
    if (options_.overhead_meter == nullptr) {
      status = absl::UnimplementedError("this server measures no models");
    } else if (is_draining_) {
      status = ShuttingDown();
    } else if (found == entries_.end()) {
      status = NotFound(name);
    } else if (found->second.state != ModelState::kReady) {
      status = NotReady(name, found->second.state);
    } else {
      std::vector<MeasureDone> waiting;
      waiting.push_back(std::move(done));
      QueueMeasurement(found->second.model, std::move(waiting));
      return;
    }
  }
  done(status);
}

void ModelHost::QueueMeasurement(std::shared_ptr<HostedModel> model,
                                 std::vector<MeasureDone> waiting) {
  for (Measurement& measurement : to_measure_) {
    if (measurement.model != model) continue;
    std::move(waiting.begin(), waiting.end(), std::back_inserter(measurement.waiting));
    return;
  }
  to_measure_.push_back({std::move(model), std::move(waiting)});
}

std::vector<ModelHost::MeasureDone> ModelHost::StopMeasuring(const HostedModel& model) {
  if (measured_ != nullptr && measured_->model.get() == &model) measured_->is_stopped = true;
  std::vector<MeasureDone> waiting;
  for (Measurement& measurement : to_measure_) {
    if (measurement.model.get() == &model) waiting = std::move(measurement.waiting);
  }
  std::erase_if(to_measure_, [&model](const Measurement& measurement) {
    return measurement.model.get() == &model;
  });
  return waiting;
}

void ModelHost::AwaitNotMeasured(const HostedModel& model) {
  absl::MutexLock lock(&mutex_);
  const auto is_free = [this, &model]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return measured_ == nullptr || measured_->model.get() != &model;
  };
  mutex_.Await(absl::Condition(&is_free));
}

bool ModelHost::MustStopMeasuring() const {
  absl::MutexLock lock(&mutex_);
  return is_draining_ || !queue_.empty() || (measured_ != nullptr && measured_->is_stopped);
}

void ModelHost::MeasureOne() {
  Measurement measurement;
  {
    absl::MutexLock lock(&mutex_);
    if (to_measure_.empty()) return;  // the model has gone meanwhile
    measurement = std::move(to_measure_.front());
    to_measure_.pop_front();
    measured_ = &measurement;
  }
  absl::StatusOr<SketchOverhead> overhead =
      options_.overhead_meter(*measurement.model, [this] { return MustStopMeasuring(); });
  {
    absl::MutexLock lock(&mutex_);
    measured_ = nullptr;
    if (measurement.is_stopped) {
      overhead = Unloaded(measurement.model->name);
    } else if (is_draining_) {
      overhead = ShuttingDown();
    } else if (absl::IsCancelled(overhead.status())) {
      to_measure_.push_front(std::move(measurement));  // when what is in the queue has been loaded
      return;
    }
  }
  if (overhead.ok()) measurement.model->overhead.Set(*overhead);
  for (MeasureDone& done : measurement.waiting) done(overhead);
}

void ModelHost::LoadOne(const std::string& name) {
  ModelSource source;
  {
    absl::MutexLock lock(&mutex_);
    source = {name, folders_.find(name)->second};
  }
  absl::StatusOr<std::shared_ptr<HostedModel>> loaded = options_.loader(source);
  std::vector<Done> waiting;
  absl::Status status = loaded.status();
  {
    absl::MutexLock lock(&mutex_);
    Entry& entry = entries_[name];
    entry.waits_for_loading = false;
    waiting = std::exchange(entry.waiting, {});
    if (loaded.ok() && is_draining_) {
      status = ShuttingDown();
      loaded->reset();  // it has no requests
    }
    entry.error = status;
    ++(status.ok() ? load_counts_.num_ok : load_counts_.num_failed);
    if (status.ok()) {
      std::shared_ptr<HostedModel> old = std::exchange(entry.model, *std::move(loaded));
      SetState(name, entry, ModelState::kReady);
      if (options_.measures_loaded_models && entry.model->codec != "dense") {
        QueueMeasurement(entry.model, {});
      }
      if (old != nullptr) Retire(std::move(old), /*is_replaced=*/true, [](const absl::Status&) {});
    } else if (entry.state != ModelState::kReady && !is_draining_) {
      SetState(name, entry, ModelState::kFailed);
    }
  }
  CallAll(std::move(waiting), status);
}

void ModelHost::Unload(const std::string& name, Done done) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = entries_.find(name);
    if (found == entries_.end()) {
      status = NotFound(name);
    } else if (is_draining_) {
      status = ShuttingDown();
    } else if (Entry& entry = found->second; entry.waits_for_loading) {
      status = absl::FailedPreconditionError(
          absl::StrCat("model ", name, " is being loaded: unload it when it is there"));
    } else if (entry.state == ModelState::kDraining) {
      status =
          absl::FailedPreconditionError(absl::StrCat("model ", name, " is being unloaded already"));
    } else if (entry.model == nullptr) {
      entries_.erase(found);
      if (observer_ != nullptr) observer_->OnModelGone(name);
    } else {
      SetState(name, entry, ModelState::kDraining);
      return Retire(entry.model, /*is_replaced=*/false, std::move(done));
    }
  }
  done(status);
}

bool ModelHost::IsDraining() const {
  absl::MutexLock lock(&mutex_);
  return is_draining_;
}

void ModelHost::Retire(std::shared_ptr<HostedModel> model, bool is_replaced, Done done) {
  retired_.push_back(std::make_unique<Retired>());
  Retired& retired = *retired_.back();
  retired.model = model;
  std::vector<MeasureDone> measuring = StopMeasuring(*model);
  // A replaced model takes the time that its requests take: nobody has asked them to end.
  const absl::Time deadline =
      is_replaced ? absl::InfiniteFuture()
                  : std::min(absl::Now() + options_.drain_patience, drain_deadline_);
  std::vector<std::shared_ptr<HostedModel>> older;  // versions of an unloaded model
  if (!is_replaced) {
    for (const auto& other : retired_) {
      if (other->model != nullptr && other.get() != &retired && other->model->name == model->name) {
        older.push_back(other->model);
      }
    }
  }
  retired.thread = std::thread([this, &retired, model = std::move(model), older = std::move(older),
                                measuring = std::move(measuring), is_replaced, deadline,
                                done = std::move(done)]() mutable {
    CallAll(std::move(measuring), Unloaded(model->name));
    // A call that found the old model just before it was replaced may be about to submit its
    // request. Nobody can find it any more, so that its holders only grow fewer.
    while (is_replaced && model.use_count() > 2 && absl::Now() < deadline && !IsDraining()) {
      absl::SleepFor(kReplacedPolling);
    }
    for (auto& version : older) {
      version->engine_loop->Drain(deadline);
      version->engine_loop->Stop();
      version = nullptr;
    }
    model->engine_loop->Drain(deadline);
    // Calls whose clients have yet to read their answers may hold the model for long: what is
    // large goes now.
    model->engine_loop->Stop();
    AwaitNotMeasured(*model);
    {
      absl::MutexLock lock(&mutex_);
      const auto found = entries_.find(model->name);
      if (found != entries_.end() && found->second.model == model) {
        if (found->second.waits_for_loading) {  // asked for again meanwhile
          found->second.model = nullptr;
          SetState(found->first, found->second, ModelState::kLoading);
        } else {
          const std::string name = found->first;
          entries_.erase(found);
          if (observer_ != nullptr) observer_->OnModelGone(name);
        }
      }
      retired.model = nullptr;
    }
    model = nullptr;
    done(absl::OkStatus());
    absl::MutexLock lock(&mutex_);
    retired.is_done = true;
  });
}

void ModelHost::JoinRetired() {
  std::vector<std::unique_ptr<Retired>> done;
  {
    absl::MutexLock lock(&mutex_);
    const auto first_done = std::partition(retired_.begin(), retired_.end(),
                                           [this](const std::unique_ptr<Retired>& retired) {
                                             return !is_draining_ && !retired->is_done;
                                           });
    std::move(first_done, retired_.end(), std::back_inserter(done));
    retired_.erase(first_done, retired_.end());
  }
  for (const std::unique_ptr<Retired>& retired : done) retired->thread.join();
}

void ModelHost::SetState(const std::string& name, Entry& entry, ModelState state) {
  entry.state = state;
  if (observer_ != nullptr) observer_->OnModelState(name, state, state == ModelState::kReady);
}

void ModelHost::FailDamagedModels() {
  absl::MutexLock lock(&mutex_);
  if (is_draining_) return;
  for (auto& [name, entry] : entries_) {
    if (entry.state != ModelState::kReady) continue;
    const auto checkpoint = entry.model->checkpoint.lock();
    if (checkpoint == nullptr) continue;
    const absl::Status status = checkpoint->CheckIntact();
    if (status.ok()) continue;
    LogEvent(LogLevel::kError, "model_failed", {{"model", name}, {"error", status.ToString()}});
    entry.error = status;
    SetState(name, entry, entry.waits_for_loading ? ModelState::kLoading : ModelState::kFailed);
    // Its steps fail, and so its requests end by themselves.
    Retire(std::exchange(entry.model, nullptr), /*is_replaced=*/true, [](const absl::Status&) {});
  }
}

ModelHost::LoadCounts ModelHost::load_counts() const {
  absl::MutexLock lock(&mutex_);
  return load_counts_;
}

bool ModelHost::IsLoading() const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(entries_.begin(), entries_.end(),
                     [](const auto& entry) { return entry.second.waits_for_loading; });
}

absl::StatusOr<std::shared_ptr<const HostedModel>> ModelHost::FindReady(
    std::string_view name) const {
  absl::MutexLock lock(&mutex_);
  auto found = name.empty() ? entries_.begin() : entries_.find(name);
  if (name.empty() && entries_.size() > 1) {
    // Those that could not be loaded do not count.
    const auto is_hosted = [](const auto& entry) {
      return entry.second.state != ModelState::kFailed;
    };
    if (std::count_if(entries_.begin(), entries_.end(), is_hosted) != 1) {
      return InvalidField("model",
                          absl::StrCat("required, because the server hosts several: ", Names()));
    }
    found = std::find_if(entries_.begin(), entries_.end(), is_hosted);
  }
  if (found == entries_.end()) return NotFound(name);
  const auto& [found_name, entry] = *found;
  switch (entry.state) {
    case ModelState::kReady:
      return entry.model;
    case ModelState::kLoading:
      return WithReason(
          absl::UnavailableError(absl::StrCat("model ", found_name, " is being loaded")),
          "LOADING");
    case ModelState::kDraining:
      return WithReason(
          absl::UnavailableError(absl::StrCat("model ", found_name, " is shutting down")),
          "DRAINING");
    case ModelState::kFailed:
      break;
  }
  return WithReason(absl::UnavailableError(absl::StrCat(
                        "model ", found_name, " could not be loaded: ", entry.error.message())),
                    "FAILED");
}

std::vector<ModelHost::Listing> ModelHost::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<Listing> listings;
  for (const auto& [name, entry] : entries_) {
    listings.push_back({name, entry.state, entry.error, entry.model});
  }
  return listings;
}

absl::StatusOr<ModelHost::Listing> ModelHost::Get(std::string_view name) const {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end()) return NotFound(name);
  return Listing{found->first, found->second.state, found->second.error, found->second.model};
}

void ModelHost::Observe(ModelStateObserver* observer) {
  absl::MutexLock lock(&mutex_);
  observer_ = observer;
  if (observer == nullptr) return;
  for (const auto& [name, entry] : entries_) {
    observer->OnModelState(name, entry.state, entry.state == ModelState::kReady);
  }
}

std::vector<std::shared_ptr<const HostedModel>> ModelHost::HeldModels() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const HostedModel>> models;
  for (const auto& [name, entry] : entries_) {
    if (entry.model != nullptr) models.push_back(entry.model);
  }
  for (const auto& retired : retired_) {
    if (retired->model == nullptr) continue;
    if (std::find(models.begin(), models.end(), retired->model) == models.end()) {
      models.push_back(retired->model);
    }
  }
  return models;
}

std::optional<std::string> ModelHost::FolderOf(std::string_view name) const {
  absl::MutexLock lock(&mutex_);
  const auto known = folders_.find(name);
  if (known == folders_.end()) return std::nullopt;
  return known->second;
}

void ModelHost::Drain(absl::Time deadline) {
  std::vector<std::shared_ptr<HostedModel>> models;
  std::vector<Done> waiting;
  {
    absl::MutexLock lock(&mutex_);
    is_draining_ = true;
    drain_deadline_ = std::min(drain_deadline_, deadline);
    for (auto& [name, entry] : entries_) {
      // Whoever waits for a model that is being loaded would wait as long as that takes.
      std::move(entry.waiting.begin(), entry.waiting.end(), std::back_inserter(waiting));
      entry.waiting.clear();
      if (entry.model == nullptr) continue;
      if (entry.state != ModelState::kDraining) SetState(name, entry, ModelState::kDraining);
      models.push_back(entry.model);
    }
    for (const auto& retired : retired_) {
      if (retired->model != nullptr) models.push_back(retired->model);
    }
  }
  CallAll(std::move(waiting), ShuttingDown());
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
      absl::NotFoundError(entries_.empty() ? what : absl::StrCat(what, "; hosted are: ", Names())),
      "MODEL_NOT_FOUND");
}

std::string ModelHost::Names() const {
  std::string names;
  size_t num_listed = 0;
  for (const auto& [name, entry] : entries_) {
    if (num_listed == kMaxListedNames) {
      absl::StrAppend(&names, " and ", entries_.size() - num_listed, " more");
      break;
    }
    absl::StrAppend(&names, num_listed == 0 ? "" : ", ", name);
    ++num_listed;
  }
  return names;
}

}  // namespace ultrasketch
