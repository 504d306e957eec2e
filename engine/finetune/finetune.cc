#include "engine/finetune/finetune.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/compress/model_writer.h"
#include "engine/compress/token_windows.h"
#include "engine/finetune/finetune_settings.h"
#include "engine/finetune/perplexity.h"
#include "engine/finetune/process_group.h"
#include "engine/finetune/student.h"
#include "engine/finetune/training_device.h"
#include "engine/finetune/training_log.h"
#include "engine/finetune/training_state.h"
#include "engine/finetune/training_step.h"
#include "engine/finetune/training_texts.h"
#include "engine/format/recorded_evaluation.h"

namespace ultrasketch {
namespace {

using Clock = std::chrono::steady_clock;

// In the training folder.
constexpr char kCheckpointName[] = "checkpoint.safetensors";
constexpr char kBestName[] = "best.safetensors";
constexpr char kTokensName[] = "tokens.safetensors";

// Stands for a perplexity that is no number.
constexpr double kDivergedPerplexity = 1e300;

// Of the smoothed loss: how many records it remembers, and how far above its least it may rise.
constexpr double kSmoothing = 0.9;
constexpr double kDivergenceFactor = 2;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

class Finetuner {
 public:
  explicit Finetuner(const FinetuneOptions& options)
      : options_(options), pool_(options.num_threads), log_("") {}

  absl::StatusOr<FinetuneReport> Run() {
    US_RETURN_IF_ERROR(CheckFinetuneOptions(options_));
    US_RETURN_IF_ERROR(Prepare());
    US_RETURN_IF_ERROR(LoadModels());
    US_RETURN_IF_ERROR(StartOrResume());
    const absl::Status trained = Train();
    if (!trained.ok() && !absl::IsAborted(trained)) return trained;
    US_RETURN_IF_ERROR(Finish());
    US_RETURN_IF_ERROR(trained);
    return Report();
  }

 private:
  bool Cancelled() const { return options_.cancelled != nullptr && *options_.cancelled; }
  bool IsMain() const { return place_.rank == 0; }
  void Note(const std::string& text) const {
    if (options_.note && IsMain()) options_.note(text);
  }
  void Progress(FinetuneProgress::Stage stage, int64_t done, int64_t total) const {
    if (!options_.progress || !IsMain()) return;
    options_.progress({stage, done, total, state_.smoothed_loss, late_tokens_per_second_});
  }
  std::string File(const char* name) const { return training_folder_ + "/" + name; }
  int64_t StepTokens() const { return options_.batch_windows * options_.window_tokens; }

  absl::Status Prepare();
  absl::Status OpenTexts();
  absl::Status LoadModels();
  absl::Status StartOrResume();
  absl::Status Train();
  absl::Status Finish();
  FinetuneReport Report() const;

  int64_t WarmupSteps() const { return std::min(options_.warmup_steps, options_.num_steps / 10); }
  double LearningRateFactor() const;
  at::Tensor NextIds();
  void WaitForOthers();
  absl::StatusOr<double> Evaluate(const Decoder& decoder);
  bool EvaluationIsDue() const;
  absl::Status EvaluateStudent();
  absl::Status Record(double seconds);
  absl::Status Save();
  bool AllAgreeToStop();

