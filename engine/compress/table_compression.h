// The token embedding and the output head of a compressed model.
#ifndef ULTRASKETCH_ENGINE_COMPRESS_TABLE_COMPRESSION_H_
#define ULTRASKETCH_ENGINE_COMPRESS_TABLE_COMPRESSION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "engine/base/thread_pool.h"
#include "engine/codecs/grouped/grouped_table.h"
#include "engine/format/checkpoint.h"

namespace ultrasketch {

// How the tables are stored; none: as in the dense model.
struct TableTypes {
  std::optional<GroupedType> embedding;
  std::optional<GroupedType> head;  // none where the embedding is the head
};

// From the options' words: "auto", "keep", "int8" or "int4" each. "auto" is int8 where the linear
// layers have less than two bits per weight, else "keep". INVALID_ARGUMENT for another word, or for
// a head that is the embedding and should be stored otherwise than that.
absl::StatusOr<TableTypes> ChooseTableTypes(const ModelConfig& config, std::string_view embedding,
                                            std::string_view head, double bits_per_weight);

// What quantization_config says of them.
nlohmann::json TableParameters(const TableTypes& types);

// Bytes that the tables of integers take, in memory and in the file.
int64_t TableBytes(const ModelConfig& config, const TableTypes& types);

struct CompressedTables {
  // Null for a table that stays as it is.
  std::unique_ptr<GroupedTable> embedding;
  std::unique_ptr<GroupedTable> head;
};

// Rounds the tables of a dense checkpoint, row by row: they are never held as floats. Errors are
// those of reading the checkpoint. The result owns its memory.
absl::StatusOr<CompressedTables> CompressTables(const Checkpoint& checkpoint,
                                                const TableTypes& types, ThreadPool& pool);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_COMPRESS_TABLE_COMPRESSION_H_
