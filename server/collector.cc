#include "server/collector.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_join.h"

#include "server/process_stats.h"

namespace ultrasketch {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

using Labels = std::vector<prometheus::ClientMetric::Label>;

#if defined(__clang__)
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "gcc " __VERSION__;
#endif

MetricFamily NewFamily(MetricType type, const char* name, const char* help) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void AddValue(MetricFamily& family, Labels labels, double value) {
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  metric.label = std::move(labels);
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
}

MetricFamily SingleValue(MetricType type, const char* name, const char* help, double value) {
  MetricFamily family = NewFamily(type, name, help);
  AddValue(family, {}, value);
  return family;
}

void CollectProcess(const ProcessStats& stats, std::vector<MetricFamily>& families) {
  const auto add = [&families](MetricType type, const char* name, const char* help, double value) {
    families.push_back(SingleValue(type, name, help, value));
  };
  add(MetricType::Gauge, "process_resident_memory_bytes", "Resident memory size in bytes.",
      static_cast<double>(stats.resident_bytes));
  add(MetricType::Gauge, "process_virtual_memory_bytes", "Virtual memory size in bytes.",
      static_cast<double>(stats.virtual_bytes));
  add(MetricType::Counter, "process_cpu_seconds_total",
      "Total user and system CPU time spent in seconds.", stats.cpu_seconds);
  add(MetricType::Gauge, "process_start_time_seconds",
      "Start time of the process since unix epoch in seconds.", stats.start_time_seconds);
  add(MetricType::Gauge, "process_open_fds", "Number of open file descriptors.",
      static_cast<double>(stats.num_open_files));
  add(MetricType::Gauge, "process_max_fds", "Maximum number of open file descriptors.",
      static_cast<double>(stats.max_open_files));
  add(MetricType::Gauge, "process_threads", "Number of threads.",
      static_cast<double>(stats.num_threads));
}

// What the models of a device hold.
struct DeviceMemory {
  std::map<std::string, MemoryUsage> models;  // by name; the workspace is left out
  int64_t workspace = 0;                      // of all of them
  int64_t used = 0;                           // of the device
};

// Also models that were unloaded or replaced and still finish requests.
std::map<std::string, DeviceMemory> MeasureDevices(const ModelHost& host) {
  std::map<std::string, DeviceMemory> devices;
  devices["cpu"];  // the process, whether or not a model is on it
  for (const std::shared_ptr<const HostedModel>& model : host.HeldModels()) {
    DeviceMemory& device = devices[model->device];
    const MemoryUsage usage = model->engine_loop->memory_usage();
    MemoryUsage& sum = device.models[model->name];
    sum.weights += usage.weights;
    sum.embedding += usage.embedding;
    sum.kv_cache += usage.kv_cache;
    device.workspace = std::max(device.workspace, usage.workspace);
    if (const auto backend = model->backend.lock()) device.used = backend->used_bytes();
  }
  return devices;
}

// Returns what it has read of the process: after the models' memory, so that none of it is missing.
ProcessStats CollectMemory(const ModelHost& host, MetricFamily& memory) {
  std::map<std::string, DeviceMemory> devices = MeasureDevices(host);
  const ProcessStats process = ReadProcessStats();
  devices["cpu"].used = process.resident_bytes;
  for (const auto& [name, device] : devices) {
    int64_t known = device.workspace;
    const auto add = [&memory, device_name = name](const std::string& model, const char* kind,
                                                   int64_t bytes) {
      AddValue(memory, {{"model", model}, {"device", device_name}, {"kind", kind}},
               static_cast<double>(bytes));
    };
    for (const auto& [model, usage] : device.models) {
      add(model, "weights", usage.weights);
      add(model, "embedding", usage.embedding);
      add(model, "kv_cache", usage.kv_cache);
      known += usage.total();
    }
    add("", "workspace", device.workspace);
    add("", "other", std::max<int64_t>(device.used - known, 0));
  }
  return process;
}

}  // namespace

