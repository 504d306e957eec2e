// Safetensors files by hand, malformed ones too.
#ifndef ULTRASKETCH_TESTS_FORMAT_SAFETENSORS_BYTES_H_
#define ULTRASKETCH_TESTS_FORMAT_SAFETENSORS_BYTES_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace ultrasketch {

// A file with `header_bytes` as the header's length, whatever the header's length is.
inline std::string SafetensorsBytes(uint64_t header_bytes, std::string_view header,
                                    std::string_view data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header_bytes >> (8 * i)));
  bytes += header;
  bytes += data;
  return bytes;
}

inline std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  return SafetensorsBytes(header.size(), header, data);
}

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FORMAT_SAFETENSORS_BYTES_H_
