#include "engine/finetune/student.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/codecs/grouped/grouped_table.h"
#include "engine/codecs/grouped/quantize_table.h"
#include "engine/compress/model_writer.h"
#include "engine/finetune/table_rounding.h"
#include "engine/format/recorded_evaluation.h"
#include "engine/models/checkpoint_codec.h"
#include "engine/models/layer_table.h"
#include "engine/models/vocabulary_tables.h"

namespace ultrasketch {
namespace {

at::Tensor ToCpuFloat(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU, at::kFloat).contiguous();
}

// `values` as elements of `dtype`, one of the floating types.
ReplacedTensor Replace(std::string name, DType dtype, std::vector<int64_t> shape,
                       const at::Tensor& values) {
  const at::Tensor source = ToCpuFloat(values);
  const float* data = source.data_ptr<float>();
  const auto count = static_cast<size_t>(source.numel());
  ReplacedTensor replaced = {std::move(name), dtype, std::move(shape), {}};
  replaced.bytes.resize(count * static_cast<size_t>(ElementBytes(dtype)));
  const auto store = [&](auto convert) {
    for (size_t i = 0; i < count; ++i) {
      const auto element = convert(data[i]);
      std::memcpy(replaced.bytes.data() + i * sizeof(element), &element, sizeof(element));
    }
  };
  switch (dtype) {
    case DType::kBF16:
      store(FloatToBf16);
      break;
    case DType::kF16:
      store(FloatToHalf);
      break;
    case DType::kF64:
      store([](float value) { return static_cast<double>(value); });
      break;
    default:
      US_CHECK(dtype == DType::kF32);
      store([](float value) { return value; });
  }
  return replaced;
}

// A dense tensor in memory, for the codecs that read one.
class MemoryTensor : public TensorSource {
 public:
  MemoryTensor(std::string name, const at::Tensor& values)
      : name_(std::move(name)), values_(ToCpuFloat(values)) {
    view_ = {DType::kF32, values_.sizes().vec(),
             reinterpret_cast<const uint8_t*>(values_.data_ptr<float>())};
  }
  const TensorView* Find(std::string_view name) const override {
    return name == name_ ? &view_ : nullptr;
  }
  std::string Describe(std::string_view /*name*/) const override { return "the trained model"; }

 private:
  std::string name_;
  at::Tensor values_;
  TensorView view_;
};

}  // namespace

// Token embedding or output head.
struct Student::Table {
  std::string name;                 // "model.embed_tokens"
  std::optional<GroupedType> type;  // none: stored as a dense tensor, of `dtype`
  DType dtype = DType::kF32;
  at::Tensor value;  // [vocab_size, hidden_size], float: a parameter where tables are trained

  // What is served, as float.
  at::Tensor Rounded() const {
    const at::NoGradGuard no_gradient;
    if (type.has_value()) return RoundToGroups(value, *type);
    if (dtype == DType::kBF16) return value.to(at::kBFloat16).to(at::kFloat);
    if (dtype == DType::kF16) return value.to(at::kHalf).to(at::kFloat);
    return value.detach();
  }
};

Student::Student(std::shared_ptr<const Checkpoint> student,
                 std::shared_ptr<const Checkpoint> teacher, const StudentOptions& options)
    : Decoder(student->config(), options.compute),
      student_(std::move(student)),
      teacher_(std::move(teacher)),
      options_(options) {}

Student::~Student() = default;