std::vector<MetricFamily> StateCollector::Collect() const {
  MetricFamily running = NewFamily(MetricType::Gauge, "ultrasketch_requests_running",
                                   "Requests that the engine computes.");
  MetricFamily waiting = NewFamily(MetricType::Gauge, "ultrasketch_requests_waiting",
                                   "Requests that wait for their first step.");
  MetricFamily waiting_tokens =
      NewFamily(MetricType::Gauge, "ultrasketch_tokens_waiting",
                "Tokens of prompts that wait for their first step, for each completion.");
  MetricFamily kv_blocks =
      NewFamily(MetricType::Gauge, "ultrasketch_kv_blocks",
                "Blocks of the KV cache, by state; cached ones are free and keep a prefix.");
  MetricFamily preemptions =
      NewFamily(MetricType::Counter, "ultrasketch_preemptions_total",
                "Sequences that lost their KV blocks to others and were computed again.");
  MetricFamily prefix_cache =
      NewFamily(MetricType::Counter, "ultrasketch_prefix_cache_tokens_total",
                "Tokens of prompts that the prefix cache was asked for, by result.");
  MetricFamily memory =
      NewFamily(MetricType::Gauge, "ultrasketch_memory_bytes", "Memory held, by what for.");
  MetricFamily bytes_per_weight =
      NewFamily(MetricType::Gauge, "ultrasketch_bytes_per_weight",
                "Bytes over number of weights: of the linear layers in the file, of all files, and "
                "of all weights in memory. Times 8: bits per weight.");

  MetricFamily overhead =
      NewFamily(MetricType::Gauge, "ultrasketch_sketch_overhead_ratio",
                "Time of a step of the compressed model over that of the same step with "
                "uncompressed layers, as last measured; below 1 it is faster.");
  MetricFamily states = NewFamily(MetricType::Gauge, "ultrasketch_model_state",
                                  "1 for the state that a model is in, 0 for the others.");
  MetricFamily loads = NewFamily(MetricType::Counter, "ultrasketch_model_loads_total",
                                 "Attempts to load a model, by result.");
  const ModelHost::LoadCounts counts = host_.load_counts();
  AddValue(loads, {{"result", "ok"}}, static_cast<double>(counts.num_ok));
  AddValue(loads, {{"result", "failed"}}, static_cast<double>(counts.num_failed));

  std::set<std::string> devices;
  for (const ModelHost::Listing& listing : host_.List()) {
    for (const ModelState state :
         {ModelState::kLoading, ModelState::kReady, ModelState::kDraining, ModelState::kFailed}) {
      AddValue(states, {{"model", listing.name}, {"state", std::string(ModelStateName(state))}},
               listing.state == state ? 1 : 0);
    }
    if (listing.model == nullptr) continue;
    const HostedModel& model = *listing.model;
    const auto labels = [&model](Labels more = {}) {
      more.insert(more.begin(), {"model", model.name});
      return more;
    };
    devices.insert(model.device);
    const EngineLoopStats stats = model.engine_loop->stats();
    AddValue(running, labels(), stats.num_running);
    AddValue(waiting, labels(), stats.num_waiting);
    AddValue(waiting_tokens, labels(), static_cast<double>(stats.num_waiting_tokens));
    AddValue(kv_blocks, labels({{"state", "free"}}),
             static_cast<double>(stats.kv_blocks_free - stats.kv_blocks_cached));
    AddValue(kv_blocks, labels({{"state", "cached"}}), static_cast<double>(stats.kv_blocks_cached));
    AddValue(kv_blocks, labels({{"state", "used"}}), static_cast<double>(stats.kv_blocks_used));
    AddValue(preemptions, labels(), static_cast<double>(stats.num_preemptions));
    AddValue(prefix_cache, labels({{"result", "hit"}}),
             static_cast<double>(stats.prefix_cache_hit_tokens));
    AddValue(prefix_cache, labels({{"result", "miss"}}),
             static_cast<double>(stats.prefix_cache_miss_tokens));

    if (const std::optional<SketchOverhead> measured = model.overhead.Get()) {
      AddValue(overhead, labels({{"phase", "prefill"}}), measured->prefill);
      AddValue(overhead, labels({{"phase", "decode"}}), measured->decode);
    }
    AddValue(bytes_per_weight, labels({{"scope", "linear"}}), model.bits_per_weight_linear / 8);
    AddValue(bytes_per_weight, labels({{"scope", "file"}}), model.bits_per_weight_file / 8);
    if (model.num_parameters > 0) {
      const MemoryUsage usage = model.engine_loop->memory_usage();
      const double resident_bytes = static_cast<double>(usage.weights + usage.embedding);
      AddValue(bytes_per_weight, labels({{"scope", "resident"}}),
               resident_bytes / static_cast<double>(model.num_parameters));
    }
  }
  const ProcessStats process = CollectMemory(host_, memory);

  MetricFamily build_info = NewFamily(MetricType::Gauge, "ultrasketch_build_info",
                                      "Always 1: the labels say what runs, and on what.");
  AddValue(build_info,
           {{"version", ULTRASKETCH_VERSION},
            {"compiler", kCompiler},
            {"backend", absl::StrJoin(devices, ",")}},
           1);

  std::vector<MetricFamily> families = {build_info,       running,     waiting,      waiting_tokens,
                                        kv_blocks,        preemptions, prefix_cache, memory,
                                        bytes_per_weight, states,      loads};
  if (!overhead.metric.empty()) families.push_back(std::move(overhead));
  CollectProcess(process, families);
  return families;
}

}  // namespace ultrasketch
