// Compression-aware finetuning: a compressed model learns to predict what the dense one does, by
// gradient descent through the rounding of its bits. Source: Zou et al., "Saliency-Driven Sketching
// for Ultra-Low Bit LLM Compression" (arXiv 2506.17255), section 3.3; Hinton et al., "Distilling
// the Knowledge in a Neural Network", 2015.
#ifndef ULTRASKETCH_ENGINE_FINETUNE_FINETUNE_H_
#define ULTRASKETCH_ENGINE_FINETUNE_FINETUNE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ultrasketch {

struct FinetuneProgress {
  enum class Stage : uint8_t { kTokenizing, kTraining, kEvaluating };
  Stage stage = Stage::kTraining;
  int64_t done = 0;   // by this process: bytes of text, or tokens
  int64_t total = 0;  // 0: not known
  // Of late, in training; 0: not known yet.
  double loss = 0;  // mean divergence in nats a token
  double tokens_per_second = 0;
};

struct FinetuneOptions {
  std::string teacher;                  // folder of the dense model
  std::string student;                  // folder of the compressed one
  std::vector<std::string> text_files;  // plain or .xz; or windows (token_windows.h)
  // Where there are texts and windows: the part of what is trained on that is windows.
  double windows_share = 0.5;
  std::string eval_file;  // plain or .xz; empty: the end of the text, which is held out then
  std::string out;        // folder of the result. Logs and checkpoints are in "<out>.training"
  std::string cache;      // file of the tokens; empty: one in "<out>.training"

  int64_t num_steps = 500;
  int64_t batch_windows = 16;  // of a step, over all processes
  int64_t window_tokens = 512;
  int64_t accumulation = 1;  // parts that a process takes its windows in
  double latent_learning_rate = 2e-2;
  double learning_rate = 2e-2;        // of row scales, norms and biases
  double table_learning_rate = 2e-2;  // in units of the tables' root mean square
  bool train_tables = true;           // token embedding and output head
  int64_t warmup_steps = 50;          // at most a tenth of num_steps
  double max_gradient_norm = 1.0;
  double hidden_loss = 0;  // see DistillationOptions
  uint64_t seed = 0;       // of the order of the windows
  bool start_from_teacher = false;
  bool gradient_to_all = false;  // of absmaxmin: SketchGradient::kAll

  std::string device = "auto";      // "auto", "cpu", "cuda" or "cuda:N"
  std::string precision = "auto";   // "bf16", "fp32"; "auto": bf16 on CUDA
  std::string cuda_graph = "auto";  // "auto", "on", "off"
  int num_threads = 0;              // 0: all that the process may use
  bool checkpoint_activations = false;

  int64_t eval_max_tokens = 100000;
  int64_t eval_every = 250;  // steps; 0: at the end only
  int64_t log_every = 10;    // steps
  double checkpoint_seconds = 300;
  bool resume = false;
  bool overwrite = false;  // the model at `out`, and the checkpoint of an interrupted run

  std::function<void(const FinetuneProgress&)> progress;  // may be empty
  // One line for the user, now and then. May be empty.
  std::function<void(const std::string&)> note;
  // When it becomes true, the training ends soon: a checkpoint is written, and the best model so
  // far. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

struct FinetuneReport {
  bool is_main_process = true;  // the others have no results to show
  bool interrupted = false;     // --resume goes on from here
  int64_t steps = 0;            // taken in all, before an interruption too
  int64_t tokens = 0;           // trained on
  double perplexity_teacher = 0;
  double perplexity_before = 0;
  double perplexity_after = 0;  // of the model in `out`: the best of the evaluations
  double perplexity_last = 0;   // of the last one
  int64_t best_step = 0;
  int64_t eval_tokens = 0;
  double last_loss = 0;
  double tokens_per_second = 0;  // of training alone, teacher's pass included
  double seconds = 0;            // of training alone, before an interruption too
  std::string device;
  std::string precision;
  bool cuda_graph = false;
};

// Trains and writes the best model to `out`. The same options, texts and models give the same
// losses on one machine's CPU, interrupted and resumed or not.
//
// INVALID_ARGUMENT for options that make no sense or models that do not belong together;
// FAILED_PRECONDITION for a `resume` with nothing to resume, or with other options (it names the
// difference), and for a checkpoint that neither `resume` nor `overwrite` speaks of;
// RESOURCE_EXHAUSTED when memory runs out; ABORTED, with advice, when the loss becomes infinite or
// grows far beyond what it was: `out` has the best model before that. Processes that torchrun
// started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK) share the work.
absl::StatusOr<FinetuneReport> Finetune(const FinetuneOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_FINETUNE_FINETUNE_H_
