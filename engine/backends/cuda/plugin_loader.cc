#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
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

}  // namespace

std::optional<int> CudaOrdinal(std::string_view device) {
  if (device == "cuda") return 0;
  int32_t ordinal = 0;
  if (device.substr(0, 5) == "cuda:" && absl::SimpleAtoi(A(device.substr(5)), &ordinal) &&
      ordinal >= 0) {
    return ordinal;
  }
  return std::nullopt;
}

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

absl::StatusOr<void*> OpenCudaPlugin(const char* file, std::string_view version) {
  std::error_code error;
  const std::filesystem::path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot tell the executable's folder: ", error.message()));
  }
  const std::string path = (executable.parent_path() / file).string();
  if (!std::filesystem::exists(path, error)) {
    return absl::UnavailableError(
        absl::StrCat("this build has no CUDA plug-in: there is no ", Quoted(path, 500)));
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("the CUDA plug-in cannot be loaded: ", LinkerError()));
  }
  const auto version_function =
      reinterpret_cast<CudaPluginVersionFunction>(dlsym(library, kCudaPluginVersionSymbol));
  if (version_function == nullptr || version_function() != version) {
    return absl::UnavailableError(
        absl::StrCat("the CUDA plug-in ", Quoted(path, 500), ": expected version ", A(version),
                     ", found ", version_function != nullptr ? version_function() : "none"));
  }
  return library;
}

absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackendFromPlugin(
    int ordinal, const BackendOptions& options) {
  US_RETURN_IF_ERROR(ProbeCudaDevice(ordinal));
  static const absl::StatusOr<void*> plugin =
      OpenCudaPlugin(kCudaPluginFile, ULTRASKETCH_PLUGIN_VERSION);
  US_RETURN_IF_ERROR(plugin.status());
  const auto create =
      reinterpret_cast<CudaPluginCreateFunction>(dlsym(*plugin, kCudaPluginCreateSymbol));
  if (create == nullptr) return absl::UnavailableError(LinkerError());
  absl::StatusOr<std::shared_ptr<Backend>> backend = absl::InternalError("not created");
  create(ordinal, options, &backend);
  return backend;
}

}  // namespace ultrasketch