absl::StatusOr<std::unique_ptr<Student>> Student::Load(std::shared_ptr<const Checkpoint> student,
                                                       std::shared_ptr<const Checkpoint> teacher,
                                                       const StudentOptions& options) {
  const ModelConfig& of_student = student->config();
  const ModelConfig& of_teacher = teacher->config();
  const auto extents = [](const ModelConfig& config) {
    return std::vector<int64_t>{config.vocab_size,
                                config.hidden_size,
                                config.intermediate_size,
                                config.num_layers,
                                config.num_attention_heads,
                                config.num_kv_heads,
                                config.head_dim,
                                config.tie_word_embeddings ? 1 : 0};
  };
  if (extents(of_student) != extents(of_teacher)) {
    return absl::InvalidArgumentError(
        absl::StrCat(student->folder(), " is not a compressed form of ", teacher->folder(),
                     ": they differ in vocabulary, widths, heads or number of layers"));
  }
  std::unique_ptr<Student> result(new Student(std::move(student), std::move(teacher), options));
  US_RETURN_IF_ERROR(result->LoadSites());
  US_RETURN_IF_ERROR(result->LoadVectors());
  US_RETURN_IF_ERROR(result->LoadTables());
  result->parameters_.Finish(options.compute.device);
  return result;
}

absl::Status Student::LoadSites() {
  US_ASSIGN_OR_RETURN(const std::string codec_name, CheckpointCodec(*student_));
  const Codec* const codec = FindCodec(codec_name);
  US_CHECK(codec != nullptr);
  const TrainableSiteOptions site_options = {.start = options_.start,
                                             .sketch_gradient = options_.sketch_gradient,
                                             .compute_type = options_.compute.type,
                                             .device = options_.compute.device};
  const std::vector<LinearSite> sites = LinearSites(config());
  biases_.resize(sites.size());
  for (size_t index = 0; index < sites.size(); ++index) {
    const LinearSite& site = sites[index];
    US_ASSIGN_OR_RETURN(std::unique_ptr<EncodedLinear> encoded,
                        codec->Load(site, *student_, config().quantization_config));
    US_ASSIGN_OR_RETURN(const at::Tensor dense, ReadDenseSite(site, *teacher_));
    encoded_.push_back(std::move(encoded));
    US_ASSIGN_OR_RETURN(std::unique_ptr<TrainableSite> trainable,
                        MakeTrainableSite(*encoded_.back(), dense, site_options, parameters_));
    sites_.push_back(std::move(trainable));
    US_ASSIGN_OR_RETURN(const std::vector<float> bias, LoadBias(site, *student_));
    if (bias.empty()) continue;
    biases_[index] = at::tensor(bias);
    parameters_.Add(ParameterGroup::kContinuous, site.name + ".bias", &biases_[index]);
  }
  return absl::OkStatus();
}

absl::Status Student::LoadVectors() {
  const std::vector<LayerVector> of_layer = LayerVectors(config());
  vectors_.resize(static_cast<size_t>(config().num_layers) * of_layer.size());
  for (int layer = 0; layer < config().num_layers; ++layer) {
    for (const LayerVector vector : of_layer) {
      at::Tensor& values = vectors_[LayerVectorIndex(config(), layer, vector)];
      const std::string name = LayerVectorName(layer, vector);
      US_ASSIGN_OR_RETURN(values,
                          ReadFloatVector(*student_, name, LayerVectorSize(config(), vector)));
      parameters_.Add(ParameterGroup::kContinuous, name, &values);
    }
  }
  US_ASSIGN_OR_RETURN(final_norm_,
                      ReadFloatVector(*student_, kFinalNormName, config().hidden_size));
  parameters_.Add(ParameterGroup::kContinuous, kFinalNormName, &final_norm_);
  return absl::OkStatus();
}

absl::Status Student::LoadTables() {
  US_ASSIGN_OR_RETURN(const VocabularyTables stored, LoadVocabularyTables(*student_));
  US_ASSIGN_OR_RETURN(const VocabularyTables dense, LoadVocabularyTables(*teacher_));
  const auto load = [&](const EncodedLinear& table, const EncodedLinear& dense_table) {
    auto result = std::make_unique<Table>();
    result->name = table.site().name;
    if (const auto* grouped = dynamic_cast<const GroupedTable*>(&table)) {
      result->type = grouped->type();
    } else {
      result->dtype = student_->Find(result->name + ".weight")->dtype;
    }
    // The dense rows, where what is stored is their rounded form: they say more.
    const at::Tensor student_rows = DecodeAll(table);
    result->value = DecodeAll(dense_table);
    const at::Tensor is_rounded =
        (result->Rounded() == student_rows).all(/*dim=*/1, /*keepdim=*/true);
    result->value = at::where(is_rounded, result->value, student_rows).contiguous();
    if (options_.train_tables) {
      parameters_.Add(ParameterGroup::kTables, result->name, &result->value);
    } else {
      result->value = result->value.to(options_.compute.device);
    }
    return result;
  };
  embedding_ = load(*stored.embedding, *dense.embedding);
  if (stored.head != nullptr) head_ = load(*stored.head, *dense.head);
  return absl::OkStatus();
}

