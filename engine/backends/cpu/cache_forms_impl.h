// How attention reads a cache of each type (cpu_kernels.h), for the instruction set of the file
// that includes this.
//
// A form is made for sixteen neighbouring slots. `Keys(d, k)` are dimension d + k of their keys, d
// being a multiple of kDimsAtOnce, and `Values(i, d)` sixteen dimensions of the i-th value. Both
// are in units of their group's factors: `KeyFactors(g)` of the sixteen keys, `ValueFactors(g)` of
// the sixteen values. A group is kGroup dimensions.
#ifndef ULTRASKETCH_ENGINE_BACKENDS_CPU_CACHE_FORMS_IMPL_H_
#define ULTRASKETCH_ENGINE_BACKENDS_CPU_CACHE_FORMS_IMPL_H_

#include "engine/backends/cpu/cpu_kernels.h"
#include "engine/base/vector16.h"
#include "engine/kv/int4_levels.h"

namespace ultrasketch {
namespace {

constexpr int64_t kWholeHead = int64_t{1} << 40;

// Where the block of `position` begins.
[[maybe_unused]] inline const uint8_t* BlockStart(const AttentionTile& tile, int64_t position,
                                                  int64_t token_bytes) {
  const int64_t block = tile.blocks[position / tile.block_size];
  return tile.cache + (block * tile.num_kv_heads + tile.kv_head) * tile.block_size * token_bytes;
}

// Numbers that need no factors.
template <typename Elements>
class FloatForm {
 public:
  static constexpr int64_t kGroup = kWholeHead;
  static constexpr int kDimsAtOnce = 1;
  static constexpr bool kHasFactors = false;

  FloatForm() = default;
  FloatForm(const AttentionTile& tile, int64_t position)
      : key_stride_(tile.block_size * Elements::kBytes),
        value_stride_(tile.head_dim * Elements::kBytes) {
    const int64_t slot = position % tile.block_size;
    const uint8_t* const start = BlockStart(tile, position, 2 * tile.head_dim * Elements::kBytes);
    keys_ = start + slot * Elements::kBytes;
    values_ = start + (tile.block_size + slot) * value_stride_;
  }
  Float16 Keys(int64_t d, int /*k*/) const {
    return Elements::LoadAsFloat(keys_ + d * key_stride_);
  }
  Float16 KeyFactors(int64_t /*group*/) const { return 1.0f; }
  Float16 Values(int64_t i, int64_t d) const {
    return Elements::LoadAsFloat(values_ + i * value_stride_ + d * Elements::kBytes);
  }
  Float16 PartialValues(int64_t i, int64_t d, int64_t count) const {
    uint8_t buffer[16 * Elements::kBytes] = {};
    const uint8_t* const source = values_ + i * value_stride_ + d * Elements::kBytes;
    for (int64_t byte = 0; byte < count * Elements::kBytes; ++byte) buffer[byte] = source[byte];
    return Elements::LoadAsFloat(buffer);
  }
  Float16 ValueFactors(int64_t /*group*/) const { return 1.0f; }

 private:
  int64_t key_stride_;
  int64_t value_stride_;
  const uint8_t* keys_;
  const uint8_t* values_;
};

class Int8Form {
 public:
  static constexpr int64_t kGroup = kWholeHead;
  static constexpr int kDimsAtOnce = 1;
  static constexpr bool kHasFactors = true;

  Int8Form() = default;
  Int8Form(const AttentionTile& tile, int64_t position)
      : block_size_(tile.block_size), head_dim_(tile.head_dim) {
    const int64_t slot = position % block_size_;
    const uint8_t* const start = BlockStart(tile, position, Int8TokenBytes(head_dim_));
    keys_ = reinterpret_cast<const int8_t*>(start) + slot;
    values_ = keys_ + block_size_ * head_dim_ + slot * (head_dim_ - 1);
    key_scales_ = start + 2 * block_size_ * head_dim_ + 2 * slot;
  }
  Float16 Keys(int64_t d, int /*k*/) const { return LoadBytes(keys_ + d * block_size_); }
  Float16 KeyFactors(int64_t /*group*/) const { return Bf16Elements::LoadAsFloat(key_scales_); }
  Float16 Values(int64_t i, int64_t d) const { return LoadBytes(values_ + i * head_dim_ + d); }
  Float16 PartialValues(int64_t i, int64_t d, int64_t count) const {
    int8_t buffer[16] = {};
    for (int64_t k = 0; k < count; ++k) buffer[k] = values_[i * head_dim_ + d + k];
    return LoadBytes(buffer);
  }
  Float16 ValueFactors(int64_t /*group*/) const {
    return Bf16Elements::LoadAsFloat(key_scales_ + 2 * block_size_);
  }

 private:
  int64_t block_size_;
  int64_t head_dim_;
  const int8_t* keys_;
  const int8_t* values_;
  const uint8_t* key_scales_;  // those of values are a block's after them
};

class Int4Form {
 public:
  static constexpr int64_t kGroup = kInt4Group;
  static constexpr int kDimsAtOnce = 2;
  static constexpr bool kHasFactors = true;

  Int4Form() = default;
  Int4Form(const AttentionTile& tile, int64_t position)
      : levels_(LoadBytes16(kInt4Levels)),
        block_size_(tile.block_size),
        row_bytes_(tile.head_dim / 2) {
    const int64_t slot = position % block_size_;
    const int64_t num_groups = (tile.head_dim + kGroup - 1) / kGroup;
    const uint8_t* const start = BlockStart(tile, position, Int4TokenBytes(tile.head_dim));
    keys_ = start + slot;
    values_ = start + (block_size_ + slot) * row_bytes_;
    key_scales_ = start + 2 * block_size_ * row_bytes_ + 2 * slot;
    value_scales_ = key_scales_ + 2 * num_groups * block_size_;
  }
  Float16 Keys(int64_t d, int k) const {
    const Bytes16 pairs = LoadBytes16(keys_ + d / 2 * block_size_);
    return ToFloats(LookUp(levels_, k == 0 ? LowHalves(pairs) : HighHalves(pairs)));
  }
  Float16 KeyFactors(int64_t group) const {
    return Bf16Elements::LoadAsFloat(key_scales_ + 2 * group * block_size_);
  }
  Float16 Values(int64_t i, int64_t d) const {
    return ToFloats(LookUp(levels_, SpreadHalves(values_ + i * row_bytes_ + d / 2)));
  }
  Float16 PartialValues(int64_t i, int64_t d, int64_t count) const {
    uint8_t buffer[8] = {};
    for (int64_t k = 0; k < count / 2; ++k) buffer[k] = values_[i * row_bytes_ + d / 2 + k];
    return ToFloats(LookUp(levels_, SpreadHalves(buffer)));
  }
  Float16 ValueFactors(int64_t group) const {
    return Bf16Elements::LoadAsFloat(value_scales_ + 2 * group * block_size_);
  }

 private:
  Bytes16 levels_;
  int64_t block_size_;
  int64_t row_bytes_;
  const uint8_t* keys_;
  const uint8_t* values_;
  const uint8_t* key_scales_;
  const uint8_t* value_scales_;
};

}  // namespace
}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BACKENDS_CPU_CACHE_FORMS_IMPL_H_
