#include "engine/bench/kernel_bench.h"

#include <dlfcn.h>

#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"
#include "engine/bench/cuda/kernel_bench_cuda.h"
#include "engine/bench/model_presets.h"
#include "engine/format/model_config.h"
#include "engine/models/layer_table.h"

namespace ultrasketch {

absl::StatusOr<std::vector<KernelShape>> PresetShapes(std::string_view preset) {
  US_ASSIGN_OR_RETURN(const nlohmann::ordered_json json, PresetConfig(preset));
  US_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(nlohmann::json(json), "preset"));
  std::vector<KernelShape> shapes;
  for (const LinearSite& site : LinearSites(config)) {
    if (site.layer != 0) break;
    shapes.push_back({site.name.substr(site.name.rfind('.') + 1), site.rows, site.cols});
  }
  return shapes;
}

absl::StatusOr<KernelBenchResult> MeasureCudaKernels(int ordinal,
                                                     const KernelBenchOptions& options) {
  US_RETURN_IF_ERROR(ProbeCudaDevice(ordinal));
  US_ASSIGN_OR_RETURN(void* const plugin, OpenCudaPlugin(kCudaBenchFile, US_CUDA_BENCH_VERSION));
  const auto measure =
      reinterpret_cast<CudaBenchKernelsFunction>(dlsym(plugin, kCudaBenchKernelsSymbol));
  if (measure == nullptr) return absl::UnavailableError("the CUDA plug-in measures no kernels");
  absl::StatusOr<KernelBenchResult> result = absl::InternalError("not measured");
  measure(ordinal, options, &result);
  return result;
}

}  // namespace ultrasketch
