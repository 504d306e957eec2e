#include "engine/report/compression_page.h"

#include <cmath>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/models/layer_table.h"
#include "tests/base/temporary_folder.h"
#include "tests/report/markup.h"

namespace ultrasketch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

CompressionSummary MakeSummary(int num_layers, bool calibrated) {
  CompressionSummary summary;
  summary.model_name = "some <model> & more";
  summary.compressed_name = "smaller";
  const auto config = ParseModelConfig({{"model_type", "llama"},
                                        {"vocab_size", 100},
                                        {"hidden_size", 64},
                                        {"intermediate_size", 128},
                                        {"num_hidden_layers", num_layers},
                                        {"num_attention_heads", 4}},
                                       "config");
  EXPECT_TRUE(config.ok()) << config.status();
  summary.config = *config;
  summary.dense_bytes = 1'000'000;
  CompressionReport& report = summary.report;
  report.bits_per_weight_linear = 0.4987;
  report.bits_per_weight_file = 3.25;
  report.bytes = 200'000;
  report.seconds = 12.34;
  report.parameters = 1'234'567;
  report.calibration_source = calibrated ? "files" : "none";
  report.calibration_tokens = calibrated ? 65536 : 0;
  if (calibrated) summary.options.calibration_files = {"folder/novels \"old\".txt"};
  for (const LinearSite& place : LinearSites(summary.config)) {
    CompressedSite site;
    site.name = place.name;
    site.rows = place.rows;
    site.cols = place.cols;
    site.bytes = 100 * (1 + place.layer);
    site.bits_per_weight = 8.0 * static_cast<double>(site.bytes) / (place.rows * place.cols);
    site.relative_weight_error = 0.7;
    site.relative_output_error = calibrated ? 0.5 : std::nan("");
    const bool writes_residual =
        place.kind == SiteKind::kAttentionOutput || place.kind == SiteKind::kMlpOutput;
    site.relative_residual_error = calibrated && writes_residual ? 0.25 : std::nan("");
    report.sites.push_back(site);
  }
  return summary;
}

EvaluationPair MakeEvaluation() {
  EvaluationPair pair;
  pair.text_name = "valid.txt";
  pair.context = 512;
  pair.dense = {.perplexity = 20, .nll = std::log(20), .tokens = 4999};
  pair.compressed = {.perplexity = 50, .nll = std::log(50), .tokens = 4999};
  return pair;
}

TEST(ReportFilesTest, AreNamedAfterThePath) {
  for (const char* path : {"out/r", "out/r.html", "out/r.json"}) {
    EXPECT_EQ(NameReportFiles(path).html, "out/r.html") << path;
    EXPECT_EQ(NameReportFiles(path).json, "out/r.json") << path;
  }
  EXPECT_EQ(NameReportFiles("r.html.json").html, "r.html.html");
  EXPECT_EQ(NameReportFiles("v0.5").json, "v0.5.json");
  EXPECT_EQ(NameReportFiles("out/.html").html, "out/.html.html");
}

