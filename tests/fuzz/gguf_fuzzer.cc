// Arbitrary bytes as a GGUF file. What is accepted is read to the last tensor's last byte and
// converted; the tokenizer that comes out is loaded. Seeds: write_gguf_corpus FOLDER.
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/format/gguf/import_gguf.h"

namespace ultrasketch {
namespace {

void ReadTensors(const GgufFile& file) {
  std::vector<float> values;
  volatile uint8_t sum = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    const int64_t num_bytes = tensor.num_bytes();
    for (int64_t i = 0; i < num_bytes; ++i) sum = sum + tensor.data[i];
    if (tensor.type->decode == nullptr) continue;
    values.resize(static_cast<size_t>(tensor.type->block_elements));
    for (int64_t i = 0; i < num_bytes; i += tensor.type->block_bytes) {
      tensor.type->decode(tensor.data + i, values.data());
    }
  }
}

void Convert(std::unique_ptr<GgufFile> file) {
  const auto model = GgufModel::FromFile(std::move(file));
  US_CHECK(model.ok());  // names are unique within a file
  GgufImportOptions options;
  const auto checkpoint = MakeGgufCheckpoint(**model, options);
  if (!checkpoint.ok()) {
    US_CHECK(!checkpoint.status().message().empty());
    return;
  }
  US_CHECK(!checkpoint->config.dump().empty());
  US_CHECK(!checkpoint->tokenizer.tokenizer_config.dump().empty());
  for (const TensorToWrite& tensor :
       ConvertGgufTensors(**model, checkpoint->tensors, options.conversion)) {
    int64_t num_bytes = 0;
    const absl::Status status = tensor.produce([&](const void*, int64_t count) {
      num_bytes += count;
      return absl::OkStatus();
    });
    int64_t expected = ElementBytes(tensor.dtype);
    for (const int64_t extent : tensor.shape) expected *= extent;
    US_CHECK(!status.ok() || num_bytes == expected);
  }
}

}  // namespace
}  // namespace ultrasketch

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ultrasketch;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  auto file = GgufFile::Parse(bytes, "fuzz");
  if (!file.ok()) {
    US_CHECK(!file.status().message().empty());
    return 0;
  }
  ReadTensors(**file);
  Convert(*std::move(file));
  return 0;
}
