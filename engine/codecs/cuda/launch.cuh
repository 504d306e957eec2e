// Launching kernels so that one begins while the one before it ends (PDL), and in clusters.
//
// Every kernel of a step is launched as dependent on the one before it in the stream
// (programmatic dependent launch, compute capability 9.0 and later): its blocks may start as soon
// as all blocks of that one have called LaunchDependents, and must call WaitForGridDependency
// before they touch anything but weights and the step's input, which was copied before its first
// kernel. All blocks call it, those without work too: a kernel waits for the whole of the one
// before it, which has waited in turn, and so what is read and written after the wait is ordered as
// without.
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_LAUNCH_CUH_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace ultrasketch::cuda {

__device__ inline void WaitForGridDependency() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ inline void LaunchDependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Only to ask what kernels were compiled for.
template <typename T>
__global__ void KernelOfThisBuild() {}

// The major number of the compute capability of the calling thread's device; 0 if there is none.
// Asked for every launch: a device's answer is kept.
inline int ComputeCapabilityMajor() {
  thread_local int last_device = -1;
  thread_local int major = 0;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (device != last_device) {
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
      return 0;
    }
    last_device = device;
  }
  return major;
}

// Whether kernels run on the calling thread's device as compiled for compute capability 9.0 or
// later. A newer device may run what was compiled for an older one.
inline bool RunsCodeOf90() {
  static const bool is_compiled = [] {
    cudaFuncAttributes attributes = {};
    return cudaFuncGetAttributes(&attributes, KernelOfThisBuild<void>) == cudaSuccess &&
           attributes.ptxVersion >= 90;
  }();
  return is_compiled && ComputeCapabilityMajor() >= 9;
}

// Whether the calling thread's device has the instructions of compute capability 9.0a.
inline bool IsHopper() { return ComputeCapabilityMajor() == 9; }

// The environment's ULTRASKETCH_CUDA_DEPENDENT_LAUNCH=off turns it off, for comparisons.
inline bool SupportsDependentLaunch() {
  static const bool is_off = [] {
    const char* value = std::getenv("ULTRASKETCH_CUDA_DEPENDENT_LAUNCH");
    return value != nullptr && std::strcmp(value, "off") == 0;
  }();
  return !is_off && RunsCodeOf90();
}

inline cudaLaunchAttribute ClusterAttribute(int cluster_blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster_blocks);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  return attribute;
}

// How many clusters of `cluster_blocks` blocks the calling thread's device holds at once; 0 if
// none.
template <typename... Parameters>
int CountClustersAtOnce(void (*kernel)(Parameters...), int cluster_blocks, int num_threads,
                        int shared_bytes) {
  cudaLaunchAttribute attribute = ClusterAttribute(cluster_blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster_blocks));
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int num_clusters = 0;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) !=
          cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&num_clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return num_clusters;
}

// `shared_bytes` of dynamic shared memory. All kernels launched so call WaitForGridDependency. The
// grid is divided along x into clusters of `cluster_blocks` blocks, a power of two up to 8, which
// can read each other's shared memory; more than one from compute capability 9.0 on.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchClusters(void (*kernel)(Parameters...), dim3 grid, int cluster_blocks,
                           int num_threads, size_t shared_bytes, cudaStream_t stream,
                           Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (SupportsDependentLaunch()) {
    attributes[num_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[num_attributes].val.programmaticStreamSerializationAllowed = 1;
    ++num_attributes;
  }
  if (cluster_blocks > 1) attributes[num_attributes++] = ClusterAttribute(cluster_blocks);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

// The same without clusters.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchKernel(void (*kernel)(Parameters...), dim3 grid, int num_threads,
                         size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return LaunchClusters(kernel, grid, 1, num_threads, shared_bytes, stream,
                        std::forward<Arguments>(arguments)...);
}

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_LAUNCH_CUH_
