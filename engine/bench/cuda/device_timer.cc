#include "engine/bench/cuda/device_timer.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"

#include "engine/base/random.h"
#include "engine/base/status.h"

namespace ultrasketch::cuda {
namespace {

// A graph that is captured, instantiated and destroyed.
class LaunchGraph {
 public:
  LaunchGraph() = default;
  ~LaunchGraph() {
    if (executable_ != nullptr) static_cast<void>(cudaGraphExecDestroy(executable_));
    if (graph_ != nullptr) static_cast<void>(cudaGraphDestroy(graph_));
  }
  LaunchGraph(const LaunchGraph&) = delete;
  LaunchGraph& operator=(const LaunchGraph&) = delete;

  absl::Status Capture(cudaStream_t stream, const std::function<absl::Status()>& launches) {
    US_RETURN_IF_ERROR(CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                                 "beginning a capture"));
    absl::Status status = launches();
    status.Update(CheckCuda(cudaStreamEndCapture(stream, &graph_), "ending a capture"));
    if (status.ok()) {
      status = CheckCuda(cudaGraphInstantiate(&executable_, graph_, 0), "cudaGraphInstantiate");
    }
    return status;
  }
  absl::Status Launch(cudaStream_t stream) {
    return CheckCuda(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

absl::Status CheckCuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  static_cast<void>(cudaGetLastError());
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::StatusOr<std::unique_ptr<RandomMemory>> RandomMemory::Create(int64_t num_bytes) {
  // Exponents around one: sign, then 0x38 to 0x3f in the upper byte.
  static const std::vector<uint16_t> pattern = [] {
    std::vector<uint16_t> values(size_t{1} << 22);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<uint16_t>((RandomWord(1, 2, i) & 0x87ffu) | 0x3800u);
    }
    return values;
  }();
  std::unique_ptr<RandomMemory> memory(new RandomMemory());
  US_RETURN_IF_ERROR(CheckCuda(cudaMalloc(reinterpret_cast<void**>(&memory->data_),
                                          static_cast<size_t>(std::max<int64_t>(num_bytes, 1))),
                               "cudaMalloc"));
  const auto pattern_bytes = static_cast<int64_t>(pattern.size() * sizeof(uint16_t));
  for (int64_t offset = 0; offset < num_bytes; offset += pattern_bytes) {
    US_RETURN_IF_ERROR(
        memory->Write(pattern.data(), std::min(pattern_bytes, num_bytes - offset), offset));
  }
  return memory;
}

RandomMemory::~RandomMemory() { static_cast<void>(cudaFree(data_)); }

absl::Status RandomMemory::Write(const void* source, int64_t num_bytes, int64_t byte_offset) {
  return CheckCuda(cudaMemcpy(data_ + byte_offset, source, static_cast<size_t>(num_bytes),
                              cudaMemcpyHostToDevice),
                   "cudaMemcpy");
}

absl::StatusOr<std::unique_ptr<DeviceTimer>> DeviceTimer::Create(int ordinal, double seconds) {
  std::unique_ptr<DeviceTimer> timer(new DeviceTimer());
  timer->seconds_ = seconds;
  US_RETURN_IF_ERROR(CheckCuda(cudaSetDevice(ordinal), "cudaSetDevice"));
  US_RETURN_IF_ERROR(
      CheckCuda(cudaGetDeviceProperties(&timer->properties_, ordinal), "cudaGetDeviceProperties"));
  US_RETURN_IF_ERROR(CheckCuda(cudaStreamCreateWithFlags(&timer->stream_, cudaStreamNonBlocking),
                               "cudaStreamCreateWithFlags"));
  US_RETURN_IF_ERROR(CheckCuda(cudaEventCreate(&timer->begin_), "cudaEventCreate"));
  US_RETURN_IF_ERROR(CheckCuda(cudaEventCreate(&timer->end_), "cudaEventCreate"));
  return timer;
}

DeviceTimer::~DeviceTimer() {
  if (end_ != nullptr) static_cast<void>(cudaEventDestroy(end_));
  if (begin_ != nullptr) static_cast<void>(cudaEventDestroy(begin_));
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

int DeviceTimer::NumCopies(int64_t bytes_each) const {
  const int64_t wanted = 4 * static_cast<int64_t>(properties_.l2CacheSize);
  return static_cast<int>(std::clamp<int64_t>((wanted + bytes_each - 1) / bytes_each, 2, 256));
}

absl::StatusOr<double> DeviceTimer::Time(int num_copies,
                                         const std::function<absl::Status(int)>& launch) {
  const int num_launches = std::max(num_copies, 8);
  for (int i = 0; i < 2; ++i) US_RETURN_IF_ERROR(launch(i % num_copies));
  US_RETURN_IF_ERROR(CheckCuda(cudaStreamSynchronize(stream_), "warming up"));
  LaunchGraph graph;
  const absl::Status captured = graph.Capture(stream_, [&] {
    absl::Status status;
    for (int i = 0; i < num_launches && status.ok(); ++i) status = launch(i % num_copies);
    return status;
  });
  US_RETURN_IF_ERROR(captured);
  std::vector<float> milliseconds;
  const auto start = std::chrono::steady_clock::now();
  for (int repetition = 0; repetition < 200; ++repetition) {
    US_RETURN_IF_ERROR(CheckCuda(cudaEventRecord(begin_, stream_), "cudaEventRecord"));
    US_RETURN_IF_ERROR(graph.Launch(stream_));
    US_RETURN_IF_ERROR(CheckCuda(cudaEventRecord(end_, stream_), "cudaEventRecord"));
    US_RETURN_IF_ERROR(CheckCuda(cudaEventSynchronize(end_), "timing"));
    float elapsed = 0;
    US_RETURN_IF_ERROR(
        CheckCuda(cudaEventElapsedTime(&elapsed, begin_, end_), "cudaEventElapsedTime"));
    if (repetition > 0) milliseconds.push_back(elapsed);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (repetition >= 5 && spent.count() > seconds_) break;
  }
  const auto middle = milliseconds.begin() + static_cast<ptrdiff_t>(milliseconds.size() / 2);
  std::nth_element(milliseconds.begin(), middle, milliseconds.end());
  return 1e3 * double{*middle} / num_launches;
}

}  // namespace ultrasketch::cuda
