// The CPU as a device: activations are floats, weights stay where they are mapped or packed.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_BACKEND_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_BACKEND_H_

#include <memory>

#include "engine/backends/backend.h"

namespace ultrasketch {

// Results do not depend on the number of threads. options.beside is a backend of the CPU or null.
std::shared_ptr<Backend> CreateCpuBackend(const BackendOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CPU_BACKEND_H_
