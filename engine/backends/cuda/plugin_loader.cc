#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"

#include "engine/backends/cuda/cuda_plugin.h"
#include "engine/base/status.h"

namespace ultrasketch {
namespace {

absl::Status NoDevice(int ordinal, std::string_view reason) {
  return absl::UnavailableError(absl::StrCat("no CUDA device ", ordinal, ": ", A(reason)));
}

std::string LinkerError() {
  const char* message = dlerror();
  return message != nullptr ? message : "unknown error";
}

// The few functions of the driver's interface that a probe needs; their types are those of cuda.h.
class Driver {
 public:
  using Result = int;

  absl::Status Load(int ordinal) {
    library_ = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) return NoDevice(ordinal, LinkerError());
    const bool complete = Find("cuInit", init) && Find("cuDeviceGetCount", device_get_count) &&
                          Find("cuGetErrorString", get_error_string);
    return complete ? absl::OkStatus() : NoDevice(ordinal, LinkerError());
  }

  std::string Describe(Result result) const {
    const char* text = nullptr;
    get_error_string(result, &text);
    return text != nullptr ? text : absl::StrCat("error ", result);
  }

  Result (*init)(unsigned flags) = nullptr;
  Result (*device_get_count)(int* count) = nullptr;
  Result (*get_error_string)(Result error, const char** text) = nullptr;

 private:
  template <typename Function>
  bool Find(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    return function != nullptr;
  }

  // Stays loaded: the plug-in uses it.
  void* library_ = nullptr;
};

struct Plugin {
  absl::Status status;
  CudaPluginCreateFunction create = nullptr;
};

Plugin LoadPlugin() {
  Plugin plugin;
  std::error_code error;
  const std::filesystem::path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) {
    plugin.status = absl::UnavailableError(
        absl::StrCat("cannot tell the executable's folder: ", error.message()));
    return plugin;
  }
  const std::string path = (executable.parent_path() / kCudaPluginFile).string();
  if (!std::filesystem::exists(path, error)) {
    plugin.status = absl::UnavailableError(
        absl::StrCat("this build has no CUDA plug-in: there is no ", Quoted(path, 500)));
    return plugin;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    plugin.status =
        absl::UnavailableError(absl::StrCat("the CUDA plug-in cannot be loaded: ", LinkerError()));
    return plugin;
  }
  const auto version =
      reinterpret_cast<CudaPluginVersionFunction>(dlsym(library, kCudaPluginVersionSymbol));
  plugin.create =
      reinterpret_cast<CudaPluginCreateFunction>(dlsym(library, kCudaPluginCreateSymbol));
  if (version == nullptr || plugin.create == nullptr ||
      std::string_view(version()) != ULTRASKETCH_PLUGIN_VERSION) {
    plugin.status = absl::UnavailableError(absl::StrCat(
        "the CUDA plug-in ", Quoted(path, 500), ": expected version ", ULTRASKETCH_PLUGIN_VERSION,
        ", found ", version != nullptr ? version() : "none"));
  }
  return plugin;
}

}  // namespace

absl::Status ProbeCudaDevice(int ordinal) {
  Driver driver;
  US_RETURN_IF_ERROR(driver.Load(ordinal));
  if (const Driver::Result result = driver.init(0); result != 0) {
    return NoDevice(ordinal, absl::StrCat("the driver says: ", driver.Describe(result)));
  }
  int count = 0;
  if (const Driver::Result result = driver.device_get_count(&count); result != 0) {
    return NoDevice(ordinal, absl::StrCat("the driver says: ", driver.Describe(result)));
  }
  if (ordinal >= count) {
    return NoDevice(
        ordinal, absl::StrCat("the driver knows of ", count, count == 1 ? " device" : " devices"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackendFromPlugin(
    int ordinal, const BackendOptions& options) {
  US_RETURN_IF_ERROR(ProbeCudaDevice(ordinal));
  static const Plugin plugin = LoadPlugin();
  US_RETURN_IF_ERROR(plugin.status);
  absl::StatusOr<std::shared_ptr<Backend>> backend = absl::InternalError("not created");
  plugin.create(ordinal, options, &backend);
  return backend;
}

}  // namespace ultrasketch
