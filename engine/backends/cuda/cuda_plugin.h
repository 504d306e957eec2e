// The seam between the executables, which know nothing of CUDA, and the plug-in that is loaded when
// a device is found.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_PLUGIN_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_PLUGIN_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

#include "engine/backends/backend.h"

namespace ultrasketch {

inline constexpr const char* kCudaPluginFile = "libultrasketch_cuda.so";

// Changes whenever Backend or what it is made of does: an executable takes only a plug-in that was
// built with it. Exported by the plug-in as a string.
inline constexpr const char* kCudaPluginVersionSymbol = "ultrasketch_cuda_plugin_version";
using CudaPluginVersionFunction = const char* (*)();

// Exported by the plug-in. Sets `*result`.
inline constexpr const char* kCudaPluginCreateSymbol = "ultrasketch_cuda_plugin_create";
using CudaPluginCreateFunction = void (*)(int ordinal, const BackendOptions& options,
                                          absl::StatusOr<std::shared_ptr<Backend>>* result);

// The ordinal of "cuda" or "cuda:N"; nothing for other devices.
std::optional<int> CudaOrdinal(std::string_view device);

// Why there is no CUDA device `ordinal` for this process, asked of the driver's library, which is
// loaded for it: UNAVAILABLE. OK when there is one.
absl::Status ProbeCudaDevice(int ordinal);

// Opens a plug-in in the folder of the running executable, and keeps it open. UNAVAILABLE unless it
// is there, can be loaded and exports this version. The result is dlopen's.
absl::StatusOr<void*> OpenCudaPlugin(const char* file, std::string_view version);

// Loads the plug-in, once, from the folder of the running executable, and creates a backend.
// UNAVAILABLE when there is no device or no plug-in of this build.
absl::StatusOr<std::shared_ptr<Backend>> CreateCudaBackendFromPlugin(int ordinal,
                                                                     const BackendOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CUDA_CUDA_PLUGIN_H_
