// What a compression depends on, to tell whether work that was finished earlier belongs to it.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FIT_DESCRIPTION_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FIT_DESCRIPTION_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/base/thread_pool.h"
#include "engine/compress/compressor.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

// Checksums of the model and of the calibration files, which are read once for it, the options that
// the result depends on, the kind of the device, whose name is `device`, and the version of the
// fit. Not where the files are.
absl::StatusOr<nlohmann::json> DescribeFit(const Checkpoint& checkpoint,
                                           const CompressOptions& options, std::string_view device,
                                           ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FIT_DESCRIPTION_H_