  const FinetuneOptions& options_;
  ThreadPool pool_;
  std::string folder_;
  std::string training_folder_;
  ProcessPlace place_;
  std::unique_ptr<ProcessGroup> group_;  // null: one process
  TrainingDevice device_;
  std::shared_ptr<const Checkpoint> teacher_checkpoint_;
  std::shared_ptr<const Checkpoint> student_checkpoint_;
  std::unique_ptr<TrainingTexts> texts_;
  std::unique_ptr<Decoder> teacher_;
  std::unique_ptr<Student> student_;
  std::unique_ptr<TrainingStep> training_step_;
  nlohmann::json settings_;
  TrainingLog log_;
  TrainingState state_;
  double table_learning_rate_ = 0;
  at::Tensor log_sums_;  // [3] on the device, double
  bool interrupted_ = false;
  int64_t first_step_ = 0;
  double first_seconds_ = 0;
  double late_tokens_per_second_ = 0;
};

absl::Status Finetuner::Prepare() {
  US_ASSIGN_OR_RETURN(teacher_checkpoint_, Checkpoint::Open(options_.teacher));
  US_ASSIGN_OR_RETURN(student_checkpoint_, Checkpoint::Open(options_.student));
  std::vector<std::string> inputs = options_.text_files;
  inputs.push_back(options_.student);
  if (!options_.eval_file.empty()) inputs.push_back(options_.eval_file);
  US_ASSIGN_OR_RETURN(folder_, ResolveOutputFolder(*teacher_checkpoint_, inputs, options_.out,
                                                   options_.overwrite || options_.resume));
  training_folder_ = folder_ + ".training";
  log_ = TrainingLog(training_folder_);
  const int64_t longest = teacher_checkpoint_->config().max_position_embeddings;
  if (options_.window_tokens > longest) {
    return absl::InvalidArgumentError(absl::StrCat("context: expected at most the model's ",
                                                   longest, ", found ", options_.window_tokens));
  }
  US_ASSIGN_OR_RETURN(place_, ReadProcessPlace());
  for (const auto& checkpoint : {teacher_checkpoint_, student_checkpoint_}) {
    for (const std::string& warning : checkpoint->warnings()) {
      Note(absl::StrCat("warning: ", warning));
    }
  }
  if (options_.batch_windows % (int64_t{place_.size} * options_.accumulation) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "batch: expected a multiple of the number of processes times accumulate, ",
        int64_t{place_.size} * options_.accumulation, ", found ", options_.batch_windows));
  }
  at::set_num_threads(pool_.num_threads());
  US_ASSIGN_OR_RETURN(device_,
                      ChooseTrainingDevice(options_.device, options_.precision, place_.local_rank));
  if (place_.size > 1) {
    US_ASSIGN_OR_RETURN(group_, JoinProcessGroup(place_, device_.compute.device));
  }
  std::error_code error;
  if (!options_.resume && !options_.overwrite &&
      std::filesystem::exists(File(kCheckpointName), error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(File(kCheckpointName),
                     " is the checkpoint of an earlier run: --resume goes on from it, --overwrite "
                     "starts again"));
  }
  std::filesystem::create_directories(training_folder_, error);
  if (error) return ErrnoStatus(error.value(), training_folder_);
  return OpenTexts();
}

absl::Status Finetuner::OpenTexts() {
  std::vector<std::string> text_files;
  std::vector<std::string> window_files;
  for (const std::string& path : options_.text_files) {
    (IsTokenWindowsPath(path) ? window_files : text_files).push_back(path);
  }
  const TrainingTextsOptions texts_options = {
      .cache = {.text_files = text_files,
                .tokenizer_path = teacher_checkpoint_->tokenizer_path(),
                .cache_path = options_.cache.empty() ? File(kTokensName) : options_.cache,
                .progress =
                    [this](int64_t bytes) {
                      Progress(FinetuneProgress::Stage::kTokenizing, bytes, 0);
                    },
                .cancelled = options_.cancelled},
      .window_files = window_files,
      .windows_share = options_.windows_share,
      .eval_file = options_.eval_file,
      .eval_max_tokens = options_.eval_max_tokens,
      .window_tokens = options_.window_tokens,
      .vocab_size = teacher_checkpoint_->config().vocab_size,
      .seed = options_.seed};
  // The first process makes the cache, the others wait for it.
  if (!IsMain()) WaitForOthers();
  absl::StatusOr<std::unique_ptr<TrainingTexts>> texts = TrainingTexts::Open(texts_options, pool_);
  if (IsMain()) WaitForOthers();
  US_RETURN_IF_ERROR(texts.status());
  texts_ = *std::move(texts);
  return absl::OkStatus();
}

