#include "engine/format/tokenizer/decoder.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/decoder_stages.h"

namespace ultrasketch::tokenizer_internal {
namespace {

absl::StatusOr<std::unique_ptr<DecoderStage>> ReplaceFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const JsonValue pattern_json, json.Member("pattern"));
  US_ASSIGN_OR_RETURN(Pattern pattern, Pattern::FromJson(pattern_json));
  US_ASSIGN_OR_RETURN(const JsonValue content_json, json.Member("content"));
  US_ASSIGN_OR_RETURN(std::string content, content_json.String());
  if (!pattern.literal().empty()) {
    return MakeReplaceLiteralStage(pattern.literal(), std::move(content));
  }
  return MakeReplaceRegexStage(std::make_shared<const Pattern>(std::move(pattern)),
                               std::move(content));
}

absl::StatusOr<std::unique_ptr<DecoderStage>> StripFromJson(const JsonValue& json) {
  constexpr int64_t kMaxCount = 1 << 20;
  US_ASSIGN_OR_RETURN(const JsonValue content_json, json.Member("content"));
  US_ASSIGN_OR_RETURN(const uint32_t content, content_json.Character());
  US_ASSIGN_OR_RETURN(const JsonValue start_json, json.Member("start"));
  US_ASSIGN_OR_RETURN(const int64_t start, start_json.Int(0, kMaxCount));
  US_ASSIGN_OR_RETURN(const JsonValue stop_json, json.Member("stop"));
  US_ASSIGN_OR_RETURN(const int64_t stop, stop_json.Int(0, kMaxCount));
  return MakeStripStage(content, start, stop);
}

absl::StatusOr<std::unique_ptr<DecoderStage>> MetaspaceFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(MetaspaceOptions options, MetaspaceOptionsFromJson(json));
  return MakeMetaspaceStage(std::move(options));
}

absl::StatusOr<std::unique_ptr<DecoderStage>> StageFromJson(const JsonValue& json,
                                                            IllFormedBytes ill_formed) {
  US_ASSIGN_OR_RETURN(const std::string type, json.Type());
  if (type == "ByteLevel") return MakeByteLevelStage(ill_formed);
  if (type == "ByteFallback") return MakeByteFallbackStage(ill_formed);
  if (type == "Fuse") return MakeFuseStage();
  if (type == "Replace") return ReplaceFromJson(json);
  if (type == "Strip") return StripFromJson(json);
  if (type == "Metaspace") return MetaspaceFromJson(json);
  return json.Unimplemented(absl::StrCat("decoder ", Quoted(type), " is not supported"));
}

}  // namespace

// What a stage hands its tokens to: the next stage, or the text.
class StageSink : public TokenSink {
 public:
  StageSink(DecoderPipeline* pipeline, size_t stage, std::string* text)
      : pipeline_(pipeline), stage_(stage), text_(text) {}

  void Add(std::string_view part, bool ends_token) override {
    if (stage_ == pipeline_->stages_.size()) {
      *text_ += part;
      return;
    }
    StageSink next(pipeline_, stage_ + 1, text_);
    pipeline_->stages_[stage_]->Add(part, ends_token, next);
  }

 private:
  DecoderPipeline* pipeline_;
  size_t stage_;  // the stage that is given the tokens
  std::string* text_;
};

DecoderPipeline::DecoderPipeline() { stages_.push_back(MakeJoinStage(" ")); }

DecoderPipeline::DecoderPipeline(const DecoderPipeline& other) { *this = other; }

DecoderPipeline& DecoderPipeline::operator=(const DecoderPipeline& other) {
  std::vector<std::unique_ptr<DecoderStage>> stages;
  stages.reserve(other.stages_.size());
  for (const auto& stage : other.stages_) stages.push_back(stage->Clone());
  stages_ = std::move(stages);
  return *this;
}

absl::StatusOr<DecoderPipeline> DecoderPipeline::FromJson(const JsonValue& json,
                                                          IllFormedBytes ill_formed) {
  DecoderPipeline pipeline;
  pipeline.stages_.clear();
  US_RETURN_IF_ERROR(pipeline.Append(json, ill_formed));
  return pipeline;
}

absl::Status DecoderPipeline::Append(const JsonValue& json, IllFormedBytes ill_formed) {
  US_ASSIGN_OR_RETURN(const std::string type, json.Type());
  if (type == "Sequence") {
    US_ASSIGN_OR_RETURN(const JsonValue list, json.Member("decoders"));
    US_ASSIGN_OR_RETURN(const std::vector<JsonValue> elements, list.Elements());
    for (const JsonValue& element : elements) US_RETURN_IF_ERROR(Append(element, ill_formed));
    return absl::OkStatus();
  }
  constexpr size_t kMaxStages = 64;  // tokens pass through them recursively
  if (stages_.size() == kMaxStages) return json.Unimplemented("more than 64 decoders");
  US_ASSIGN_OR_RETURN(stages_.emplace_back(), StageFromJson(json, ill_formed));
  return absl::OkStatus();
}

void DecoderPipeline::Add(std::string_view token, std::string* text) {
  StageSink(this, 0, text).Add(token, /*ends_token=*/true);
}

void DecoderPipeline::Finish(std::string* text) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    StageSink next(this, i + 1, text);
    stages_[i]->Finish(next);
  }
}

}  // namespace ultrasketch::tokenizer_internal
