// The same operations of a fit on the CPU and on a CUDA device.
#ifndef ULTRASKETCH_TESTS_COMPRESS_CUDA_FIT_DEVICES_H_
#define ULTRASKETCH_TESTS_COMPRESS_CUDA_FIT_DEVICES_H_

#include <string>

#include "engine/compress/fit_device.h"

namespace ultrasketch {

// Created once; null when there is none.
FitDevice* CudaFitDeviceOrNull();
std::string NoCudaFitReason();
FitDevice& CpuFitDevice();

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_COMPRESS_CUDA_FIT_DEVICES_H_
