// Tiny dense models and compressed forms of them.
#ifndef ULTRASKETCH_TESTS_FINETUNE_TINY_STUDENT_H_
#define ULTRASKETCH_TESTS_FINETUNE_TINY_STUDENT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/codecs/absmaxmin/absmaxmin_linear.h"
#include "engine/codecs/fold/fold_linear.h"
#include "tests/models/tiny_model.h"

namespace ultrasketch {

// How the linear sites of a student are stored.
enum class TinyCodec : uint8_t {
  kFold,        // two and three columns to a bucket
  kFoldPlanes,  // a column to a group, in one and two bit planes
  kAbsMaxMin,   // columns with buckets of their own, and shared ones in two and three hash rows
};

// `weights` [rows, cols] in folded form: the signs of the groups' signed means, and their mean
// magnitude as the scale.
std::unique_ptr<FoldLinear> MakeTinyFold(const LinearSite& site, const std::vector<float>& weights,
                                         bool planes);

// `weights` [rows, cols] as a sketch.
std::unique_ptr<AbsMaxMinLinear> MakeTinySketch(const LinearSite& site,
                                                const std::vector<float>& weights);

// A site of `rows` by `cols` that is no model's.
LinearSite LoneSite(int64_t rows, int64_t cols);

// Writes a dense model to `teacher` and a compressed form of it to `student`, each with the sample
// model's tokenizer. The student's embedding and head are int8, or `table`: "int4", or "keep".
void WriteTinyPair(const nlohmann::json& config_changes, TinyCodec codec, const std::string& table,
                   const std::string& teacher, const std::string& student);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_TESTS_FINETUNE_TINY_STUDENT_H_