Decoder::Tables Student::CurrentTables() const {
  Tables tables;
  tables.embedding = embedding_->Rounded().to(options_.compute.type);
  tables.head = head_ == nullptr ? tables.embedding : head_->Rounded().to(options_.compute.type);
  return tables;
}

void Student::AddTableGradients(const at::Tensor& embedding, const at::Tensor& head) {
  US_CHECK(options_.train_tables);
  embedding_->value.mutable_grad().add_(embedding);
  if (head.defined()) (head_ == nullptr ? embedding_ : head_)->value.mutable_grad().add_(head);
}

void Student::ClampLatents() {
  for (const auto& site : sites_) site->ClampLatents();
}

at::Tensor Student::ApplySite(int layer, SiteKind kind, const at::Tensor& x) const {
  const auto index = static_cast<size_t>(layer * kNumSiteKinds + static_cast<int>(kind));
  const at::Tensor y = sites_[index]->Apply(x);
  return biases_[index].defined() ? y + biases_[index].to(y.scalar_type()) : y;
}

absl::Status Student::Export(const std::string& folder, bool overwrite, ThreadPool& pool) const {
  std::vector<std::unique_ptr<EncodedLinear>> stored;
  std::vector<ReplacedTensor> replaced;
  for (size_t index = 0; index < sites_.size(); ++index) {
    stored.push_back(sites_[index]->Export());
    if (!biases_[index].defined()) continue;
    int64_t row = 0;
    for (const SiteMember& member : encoded_[index]->site().members) {
      const TensorView* bias = student_->Find(member.name + ".bias");
      if (member.has_bias && bias != nullptr) {
        replaced.push_back(Replace(member.name + ".bias", bias->dtype, bias->shape,
                                   biases_[index].detach().narrow(0, row, member.rows)));
      }
      row += member.rows;
    }
  }
  const auto add_vector = [&](const std::string& name, const at::Tensor& norm) {
    const TensorView* view = student_->Find(name);
    replaced.push_back(Replace(name, view->dtype, view->shape, norm));
  };
  for (int layer = 0; layer < config().num_layers; ++layer) {
    for (const LayerVector vector : LayerVectors(config())) {
      add_vector(LayerVectorName(layer, vector), Vector(layer, vector));
    }
  }
  add_vector(kFinalNormName, final_norm_);
  for (const Table* table : {embedding_.get(), head_.get()}) {
    if (table == nullptr) continue;
    const std::string name = table->name + ".weight";
    if (!table->type.has_value()) {
      replaced.push_back(Replace(name, table->dtype, table->value.sizes().vec(), table->value));
      continue;
    }
    const MemoryTensor source(name, table->value);
    const LinearSite site =
        table == embedding_.get() ? EmbeddingSite(config()) : HeadSite(config());
    US_ASSIGN_OR_RETURN(const std::unique_ptr<EncodedLinear> dense,
                        FindCodec("dense")->Load(site, source, nlohmann::json()));
    stored.push_back(QuantizeTable(*dense, *table->type, pool));
  }
  // What was measured of the model that the training began with does not hold for this one.
  nlohmann::json quantization_config = config().quantization_config;
  quantization_config.erase(kEvaluationKey);
  return WriteCompressedModel(*teacher_, stored, replaced, quantization_config, folder, overwrite);
}

}  // namespace ultrasketch
