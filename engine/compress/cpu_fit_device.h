// A fit on CPUs.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_CPU_FIT_DEVICE_H_
#define ULTRASKETCH_ENGINE_COMPRESS_CPU_FIT_DEVICE_H_

#include <memory>

#include "engine/base/thread_pool.h"
#include "engine/compress/fit_device.h"

namespace ultrasketch {

// The pool must outlive it.
std::unique_ptr<FitDevice> MakeCpuFitDevice(ThreadPool& pool);

// The products of a head are made of this many of its rows at a time.
inline constexpr int64_t kCpuHeadRowsAtOnce = 4096;

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_CPU_FIT_DEVICE_H_
