// The models that a server hosts: names, their states, and the models that take requests.
//
// A name is LOADING until its model is there, then READY; DRAINING while the last requests of an
// unloaded model finish, after which the name is gone; FAILED, with the reason, when there is no
// model to serve it with. Loading a name that is READY replaces the model: the old one serves until
// the new one takes over, and finishes what it has begun. Both are in memory meanwhile.
#ifndef ULTRASKETCH_SERVER_MODEL_HOST_H_
#define ULTRASKETCH_SERVER_MODEL_HOST_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "engine/backends/backend.h"
#include "engine/bench/sketch_overhead.h"
#include "engine/format/checkpoint.h"
#include "engine/format/recorded_evaluation.h"
#include "engine/serving/engine_loop/engine_loop.h"
#include "server/metrics.h"
#include "server/model_repository.h"
#include "server/request_translation.h"

namespace ultrasketch {

// A loaded model. Immutable but for what its loop and its metrics do; thread-safe.
struct HostedModel : RequestModel {
  std::string name;
  std::string architecture;  // "llama"
  std::string codec;         // "dense", "fold", ...
  std::string device;        // "cpu", "cuda:0"
  int64_t num_parameters = 0;
  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;
  std::string weights_checksum;  // over all tensors, hexadecimal; empty: the files have none
  std::optional<RecordedEvaluation> evaluation;
  MemoryUsage planned_memory;   // what it holds when its KV cache is full
  int64_t kv_cache_tokens = 0;  // capacity of the KV cache
  KvCacheType kv_cache_type = KvCacheType::kFp16;

  // Of the model, as long as it is in memory.
  std::weak_ptr<Backend> backend;
  std::weak_ptr<const Checkpoint> checkpoint;

  // What its compression does to the time of its steps, once it has been measured.
  class Overhead {
   public:
    std::optional<SketchOverhead> Get() const {
      absl::MutexLock lock(&mutex_);
      return latest_;
    }
    void Set(const SketchOverhead& overhead) {
      absl::MutexLock lock(&mutex_);
      latest_ = overhead;
    }

   private:
    mutable absl::Mutex mutex_;
    std::optional<SketchOverhead> latest_ ABSL_GUARDED_BY(mutex_);
  };
  Overhead overhead;

  std::shared_ptr<ModelMetrics> metrics;
  std::unique_ptr<EngineLoop> engine_loop;  // last: its destruction ends what uses the rest
};

enum class ModelState : uint8_t { kLoading, kReady, kDraining, kFailed };

// "LOADING", "READY", "DRAINING", "FAILED".
std::string_view ModelStateName(ModelState state);

// Learns of states as they change. Called with the host's lock held: return quickly, and call
// nothing of the host.
class ModelStateObserver {
 public:
  virtual ~ModelStateObserver() = default;
  // `is_ready`: the name takes requests.
  virtual void OnModelState(const std::string& name, ModelState state, bool is_ready) = 0;
  virtual void OnModelGone(const std::string& name) = 0;
};

// Whether a model can have the name: 1 to 128 printable ASCII characters without spaces, quotes and
// backslashes, no name of a service. INVALID_ARGUMENT.
absl::Status CheckModelName(std::string_view name);

struct ModelHostOptions {
  // Loads a model: on the host's thread, one at a time. None: Load is UNIMPLEMENTED.
  std::function<absl::StatusOr<std::shared_ptr<HostedModel>>(const ModelSource&)> loader;
  // Measures a model's overhead: on the host's thread, when nothing is to be loaded. CANCELLED soon
  // after is_cancelled() has become true. None: MeasureOverhead is UNIMPLEMENTED.
  std::function<absl::StatusOr<SketchOverhead>(const HostedModel&,
                                               const std::function<bool()>& is_cancelled)>
      overhead_meter = nullptr;
  // Whether models are measured after they have been loaded.
  bool measures_loaded_models = false;
  // Where Load looks for names that it does not know; empty: nowhere.
  std::string repository;
  // How long requests of a model that is unloaded may go on.
  absl::Duration drain_patience = absl::Seconds(25);
};

// Thread-safe.
class ModelHost {
 public:
  using Done = absl::AnyInvocable<void(const absl::Status&)>;

  explicit ModelHost(ModelHostOptions options = {});
  // Drains at once, if Drain was not called.
  ~ModelHost();
  ModelHost(const ModelHost&) = delete;
  ModelHost& operator=(const ModelHost&) = delete;

  // Hosts a model that is loaded already, or replaces the one of its name. INVALID_ARGUMENT as
  // CheckModelName.
  absl::Status Add(std::shared_ptr<HostedModel> model);

  // Makes a name and its folder known; Load loads it. INVALID_ARGUMENT as CheckModelName,
  // ALREADY_EXISTS when the name is known.
  absl::Status AddSource(const ModelSource& source);

  // Loads a name that is known, or a folder of the repository; `done` is called once, here or on a
  // thread of the host's, with OK when the model takes requests, else with the reason. Calls for a
  // name that waits to be loaded share one loading. INVALID_ARGUMENT for an unusable name,
  // NOT_FOUND when there is no such folder, UNAVAILABLE when draining, or the loader's error; then
  // a model that served before serves on.
  void Load(const std::string& name, Done done);

