// What a compression has finished, on disk, so that an interrupted one can go on.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_FIT_JOURNAL_H_
#define ULTRASKETCH_ENGINE_COMPRESS_FIT_JOURNAL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "nlohmann/json.hpp"

#include "engine/codecs/linear_site.h"
#include "engine/compress/calibration.h"
#include "engine/compress/layer_fit.h"

namespace ultrasketch {

// A folder with a file that says what is being compressed and how, the calibration text, what the
// bits were spread by, one file for each finished layer, and in the end the model, before it goes
// to its place. Every file appears whole or not at all. One process at a time: the folder is
// locked. Not thread-safe.
class FitJournal {
 public:
  // Opens `folder`. `description` is everything that the result depends on. With `resume` what the
  // folder has is kept, and must have been made for the same description: else FAILED_PRECONDITION
  // naming the key that differs. A damaged layer counts as not finished. Without it, or when there
  // is nothing, the folder starts empty. UNAVAILABLE when another process has it open;
  // FAILED_PRECONDITION, and nothing is touched, when there is something at `folder` that a journal
  // has not made.
  static absl::StatusOr<std::unique_ptr<FitJournal>> Open(const std::string& folder,
                                                          const nlohmann::json& description,
                                                          bool resume);

  // Removes the folder unless a layer has been finished.
  ~FitJournal();
  FitJournal(const FitJournal&) = delete;
  FitJournal& operator=(const FitJournal&) = delete;

  const std::string& folder() const { return folder_; }
  // For the model until it is complete: a name in the folder. There is nothing of that name at
  // first.
  std::string model_folder() const;

  // The text and the importance of the sites, together: what comes before the first layer.
  bool has_preparation() const { return !importance_.empty(); }
  const CalibrationText& text() const { return text_; }
  const std::vector<double>& importance() const { return importance_; }
  absl::Status SetPreparation(CalibrationText text, std::vector<double> importance);

  // Layers 0 to num_layers() - 1 are finished.
  int num_layers() const { return num_layers_; }
  absl::Status AppendLayer(const FittedLayer& layer);
  // `sites` are the layer's. DATA_LOSS for a damaged file, naming it.
  absl::StatusOr<FittedLayer> ReadLayer(int layer, absl::Span<const LinearSite> sites,
                                        const nlohmann::json& quantization_config) const;

  // The work is done: removes the folder. What ReadLayer returned stays valid.
  absl::Status Remove();

 private:
  explicit FitJournal(std::string folder) : folder_(std::move(folder)) {}

  absl::Status Load(const nlohmann::json& description);
  absl::Status ReadPreparation();
  std::string PathOf(const std::string& name) const;
  std::string LayerPath(int layer) const;

  const std::string folder_;
  int lock_ = -1;
  bool removed_ = false;
  CalibrationText text_;
  std::vector<double> importance_;
  int num_layers_ = 0;
};

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_FIT_JOURNAL_H_