absl::Status Finetuner::LoadModels() {
  US_ASSIGN_OR_RETURN(teacher_, LoadTeacher(*teacher_checkpoint_, device_.compute));
  const StudentOptions student_options = {
      .compute = device_.compute,
      .start = options_.start_from_teacher ? LatentStart::kTeacher : LatentStart::kStudent,
      .sketch_gradient = options_.gradient_to_all ? SketchGradient::kAll : SketchGradient::kChosen,
      .train_tables = options_.train_tables};
  US_ASSIGN_OR_RETURN(student_,
                      Student::Load(student_checkpoint_, teacher_checkpoint_, student_options));
  table_learning_rate_ =
      options_.table_learning_rate * student_->parameters().RootMeanSquare(ParameterGroup::kTables);
  TrainingStepOptions step_options;
  step_options.num_windows = options_.batch_windows / place_.size;
  step_options.window_tokens = options_.window_tokens;
  step_options.accumulation = options_.accumulation;
  step_options.distillation = {.hidden_loss = options_.hidden_loss,
                               .checkpoint_activations = options_.checkpoint_activations};
  step_options.adam.max_gradient_norm = options_.max_gradient_norm;
  if (options_.cuda_graph == "on") step_options.cuda_graph = CudaGraphUse::kOn;
  if (options_.cuda_graph == "off") step_options.cuda_graph = CudaGraphUse::kOff;
  if (group_ != nullptr) {
    step_options.average = [this](at::Tensor& gradients) { group_->Average(gradients); };
  }
  training_step_ = std::make_unique<TrainingStep>(*teacher_, *student_, step_options);
  log_sums_ = at::zeros({3}, at::TensorOptions().dtype(at::kDouble).device(device_.compute.device));
  return absl::OkStatus();
}