  // Refuses requests of the name at once, lets those in flight finish, older versions' too (cancels
  // what is left when `drain_patience` is over), frees the memory and forgets the name; Load can
  // bring it back.
  // `done` as for Load. NOT_FOUND, or FAILED_PRECONDITION while the name has no model yet.
  void Unload(const std::string& name, Done done);

  using MeasureDone = absl::AnyInvocable<void(const absl::StatusOr<SketchOverhead>&)>;
  // Measures a READY model's overhead; `done` is called once, here or on the host's thread. Loading
  // comes first, and interrupts it. Errors are the meter's, NOT_FOUND, FAILED_PRECONDITION when the
  // model is not READY (any more), UNAVAILABLE when draining.
  void MeasureOverhead(const std::string& name, MeasureDone done);

  struct LoadCounts {
    int64_t num_ok = 0;
    int64_t num_failed = 0;
  };
  // Since the start.
  LoadCounts load_counts() const;

  // Whether names wait to be loaded or are being loaded.
  bool IsLoading() const;

  // The model to serve a request with. `name` empty means the only one hosted. INVALID_ARGUMENT
  // when that is ambiguous, NOT_FOUND (listing the names there are), UNAVAILABLE while loading or
  // draining or after loading failed.
  absl::StatusOr<std::shared_ptr<const HostedModel>> FindReady(std::string_view name) const;

  struct Listing {
    std::string name;
    ModelState state = ModelState::kReady;
    absl::Status error;  // why it is FAILED, or why the last attempt to replace it failed
    std::shared_ptr<const HostedModel> model;  // null: none (LOADING, FAILED)
  };

  // By name, whatever the state.
  std::vector<Listing> List() const;
  absl::StatusOr<Listing> Get(std::string_view name) const;

  // All models in memory: those listed, and those that were unloaded or replaced and still finish
  // requests.
  std::vector<std::shared_ptr<const HostedModel>> HeldModels() const;

  // Makes models FAILED whose files were cut short or cannot be read any more (Checkpoint::
  // CheckIntact), with what is wrong with them: they take no more requests, and those in flight
  // end.
  void FailDamagedModels();

  // Where a name is or would be loaded from, if it is known.
  std::optional<std::string> FolderOf(std::string_view name) const;

  // The observer hears of all that is there, and then of changes, until it is taken away by null.
  void Observe(ModelStateObserver* observer);

  // Refuses further requests and loading, waits for requests in flight until the deadline and then
  // cancels them; a model that is being loaded is thrown away when it is there. May be called again
  // from another thread, with an earlier deadline.
  void Drain(absl::Time deadline);

 private:
  struct Entry {
    ModelState state = ModelState::kLoading;
    absl::Status error;
    std::shared_ptr<HostedModel> model;
    bool waits_for_loading = false;  // a job is queued or running
    std::vector<Done> waiting;       // for that job
  };

  void LoadingThread();
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return is_draining_ || !queue_.empty() || !to_measure_.empty();
  }
  // The source of a name; looks into the repository for unknown ones.
  absl::StatusOr<ModelSource> FindSource(const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  void LoadOne(const std::string& name);
  void MeasureOne();
  void QueueMeasurement(std::shared_ptr<HostedModel> model, std::vector<MeasureDone> waiting)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Nothing of the model is measured after that and AwaitNotMeasured. Returns who waited for it.
  std::vector<MeasureDone> StopMeasuring(const HostedModel& model)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AwaitNotMeasured(const HostedModel& model) ABSL_LOCKS_EXCLUDED(mutex_);
  bool MustStopMeasuring() const ABSL_LOCKS_EXCLUDED(mutex_);
  void SetState(const std::string& name, Entry& entry, ModelState state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Lets the model's requests finish on a thread of its own, frees its memory, then calls `done`.
  // `is_replaced`: calls that have found the model still get it to serve them.
  void Retire(std::shared_ptr<HostedModel> model, bool is_replaced, Done done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsDraining() const ABSL_LOCKS_EXCLUDED(mutex_);
  void JoinRetired() ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status NotFound(std::string_view name) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  std::string Names() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const ModelHostOptions options_;

  mutable absl::Mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string, std::less<>> folders_ ABSL_GUARDED_BY(mutex_);  // by name
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mutex_);  // names to load
  // Models to measure, and who waits for it.
  struct Measurement {
    std::shared_ptr<HostedModel> model;
    std::vector<MeasureDone> waiting;
    bool is_stopped = false;  // the model is on its way out
  };
  std::deque<Measurement> to_measure_ ABSL_GUARDED_BY(mutex_);
  Measurement* measured_ ABSL_GUARDED_BY(mutex_) = nullptr;  // in progress
  LoadCounts load_counts_ ABSL_GUARDED_BY(mutex_);
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  ModelStateObserver* observer_ ABSL_GUARDED_BY(mutex_) = nullptr;

  // Models that were unloaded or replaced, until their requests have finished.
  struct Retired {
    std::shared_ptr<HostedModel> model;
    bool is_done = false;
    std::thread thread;
  };
  std::vector<std::unique_ptr<Retired>> retired_ ABSL_GUARDED_BY(mutex_);

  std::thread loading_thread_;  // last: it uses everything above
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_MODEL_HOST_H_
