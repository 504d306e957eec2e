// Arbitrary bytes as a safetensors file. What is accepted is read to the last byte.
#include <cstdint>
#include <string_view>

#include "engine/base/check.h"
#include "engine/base/thread_pool.h"
#include "engine/format/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ultrasketch;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto file = SafetensorsFile::Parse(bytes, "fuzz");
  if (!file.ok()) {
    US_CHECK(!file.status().message().empty());
    return 0;
  }
  int64_t num_bytes = 0;
  volatile uint8_t sum = 0;
  for (const NamedTensor& tensor : (*file)->tensors()) {
    US_CHECK((*file)->Find(tensor.name) == &tensor.view);
    for (int64_t i = 0; i < tensor.view.num_bytes(); ++i) sum = sum + tensor.view.data[i];
    num_bytes += tensor.view.num_bytes();
  }
  US_CHECK(num_bytes < static_cast<int64_t>(size));
  static ThreadPool pool(1);
  const absl::Status verified = (*file)->VerifyChecksums(pool);
  US_CHECK(verified.ok() || ((*file)->has_checksums() && absl::IsDataLoss(verified)));
  return 0;
}
