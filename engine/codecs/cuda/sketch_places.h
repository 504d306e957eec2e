// Building the places of a sketch's columns (sketch.h).
#ifndef ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_PLACES_H_
#define ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_PLACES_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/codecs/cuda/sketch.h"

namespace ultrasketch::cuda {

class SketchPlaces {
 public:
  explicit SketchPlaces(int64_t cols) : places_(static_cast<size_t>(cols)) {}

  // Gives `group`, whose buckets are known, entries of its own.
  void Begin(SketchGroup& group) {
    group.first_entry = num_entries_;
    num_entries_ += group.columns_per_bucket * group.num_buckets;
  }
  // Column `column` is the i-th of bucket `bucket` of the group.
  void Put(const SketchGroup& group, int64_t bucket, int64_t i, int32_t column, bool is_negative) {
    places_[static_cast<size_t>(column)] = {
        static_cast<uint32_t>(group.first_entry + i * group.num_buckets + bucket), is_negative};
  }

  int place_bytes() const {
    return static_cast<int64_t>(places_.size()) <= kMaxNarrowColumns ? 2 : 4;
  }
  std::vector<uint8_t> Pack() const {
    const auto bytes_each = static_cast<size_t>(place_bytes());
    std::vector<uint8_t> bytes(places_.size() * bytes_each);
    for (size_t column = 0; column < places_.size(); ++column) {
      uint32_t place = places_[column].entry;
      if (places_[column].is_negative) place |= 1u << (8 * bytes_each - 1);
      std::memcpy(bytes.data() + column * bytes_each, &place, bytes_each);  // little-endian
    }
    return bytes;
  }

 private:
  struct Place {
    uint32_t entry = 0;
    bool is_negative = false;
  };
  std::vector<Place> places_;
  int32_t num_entries_ = 0;
};

}  // namespace ultrasketch::cuda

#endif  // ULTRASKETCH_ENGINE_CODECS_CUDA_SKETCH_PLACES_H_