TEST(ReportFilesTest, AreTriedBeforeTheWork) {
  const TemporaryFolder folder;
  EXPECT_TRUE(CheckReportFiles(NameReportFiles(folder.File("r"))).ok());
  EXPECT_THAT(folder.List(), IsEmpty());
  EXPECT_EQ(CheckReportFiles(NameReportFiles(folder.File("none/r"))).code(),
            absl::StatusCode::kNotFound);
  std::filesystem::create_directory(folder.File("r.json"));
  EXPECT_EQ(CheckReportFiles(NameReportFiles(folder.File("r"))).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CompressionJsonTest, HasEverySiteAndNumber) {
  CompressionSummary summary = MakeSummary(3, /*calibrated=*/true);
  nlohmann::ordered_json json = CompressionJson(summary);
  EXPECT_EQ(json["model"], "some <model> & more");
  EXPECT_EQ(json["bits_per_weight_linear"], 0.4987);
  EXPECT_EQ(json["dense_bytes"], 1'000'000);
  EXPECT_EQ(json["options"]["codec"], "fold");
  EXPECT_TRUE(json["evaluation"].is_null());
  ASSERT_EQ(json["sites"].size(), 12u);
  EXPECT_EQ(json["sites"][6]["name"], "model.layers.1.mlp_input");
  EXPECT_EQ(json["sites"][6]["layer"], 1);
  EXPECT_EQ(json["sites"][6]["kind"], "mlp_input");
  EXPECT_TRUE(json["sites"][6]["relative_residual_error"].is_null());
  EXPECT_EQ(json["sites"][7]["relative_residual_error"], 0.25);
  double share = 0;
  for (const auto& site : json["sites"]) share += site["share"].get<double>();
  EXPECT_NEAR(share, 1, 1e-12);

  summary.evaluation = MakeEvaluation();
  json = CompressionJson(summary);
  EXPECT_EQ(json["evaluation"]["perplexity_before"], 20);
  EXPECT_EQ(json["evaluation"]["perplexity_after"], 50);
  EXPECT_EQ(json["evaluation"]["perplexity_ratio"], 2.5);
  EXPECT_EQ(json["evaluation"]["text"], "valid.txt");
  EXPECT_EQ(json["evaluation"]["tokens"], 4999);
}

TEST(CompressionHtmlTest, IsOnePageThatNeedsNothingElse) {
  CompressionSummary summary = MakeSummary(3, /*calibrated=*/true);
  summary.evaluation = MakeEvaluation();
  const std::string html = CompressionHtml(summary);
  EXPECT_EQ(MarkupProblem(html), "");
  for (const char* foreign : {"<script", "http", "<img", "<link", "url(", "@import"}) {
    EXPECT_THAT(html, Not(HasSubstr(foreign)));
  }
  EXPECT_THAT(html, HasSubstr("<title>some &lt;model&gt; &amp; more at 0.499 bits per weight"));
  EXPECT_THAT(html, HasSubstr(">0.4987<"));
  EXPECT_THAT(html, HasSubstr("dense 1.00 MB: 5.0 times smaller"));
  EXPECT_THAT(html, HasSubstr("tokens of novels &quot;old&quot;.txt"));
  EXPECT_THAT(html, HasSubstr(">20 → 50<"));
  EXPECT_THAT(html, HasSubstr("2.50 times, on 4\u202f999 tokens of valid.txt, context 512"));
  for (const LinearSite& site : LinearSites(summary.config)) {
    EXPECT_THAT(html, HasSubstr(absl::StrCat("<tr><th>", site.name, "</th>")));
  }
}

TEST(CompressionHtmlTest, SaysWhatWasNotMeasured) {
  const std::string html = CompressionHtml(MakeSummary(1, /*calibrated=*/false));
  EXPECT_EQ(MarkupProblem(html), "");
  EXPECT_THAT(html, HasSubstr("Not measured"));
  EXPECT_THAT(html, HasSubstr("fitted to the weights alone"));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("Perplexity")));
}

TEST(CompressionHtmlTest, SaysWhatTooLittleTextLeftUnmeasured) {
  CompressionSummary summary = MakeSummary(1, /*calibrated=*/true);
  for (CompressedSite& site : summary.report.sites) {
    site.relative_output_error = site.relative_residual_error = std::nan("");
  }
  summary.report.warnings = {"3 tokens <of> text"};
  const std::string html = CompressionHtml(summary);
  EXPECT_EQ(MarkupProblem(html), "");
  EXPECT_THAT(html, HasSubstr("Not measured: the model was fitted to too few tokens"));
  EXPECT_THAT(html, HasSubstr("Warning: 3 tokens &lt;of&gt; text."));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("0.0000")));
}

TEST(CompressionHtmlTest, HoldsDeepModels) {
  const std::string html = CompressionHtml(MakeSummary(126, /*calibrated=*/true));
  EXPECT_EQ(MarkupProblem(html), "");
}

TEST(WriteCompressionReportTest, WritesBothFiles) {
  const TemporaryFolder folder;
  const CompressionSummary summary = MakeSummary(2, /*calibrated=*/true);
  ASSERT_TRUE(WriteCompressionReport(summary, NameReportFiles(folder.File("r"))).ok());
  EXPECT_THAT(folder.List(), ElementsAre("r.html", "r.json"));
  EXPECT_EQ(*ReadFile(folder.File("r.html")), CompressionHtml(summary));
  EXPECT_EQ(nlohmann::ordered_json::parse(*ReadFile(folder.File("r.json"))),
            CompressionJson(summary));
}

}  // namespace
}  // namespace ultrasketch
