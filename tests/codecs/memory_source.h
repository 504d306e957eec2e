// A TensorSource over tensors that a test makes.
#ifndef ULTRASKETCH_TESTS_CODECS_MEMORY_SOURCE_H_
#define ULTRASKETCH_TESTS_CODECS_MEMORY_SOURCE_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/tensor.h"

namespace ultrasketch {

class MemorySource : public TensorSource {
 public:
  template <typename T>
  void Set(const std::string& name, DType dtype, std::vector<int64_t> shape,
           const std::vector<T>& values) {
    Entry& entry = entries_[name];
    entry.bytes.resize(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(entry.bytes.data(), values.data(), entry.bytes.size());
    entry.view = {dtype, std::move(shape), entry.bytes.data()};
  }

  // A copy of a stored tensor.
  void Set(const NamedTensor& tensor) {
    Set(tensor.name, tensor.view.dtype, tensor.view.shape,
        std::vector<uint8_t>(tensor.view.data, tensor.view.data + tensor.view.num_bytes()));
  }

  void Remove(const std::string& name) { entries_.erase(name); }

  std::vector<uint8_t>& bytes(const std::string& name) { return entries_.at(name).bytes; }
  TensorView& view(const std::string& name) { return entries_.at(name).view; }

  const TensorView* Find(std::string_view name) const override {
    const auto position = entries_.find(std::string(name));
    return position == entries_.end() ? nullptr : &position->second.view;
  }
  std::string Describe(std::string_view) const override { return "memory.safetensors"; }

 private:
  struct Entry {
    std::vector<uint8_t> bytes;
    TensorView view;
  };
  std::map<std::string, Entry> entries_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_CODECS_MEMORY_SOURCE_H_