absl::Status Finetuner::StartOrResume() {
  settings_ =
      FinetuneSettings(options_, *teacher_checkpoint_, *student_checkpoint_, *texts_, pool_);
  if (options_.resume) {
    US_ASSIGN_OR_RETURN(
        state_, LoadTraining(File(kCheckpointName), settings_, student_->parameters(), pool_));
    log_sums_.copy_(
        at::tensor({state_.log_sums[0], state_.log_sums[1], state_.log_sums[2]}, at::kDouble));
    first_step_ = state_.step;
    first_seconds_ = state_.seconds;
    Note(absl::StrCat("resuming after step ", state_.step));
    return IsMain() ? log_.Continue(state_.step) : absl::OkStatus();
  }
  if (IsMain()) {
    std::error_code ignored;
    for (const char* name : {kCheckpointName, kBestName}) {
      std::filesystem::remove(File(name), ignored);
    }
    US_RETURN_IF_ERROR(log_.Begin());
    US_ASSIGN_OR_RETURN(state_.perplexity_teacher, Evaluate(*teacher_));
    US_RETURN_IF_ERROR(EvaluateStudent());
    state_.perplexity_before = state_.perplexity_last;
    Note(absl::StrFormat("perplexity %.3f before, the dense model's %.3f, on %d tokens",
                         state_.perplexity_before, state_.perplexity_teacher,
                         texts_->eval_tokens().size() - 1));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Finetuner::Evaluate(const Decoder& decoder) {
  PerplexityOptions options;
  options.window_tokens = options_.window_tokens;
  options.windows_at_once =
      std::max<int64_t>(1, options_.batch_windows / place_.size / options_.accumulation);
  options.progress = [this](int64_t done, int64_t total) {
    Progress(FinetuneProgress::Stage::kEvaluating, done, total);
    // One process alone cannot stop, with the others waiting for it.
    return group_ != nullptr || !Cancelled();
  };
  return Perplexity(decoder, texts_->eval_tokens(), options);
}

bool Finetuner::EvaluationIsDue() const {
  if (state_.evaluated_step == state_.step) return false;
  return state_.step == options_.num_steps ||
         (options_.eval_every > 0 && state_.step % options_.eval_every == 0);
}

absl::Status Finetuner::EvaluateStudent() {
  if (!IsMain()) {
    state_.evaluated_step = state_.step;
    return absl::OkStatus();
  }
  US_ASSIGN_OR_RETURN(const double perplexity, Evaluate(*student_));
  state_.evaluated_step = state_.step;
  state_.perplexity_last = std::isfinite(perplexity) ? perplexity : kDivergedPerplexity;
  US_RETURN_IF_ERROR(
      log_.Add(EvaluationRecord{state_.step, state_.step * StepTokens(), perplexity}));
  if (state_.best_perplexity == 0 || perplexity < state_.best_perplexity) {
    state_.best_perplexity = state_.perplexity_last;
    state_.best_step = state_.step;
    US_RETURN_IF_ERROR(SaveParameters(File(kBestName), student_->parameters()));
  }
  return log_.WriteCurves();
}

double Finetuner::LearningRateFactor() const {
  const int64_t warmup = WarmupSteps();
  const double rise =
      warmup == 0
          ? 1
          : std::min(1.0, static_cast<double>(state_.step + 1) / static_cast<double>(warmup));
  constexpr double kPi = 3.14159265358979323846;
  return rise * 0.5 *
         (1 + std::cos(kPi * static_cast<double>(state_.step) /
                       static_cast<double>(options_.num_steps)));
}

at::Tensor Finetuner::NextIds() {
  const int64_t own_windows = options_.batch_windows / place_.size;
  at::Tensor ids = at::empty({own_windows, options_.window_tokens}, at::kLong);
  texts_->CopyWindows(state_.step * options_.batch_windows + place_.rank * own_windows, own_windows,
                      ids.data_ptr<int64_t>());
  return ids;
}

void Finetuner::WaitForOthers() {
  if (group_ == nullptr) return;
  at::Tensor nothing = at::zeros({1}, at::TensorOptions().device(device_.compute.device));
  group_->Average(nothing);
  nothing.item<float>();
}

// Whether some process was told to stop. Every process gets the same answer.
bool Finetuner::AllAgreeToStop() {
  if (group_ == nullptr) return Cancelled();
  at::Tensor flag = at::full({1}, Cancelled() ? 1.0 : 0.0,
                             at::TensorOptions().dtype(at::kFloat).device(device_.compute.device));
  group_->Average(flag);
  return flag.item<float>() > 0;
}

// Writes what happened since the last record, in `seconds`.
absl::Status Finetuner::Record(double seconds) {
  at::Tensor sums = log_sums_;
  if (group_ != nullptr) {
    sums = sums.to(at::kFloat);
    group_->Average(sums);
  }
  sums = sums.to(at::kCPU, at::kDouble) / static_cast<double>(state_.log_steps);
  const double* mean = sums.data_ptr<double>();
  const int64_t steps = state_.log_steps;
  log_sums_.zero_();
  state_.log_steps = 0;
  if (!std::isfinite(mean[0]) || !std::isfinite(mean[2])) {
    return absl::AbortedError(absl::StrCat(
        "the loss is not finite any more after step ", state_.step,
        ": try lower learning rates (--lr, --lr-other, --lr-embedding), or --precision "
        "fp32. What was best before is kept"));
  }
  state_.smoothed_loss = state_.smoothed_loss == 0
                             ? mean[0]
                             : kSmoothing * state_.smoothed_loss + (1 - kSmoothing) * mean[0];
  const bool warm = state_.step > WarmupSteps();
  if (warm &&
      (state_.least_smoothed_loss == 0 || state_.smoothed_loss < state_.least_smoothed_loss)) {
    state_.least_smoothed_loss = state_.smoothed_loss;
  }
  late_tokens_per_second_ = static_cast<double>(steps * StepTokens()) / std::max(seconds, 1e-9);
  if (IsMain()) {
    US_RETURN_IF_ERROR(log_.Add(TrainingRecord{.step = state_.step,
                                               .tokens = state_.step * StepTokens(),
                                               .seconds = state_.seconds,
                                               .loss = mean[0],
                                               .hidden_loss = mean[1],
                                               .gradient_norm = mean[2],
                                               .learning_rate = LearningRateFactor(),
                                               .tokens_per_second = late_tokens_per_second_}));
  }
  if (warm && state_.smoothed_loss > kDivergenceFactor * state_.least_smoothed_loss) {
    return absl::AbortedError(
        absl::StrFormat("the loss has grown from %.4f to %.4f by step %d: try lower learning rates "
                        "(--lr, --lr-other, "
                        "--lr-embedding) or a longer --warmup. What was best before is kept",
                        state_.least_smoothed_loss, state_.smoothed_loss, state_.step));
  }
  return absl::OkStatus();
}

absl::Status Finetuner::Save() {
  if (!IsMain()) return absl::OkStatus();
  const at::Tensor sums = log_sums_.to(at::kCPU);
  for (size_t i = 0; i < 3; ++i) state_.log_sums[i] = sums.data_ptr<double>()[i];
  return SaveTraining(File(kCheckpointName), student_->parameters(), state_, settings_);
}

absl::Status Finetuner::Train() {
  Clock::time_point saved = Clock::now();
  Clock::time_point mark = Clock::now();
  double since_record = 0;
  // Adds the time since `mark` to that of the training.
  const auto count_time = [&] {
    const double seconds = Seconds(mark);
    state_.seconds += seconds;
    since_record += seconds;
    mark = Clock::now();
  };
  while (true) {
    if (EvaluationIsDue()) {
      const absl::Status evaluated = EvaluateStudent();
      mark = Clock::now();
      interrupted_ = absl::IsCancelled(evaluated);
      if (interrupted_) return Save();
      US_RETURN_IF_ERROR(evaluated);
    }
    const bool at_end = state_.step == options_.num_steps;
    const bool recorded = state_.log_steps == 0;
    interrupted_ = !at_end && (group_ == nullptr || recorded) && AllAgreeToStop();
    if (at_end || interrupted_ || (recorded && Seconds(saved) >= options_.checkpoint_seconds)) {
      count_time();
      US_RETURN_IF_ERROR(Save());
      saved = mark = Clock::now();
    }
    if (at_end || interrupted_) return absl::OkStatus();

    const double factor = LearningRateFactor();
    US_ASSIGN_OR_RETURN(const StepResult result,
                        training_step_->Run(NextIds(), {options_.latent_learning_rate * factor,
                                                        options_.learning_rate * factor,
                                                        table_learning_rate_ * factor}));
    log_sums_.add_(result.values);
    ++state_.step;
    ++state_.log_steps;
    const bool records = state_.step % options_.log_every == 0 || state_.step == options_.num_steps;
    if (records || EvaluationIsDue()) {
      log_sums_.sum().item<double>();  // waits for the device, so that the time is right
      count_time();
    }
    if (records) {
      US_RETURN_IF_ERROR(Record(std::exchange(since_record, 0)));
    }
    Progress(FinetuneProgress::Stage::kTraining, (state_.step - first_step_) * StepTokens(),
             (options_.num_steps - first_step_) * StepTokens());
  }
}

// Writes the best model.
absl::Status Finetuner::Finish() {
  if (!IsMain()) return absl::OkStatus();
  US_RETURN_IF_ERROR(log_.WriteCurves());
  US_RETURN_IF_ERROR(LoadParameters(File(kBestName), student_->parameters(), pool_));
  US_RETURN_IF_ERROR(student_->Export(folder_, options_.overwrite || options_.resume, pool_));
  if (state_.best_perplexity == kDivergedPerplexity) return absl::OkStatus();
  return RecordEvaluation(folder_,
                          {.perplexity = state_.best_perplexity,
                           .dense_perplexity = state_.perplexity_teacher,
                           .tokens = static_cast<int64_t>(texts_->eval_tokens().size()) - 1,
                           .context_tokens = options_.window_tokens});
}

FinetuneReport Finetuner::Report() const {
  const double steps_here = static_cast<double>(state_.step - first_step_);
  return {.is_main_process = IsMain(),
          .interrupted = interrupted_,
          .steps = state_.step,
          .tokens = state_.step * StepTokens(),
          .perplexity_teacher = state_.perplexity_teacher,
          .perplexity_before = state_.perplexity_before,
          .perplexity_after = state_.best_perplexity,
          .perplexity_last = state_.perplexity_last,
          .best_step = state_.best_step,
          .eval_tokens = static_cast<int64_t>(texts_->eval_tokens().size()) - 1,
          .last_loss = log_.training().empty() ? 0 : log_.training().back().loss,
          .tokens_per_second = steps_here * static_cast<double>(StepTokens()) /
                               std::max(state_.seconds - first_seconds_, 1e-9),
          .seconds = state_.seconds,
          .device = device_.description,
          .precision = device_.compute.type == at::kBFloat16 ? "bf16" : "fp32",
          .cuda_graph = training_step_->graph_refusal().empty()};
}

}  // namespace

absl::StatusOr<FinetuneReport> Finetune(const FinetuneOptions& options) {
  try {
    return Finetuner(options).Run();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory");
  } catch (const std::exception& error) {
    return TorchStatus(error);
  }
}

}  // namespace ultrasketch
