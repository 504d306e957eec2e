// The quality report of a compression: one HTML page that needs nothing else, and the same data as
// JSON.
#ifndef ULTRASKETCH_ENGINE_REPORT_COMPRESSION_PAGE_H_
#define ULTRASKETCH_ENGINE_REPORT_COMPRESSION_PAGE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

#include "engine/compress/compressor.h"
#include "engine/compress/evaluate.h"
#include "engine/format/model_config.h"

namespace ultrasketch {

// The dense and the compressed model on one text.
struct EvaluationPair {
  std::string text_name;
  int64_t context = 0;
  Evaluation dense;
  Evaluation compressed;
};

// What the report tells.
struct CompressionSummary {
  std::string model_name;       // of the dense model
  std::string compressed_name;  // of what was written
  ModelConfig config;
  CompressOptions options;
  int64_t dense_bytes = 0;  // of the dense model's files
  CompressionReport report;
  std::optional<EvaluationPair> evaluation;
};

// The two files of a report that was asked for as `path`: without ".html" or ".json" at its end if
// it has that, then with ".html" and ".json" added.
struct ReportFiles {
  std::string html;
  std::string json;
};
ReportFiles NameReportFiles(std::string_view path);

// Whether both files can be written, found out by trying, without leaving anything behind: to be
// asked before work that takes long. What AtomicFileWriter returns; INVALID_ARGUMENT for a name
// that is a folder's.
absl::Status CheckReportFiles(const ReportFiles& files);

// The summary as JSON: "model", "compressed", "options", what ToJson(CompressionReport) has with
// "layer", "kind" and "share" (of all sites' bytes) in every site, and "evaluation" or null.
// Numbers that are not finite are null.
nlohmann::ordered_json CompressionJson(const CompressionSummary& summary);

std::string CompressionHtml(const CompressionSummary& summary);

// Writes both, each atomically.
absl::Status WriteCompressionReport(const CompressionSummary& summary, const ReportFiles& files);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_REPORT_COMPRESSION_PAGE_H_
