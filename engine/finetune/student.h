// The compressed model as a decoder to train.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_STUDENT_H_
#define ULTRASKETCH_ENGINE_FINETUNE_STUDENT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "engine/finetune/decoder.h"
#include "engine/finetune/parameter_store.h"
#include "engine/finetune/trainable_site.h"

namespace ultrasketch {

struct StudentOptions {
  ComputeOptions compute;
  LatentStart start = LatentStart::kStudent;
  SketchGradient sketch_gradient = SketchGradient::kChosen;
  bool train_tables = true;
};

class Student final : public Decoder {
 public:
  // Both checkpoints must outlive the result. Its parameters are in parameters(). INVALID_ARGUMENT
  // when the student is not compressed, or the two differ in shape; otherwise what reading them
  // gives.
  static absl::StatusOr<std::unique_ptr<Student>> Load(std::shared_ptr<const Checkpoint> student,
                                                       std::shared_ptr<const Checkpoint> teacher,
                                                       const StudentOptions& options);
  ~Student() override;

  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }

  // Rounded as they are stored, in the compute type.
  Tables CurrentTables() const override;

  // Adds to the gradients what follows from those with respect to CurrentTables, float [vocab_size,
  // hidden_size] each; `head` undefined where it is tied. Nothing when tables are not trained.
  bool trains_tables() const { return options_.train_tables; }
  void AddTableGradients(const at::Tensor& embedding, const at::Tensor& head);

  void ClampLatents();

  // Writes the model with the parameters' current values to `folder`, as WriteCompressedModel does.
  // Equal layouts, equal bits per weight as the student's.
  absl::Status Export(const std::string& folder, bool overwrite, ThreadPool& pool) const;

 protected:
  at::Tensor ApplySite(int layer, SiteKind kind, const at::Tensor& x) const override;
  const at::Tensor& Vector(int layer, LayerVector which) const override {
    return vectors_[LayerVectorIndex(config(), layer, which)];
  }
  const at::Tensor& FinalNorm() const override { return final_norm_; }

 private:
  struct Table;

  Student(std::shared_ptr<const Checkpoint> student, std::shared_ptr<const Checkpoint> teacher,
          const StudentOptions& options);
  absl::Status LoadSites();
  absl::Status LoadVectors();
  absl::Status LoadTables();

  const std::shared_ptr<const Checkpoint> student_;
  const std::shared_ptr<const Checkpoint> teacher_;
  const StudentOptions options_;
  ParameterStore parameters_;
  std::vector<std::unique_ptr<EncodedLinear>> encoded_;
  std::vector<std::unique_ptr<TrainableSite>> sites_;
  std::vector<at::Tensor> biases_;   // of the sites; undefined where there is none
  std::vector<at::Tensor> vectors_;  // of the layers: see LayerVectorIndex
  at::Tensor final_norm_;
  std::unique_ptr<Table> embedding_;
  std::unique_ptr<Table> head_;  // null: tied
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_STUDENT_H_
