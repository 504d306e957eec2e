#include "server/collector.h"

#include <algorithm>
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

  MetricFamily states = NewFamily(MetricType::Gauge, "ultrasketch_model_state",
                                  "1 for the state that a model is in, 0 for the others.");
  MetricFamily loads = NewFamily(MetricType::Counter, "ultrasketch_model_loads_total",
                                 "Attempts to load a model, by result.");
  const ModelHost::LoadCounts counts = host_.load_counts();
  AddValue(loads, {{"result", "ok"}}, static_cast<double>(counts.num_ok));
  AddValue(loads, {{"result", "failed"}}, static_cast<double>(counts.num_failed));

  const ProcessStats process = ReadProcessStats();
  std::set<std::string> devices;
  int64_t other_bytes = process.resident_bytes;
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

    const MemoryUsage usage = model.engine_loop->memory_usage();
    AddValue(memory, labels({{"kind", "weights"}}), static_cast<double>(usage.weights));
    AddValue(memory, labels({{"kind", "embedding"}}), static_cast<double>(usage.embedding));
    AddValue(memory, labels({{"kind", "kv_cache"}}), static_cast<double>(usage.kv_cache));
    AddValue(memory, labels({{"kind", "workspace"}}), static_cast<double>(usage.workspace));
    if (model.device == "cpu") other_bytes -= usage.total();

    AddValue(bytes_per_weight, labels({{"scope", "linear"}}), model.bits_per_weight_linear / 8);
    AddValue(bytes_per_weight, labels({{"scope", "file"}}), model.bits_per_weight_file / 8);
    if (model.num_parameters > 0) {
      const double resident_bytes = static_cast<double>(usage.weights + usage.embedding);
      AddValue(bytes_per_weight, labels({{"scope", "resident"}}),
               resident_bytes / static_cast<double>(model.num_parameters));
    }
  }
  AddValue(memory, {{"model", ""}, {"kind", "other"}},
           static_cast<double>(std::max<int64_t>(other_bytes, 0)));

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
  CollectProcess(process, families);
  return families;
}

}  // namespace ultrasketch
