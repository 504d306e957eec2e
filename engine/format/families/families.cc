#include <array>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "engine/base/strings.h"
#include "engine/format/families/family.h"

namespace ultrasketch {
namespace {

// The registry.
constexpr std::array kFamilies = {&kLlamaFamily, &kMistralFamily, &kQwen2Family, &kQwen3Family,
                                  &kSmolLm3Family};

}  // namespace

const Family* FindFamily(std::string_view model_type) {
  for (const Family* family : kFamilies) {
    if (family->model_type == model_type) return family;
  }
  return nullptr;
}

std::string SupportedFamilies() {
  std::vector<std::string> names;
  for (const Family* family : kFamilies) names.emplace_back(family->model_type);
  const std::string last = names.back();
  names.pop_back();
  return absl::StrCat(absl::StrJoin(names, ", "), " and ", last);
}

}  // namespace ultrasketch
