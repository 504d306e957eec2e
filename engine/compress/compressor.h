// From a dense checkpoint to a compressed one.
//
// Every linear site is re-encoded by a codec. The sites are fitted in order of execution on a
// calibration text, each to the inputs that the already compressed part of the model gives it
// (layer_fit.h has the method). The norms' weights are refitted with them; the token embedding and
// the output head may be rounded to integers (table_compression.h); all other tensors are copied as
// they are.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_COMPRESSOR_H_
#define ULTRASKETCH_ENGINE_COMPRESS_COMPRESSOR_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

#include "engine/compress/fit_device.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

// What a compression is doing. Called from the compressing thread, at the start of every stage and
// whenever the fraction has grown noticeably.
struct CompressProgress {
  std::string_view stage;  // "calibration text", "layer 3 of 10", "writing", ...
  double fraction = 0;     // of the whole work, estimated, in [0, 1], never falling
};

// Bytes of memory that compressing takes at its peak, estimated from above: activations of the
// calibration text, the weights of one layer, the moments of one site, or the cache with which the
// model writes its own text.
struct CompressionMemory {
  int64_t host_bytes = 0;    // beside the checkpoint's mapped files, which use what there is
  int64_t device_bytes = 0;  // of a GPU; 0 without one
};

// What is known before the work begins.
struct CompressionStart {
  CompressionMemory memory;
  std::string device;                  // "cpu", "cuda:0"
  std::string device_description;      // for people
  int64_t device_available_bytes = 0;  // of a GPU
};

struct CompressOptions {
  // A name of CodecNames() that can be encoded: "fold" or "absmaxmin".
  std::string codec = "fold";

  // Of codec absmaxmin alone (absmaxmin_plan.h): hash rows of the buckets that columns share; bits
  // of a bucket, 0: what suits bits_per_weight; and the part of a row's bits that goes to columns
  // with buckets of their own.
  int64_t absmaxmin_hash_rows = 3;
  int64_t absmaxmin_bucket_bits = 0;
  double absmaxmin_own_share = 1;

  // Upper bound of bits per weight (linear), side data included. The result is as close below it
  // as the codec's layout allows.
  double bits_per_weight = 0.5;

  // How the token embedding and an output head of its own are stored: "auto" (int8 below 2 bits per
  // weight, else as they are), "keep", "int8" or "int4".
  std::string embedding = "auto";
  std::string head = "auto";

  // Where the arithmetic is done: "cpu", "cuda", "cuda:N" or "auto" (a CUDA device when there is
  // one, else the CPU). Results of different devices differ in roundings, which now and then turn a
  // bit.
  std::string device = "auto";

  // Of the hash, and of the model's own samples when there is no calibration text.
  uint64_t seed = 0;

  // 0: all that the process may use. The result does not depend on it.
  int num_threads = 0;

  // Text files, UTF-8, plain or xz (by name: ".xz"), read in this order until there is enough.
  // Without any the dense model writes its own text.
  std::vector<std::string> calibration_files;

  // Windows of calibration text and tokens in each. No windows: the sites are fitted to the weights
  // alone, which is quick and much worse.
  int64_t calibration_windows = 128;
  int64_t calibration_window_tokens = 512;

  // Whether every window of calibration text begins with what the tokenizer's template puts before
  // a text, as the text of a request does.
  bool add_special_tokens = true;

  // Goes on from the last layer that an interrupted compression with the same options finished.
  // What has been finished is kept beside the output folder, under its name with ".partial" added,
  // until the compression is complete.
  bool resume = false;

  // Replaces a compressed model at the output folder. Without it a folder that is not empty is an
  // error, and always one with something else in it.
  bool overwrite = false;

  // Called once, when all options have been found to be possible and before anything is done. May
  // be empty.
  std::function<void(const CompressionStart& start)> on_start;

  std::function<void(const CompressProgress&)> progress;  // may be empty

  // What CompressionReport::warnings will have, as soon as it is known. May be empty.
  std::function<void(std::string_view warning)> on_warning;

  // When it becomes true, the compression ends soon with CANCELLED and leaves nothing behind but
  // the layers that were finished. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

struct CompressedSite {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t bytes = 0;  // of all tensors that stand in for the weights
  double bits_per_weight = 0;
  // |W' - W|^2 / |W|^2 over the site's weights.
  double relative_weight_error = 0;
  // |y' - y|^2 / |y|^2 over the calibration tokens: y is what the site was fitted to, y' what the
  // compressed site gives. NaN when it was fitted to the weights alone, or to fewer tokens than the
  // residual stream is wide: so few are matched by weights that are wrong everywhere else.
  double relative_output_error = 0;
  // |h' - h|^2 / |h|^2 of the residual stream after the site, compressed and dense. NaN for sites
  // that do not write to it, and where the output error is.
  double relative_residual_error = 0;
};

struct CompressionReport {
  double bits_per_weight_linear = 0;
  double bits_per_weight_file = 0;
  int64_t bytes = 0;  // of the compressed model's files
  double seconds = 0;
  int64_t parameters = 0;          // of the dense model
  int64_t calibration_tokens = 0;  // 0 when fitted to the weights alone
  std::string device;              // "cpu", "cuda:0"
  int64_t estimated_memory_bytes = 0;
  int64_t estimated_device_memory_bytes = 0;  // of a GPU
  int64_t peak_device_memory_bytes = 0;       // what the fit really took of it
  int resumed_layers = 0;                     // finished by an earlier compression
  // "files", "self-generated" or "none".
  std::string calibration_source;
  std::vector<CompressedSite> sites;  // in order of execution
  // What may have made the model worse than it could be: a sentence each, without an end of line.
  std::vector<std::string> warnings;
};

// The keys that `ultrasketch compress --json` prints: the report's field names. NaN becomes null.
nlohmann::json ToJson(const CompressionReport& report);

// Of a model whose files have `checkpoint_bytes`. Valid options; `device` is theirs.
CompressionMemory EstimateCompressionMemory(const ModelConfig& config, int64_t checkpoint_bytes,
                                            const CompressOptions& options,
                                            const FitDevice& device);

// Compresses `checkpoint` to the folder `out_folder`, which appears whole or not at all: it is
// written to the folder with ".partial" added and renamed.
//
// UNAVAILABLE when there is no such device, RESOURCE_EXHAUSTED when its memory does not suffice;
// INVALID_ARGUMENT for options out of range and a checkpoint that is compressed already;
// OUT_OF_RANGE for a target that the codec cannot meet; what ResolveOutputFolder (model_writer.h)
// says of the output folder; CANCELLED; otherwise what reading the checkpoint and writing the
// folder return.
absl::StatusOr<CompressionReport> CompressCheckpoint(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const std::string& out_folder,
                                                     const CompressOptions& options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_COMPRESSOR_H_
