// A model's folder in Hugging Face's layout.
#ifndef ULTRASKETCH_ENGINE_FORMAT_CHECKPOINT_H_
#define ULTRASKETCH_ENGINE_FORMAT_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/base/tensor.h"
#include "engine/format/model_config.h"
#include "engine/format/safetensors.h"

namespace ultrasketch {

struct WeightFiles;

// The config, the weights (mapped, not read) and what else belongs to a model. Immutable and
// thread-safe. Opening costs the headers and, of files whose tensors have checksums, reading them
// once, at the speed of memory on all CPUs; of a tied model that stores a head all the same, also
// comparing it with the embedding. Whether the tensors are those that the architecture needs is
// checked by whoever loads them (GetTensor).
//
// Where the files of a folder contradict each other, what the checkpoint says has been decided
// (docs/checkpoints.md) and warnings() tells: so config() is that of the weights, and tensors have
// the names that it makes one expect.
class Checkpoint : public TensorSource {
 public:
  // Reads config.json, generation_config.json where there is one, and the weights:
  // model.safetensors, or else the shards that model.safetensors.index.json names.
  //
  // NOT_FOUND when folder, config or weights are absent; PERMISSION_DENIED; UNIMPLEMENTED for a
  // model that is not supported; DATA_LOSS for anything malformed: a shard's name that is not a
  // plain file name, a tensor that differs from its checksum, a quantization_config that is not the
  // one that the weights were written with. Messages name file, tensor or key, expected and found.
  // A shard that is absent or malformed is an error once a tensor in it is asked for (Missing), or
  // when all are.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& folder);

  const TensorView* Find(std::string_view name) const override;
  std::string Describe(std::string_view name) const override;
  absl::Status Missing(std::string_view name) const override;

  // Sorted (bytewise).
  const std::vector<std::string>& tensor_names() const { return tensor_names_; }

  const std::string& folder() const { return folder_; }

  // config.json, except that `tie_word_embeddings` says what is so: false when a head is stored
  // that differs from the embedding.
  const ModelConfig& config() const { return config_; }
  const GenerationConfig& generation_config() const { return generation_config_; }

  // The tokens that end a text: generation_config.json's if it has any, else config.json's.
  const std::vector<int32_t>& eos_token_ids() const;

  // What the files say that contradicts each other or cannot be used, and what is done instead: a
  // sentence each, without an end of line, that names the file.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Over the names, types, shapes and contents of all tensors, as hexadecimal digits: equal weights
  // give equal checksums. Empty where a file has tensors without checksums.
  const std::string& weights_checksum() const { return weights_checksum_; }

  // DATA_LOSS, naming file, expected and found, once weights have been read that a file does not
  // have any more (MappedFile::CheckIntact). Cheap: ask after whatever reads them.
  absl::Status CheckIntact() const;

  // Bytes of the model's files: weights, index, config, generation config, tokenizer.
  int64_t file_bytes() const { return file_bytes_; }

  // "<folder>/tokenizer.json", whether or not there is one.
  std::string tokenizer_path() const;

 private:
  // A tensor and the file it is in.
  struct Entry {
    const TensorView* view;
    const SafetensorsFile* file;
    std::string_view stored_name;  // empty: the name that it goes by
  };

  Checkpoint() = default;
  void TakeTensors(const WeightFiles& weights);
  // DATA_LOSS when the size of a head is the family's, as config.json states none, and queries have
  // another.
  absl::Status CheckAssumedHeadDim(const std::string& config_path) const;
  // Decides what the head of a tied model is, from what is stored.
  void ResolveHead(const std::string& config_path);
  void UseStoredHead(const Entry& head, const std::string& config_path);
  std::string WeightsChecksum() const;

  std::string folder_;
  ModelConfig config_;
  GenerationConfig generation_config_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry, std::less<>> entries_;
  std::vector<std::string> tensor_names_;  // the keys of entries_
  // Tensors that an index lists and no shard has, or that have an unsupported type, and why.
  std::map<std::string, absl::Status, std::less<>> missing_;
  std::string weights_checksum_;
  int64_t file_bytes_ = 0;
  std::vector<std::string> warnings_;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FORMAT_CHECKPOINT_H_
