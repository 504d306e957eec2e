#include "engine/format/tokenizer/metaspace.h"

#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"

#include "engine/base/status.h"
#include "engine/format/tokenizer/utf8.h"

namespace ultrasketch::tokenizer_internal {
namespace {

absl::StatusOr<PrependScheme> PrependSchemeFromJson(const JsonValue& json) {
  US_ASSIGN_OR_RETURN(const std::string scheme, json.String());
  if (scheme == "always") return PrependScheme::kAlways;
  if (scheme == "first") return PrependScheme::kFirst;
  if (scheme == "never") return PrependScheme::kNever;
  return json.DataLoss(absl::StrCat("unknown prepend scheme ", Quoted(scheme)));
}

}  // namespace

absl::StatusOr<MetaspaceOptions> MetaspaceOptionsFromJson(const JsonValue& json) {
  MetaspaceOptions options;
  US_ASSIGN_OR_RETURN(const JsonValue replacement_json, json.Member("replacement"));
  US_ASSIGN_OR_RETURN(const uint32_t replacement, replacement_json.Character());
  AppendUtf8(replacement, &options.replacement);
  US_ASSIGN_OR_RETURN(options.split, json.BoolMember("split", true));

  US_ASSIGN_OR_RETURN(const auto scheme_json, json.OptionalMember("prepend_scheme"));
  // The older spelling of the same setting.
  US_ASSIGN_OR_RETURN(const auto add_prefix_space_json, json.OptionalMember("add_prefix_space"));
  bool add_prefix_space = true;
  if (add_prefix_space_json.has_value()) {
    US_ASSIGN_OR_RETURN(add_prefix_space, add_prefix_space_json->Bool());
  }
  options.prepend_scheme = add_prefix_space ? PrependScheme::kAlways : PrependScheme::kNever;
  if (scheme_json.has_value()) {
    US_ASSIGN_OR_RETURN(options.prepend_scheme, PrependSchemeFromJson(*scheme_json));
    if (!add_prefix_space && options.prepend_scheme != PrependScheme::kNever) {
      return json.DataLoss("\"add_prefix_space\": false contradicts \"prepend_scheme\"");
    }
  }
  return options;
}

}  // namespace ultrasketch::tokenizer_internal
