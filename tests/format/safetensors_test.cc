#include "engine/format/safetensors.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/base/file.h"
#include "engine/base/thread_pool.h"
#include "engine/format/checksum.h"
#include "engine/format/json.h"
#include "tests/base/temporary_folder.h"
#include "tests/format/safetensors_bytes.h"

namespace ultrasketch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::Status ParseStatus(const std::string& bytes) {
  return SafetensorsFile::Parse(bytes, "test.safetensors").status();
}

// The bytes are refused as `code`, with a message that has the file's name and all `parts`.
void ExpectRejected(const std::string& bytes, const std::vector<std::string>& parts,
                    absl::StatusCode code = absl::StatusCode::kDataLoss) {
  const absl::Status status = ParseStatus(bytes);
  EXPECT_EQ(status.code(), code) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("test.safetensors: "));
  for (const std::string& part : parts) EXPECT_THAT(message, HasSubstr(part));
}

// A header whose one tensor, "t", is described by `body`, and 8 bytes of data.
std::string WithTensor(std::string_view body) {
  return SafetensorsBytes("{\"t\":" + std::string(body) + "}", "01234567");
}

TEST(SafetensorsTest, ReadsTensorsAndMetadata) {
  const std::string bytes =
      SafetensorsBytes(R"({"__metadata__":{"format":"pt","a":"b"},)"
                       R"("y":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},)"
                       R"("x":{"data_offsets":[0,8],"shape":[2,2],"dtype":"BF16"}}    )",
                       std::string("\x80\x3f\x00\x40\x40\x40\x80\x40\x01\x02\x03", 11));
  const auto file = SafetensorsFile::Parse(bytes, "here");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  EXPECT_EQ((*file)->tensors()[0].name, "x");
  EXPECT_EQ((*file)->tensors()[1].name, "y");
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->metadata().size(), 2u);
  EXPECT_EQ((*file)->file_bytes(), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ((*file)->Describe("x"), "here");
  const TensorView* x = (*file)->Find("x");
  ASSERT_NE(x, nullptr);
  EXPECT_EQ(x->dtype, DType::kBF16);
  EXPECT_THAT(x->shape, ElementsAre(2, 2));
  EXPECT_THAT(ToFloatVector(*x), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ((*file)->Find("y")->data[2], 3);
  EXPECT_EQ((*file)->Find("z"), nullptr);
  EXPECT_EQ((*file)->Find(""), nullptr);
}

// A file of the one-byte tensors "a" and "b" with `metadata`.
std::string WithMetadata(const std::string& metadata) {
  return SafetensorsBytes("{\"__metadata__\":{" + metadata +
                              R"(},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                          "xy");
}

TEST(SafetensorsTest, FilesWithoutChecksumsNeedNone) {
  const auto file = SafetensorsFile::Parse(WithMetadata(R"("ultrasketch.crc64":"z")"), "here");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_FALSE((*file)->has_checksums());
  ThreadPool pool(1);
  EXPECT_TRUE((*file)->VerifyChecksums(pool).ok());
}

TEST(SafetensorsTest, RejectsChecksumsThatDoNotFitTheTensors) {
  const std::string a = R"("ultrasketch.crc64.a":"0123456789abcdef")";
  const std::string b = R"("ultrasketch.crc64.b":"0123456789abcdef")";
  EXPECT_TRUE(ParseStatus(WithMetadata(a + "," + b)).ok());
  ExpectRejected(WithMetadata(a), {"tensor \"b\"", "checksum", "found none"});
  ExpectRejected(WithMetadata(b), {"tensor \"a\"", "checksum", "found none"});
  ExpectRejected(WithMetadata(a + "," + b + R"(,"ultrasketch.crc64.c":"0123456789abcdef")"),
                 {"\"c\"", "no such tensor"});
  ExpectRejected(WithMetadata(a + "," + b + R"(,"ultrasketch.crc64.":"0123456789abcdef")"),
                 {"\"\"", "no such tensor"});
  for (const char* bad : {"", "0123456789abcde", "0123456789ABCDEF"}) {
    ExpectRejected(WithMetadata(a + R"(,"ultrasketch.crc64.b":")" + bad + "\""),
                   {"tensor \"b\"", "16 lower-case hexadecimal digits", bad});
  }
}

TEST(SafetensorsTest, AcceptsEmptyFilesScalarsAndEmptyTensors) {
  EXPECT_TRUE(ParseStatus(SafetensorsBytes("{}", "")).ok());
  EXPECT_TRUE(ParseStatus(WithTensor(R"({"dtype":"F64","shape":[],"data_offsets":[0,8]})")).ok());
  EXPECT_TRUE(
      ParseStatus(SafetensorsBytes(R"({"a":{"dtype":"F32","shape":[0,9223372036854775807,4],)"
                                   R"("data_offsets":[4,4]},)"
                                   R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                   R"("c":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                   "01234567"))
          .ok());
}

TEST(SafetensorsTest, RejectsAFileShorterThanItsLength) {
  ExpectRejected("", {"8 bytes of header length", "0 bytes"});
  ExpectRejected("1234567", {"8 bytes of header length", "7 bytes"});
}

TEST(SafetensorsTest, NamesAGitLfsPointer) {
  ExpectRejected("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5000000000\n",
                 {"Git LFS pointer", "5000000000 bytes", "git lfs pull"});
}

TEST(SafetensorsTest, RejectsATruncatedHeader) {
  ExpectRejected(SafetensorsBytes(100, "{}", ""), {"header of 100 bytes", "only 2", "truncated"});
}

TEST(SafetensorsTest, RejectsAHeaderBeyondTheFormatsLimit) {
  ExpectRejected(SafetensorsBytes(100'000'001, "{}", ""), {"at most 100000000", "100000001"});
  ExpectRejected(SafetensorsBytes(std::numeric_limits<uint64_t>::max(), "{}", ""),
                 {"at most 100000000", "18446744073709551615"});
}

TEST(SafetensorsTest, RejectsAHeaderThatIsNotAJsonObject) {
  ExpectRejected(SafetensorsBytes("", ""), {"not valid JSON"});
  ExpectRejected(SafetensorsBytes("{", ""), {"not valid JSON"});
  ExpectRejected(SafetensorsBytes("{}x", ""), {"not valid JSON"});
  ExpectRejected(SafetensorsBytes("[]", ""), {"JSON object", "an array"});
  ExpectRejected(SafetensorsBytes("7", ""), {"JSON object", "the number 7"});
  ExpectRejected(SafetensorsBytes("-7", ""), {"JSON object", "the number -7"});
  ExpectRejected(SafetensorsBytes("\"x\"", ""), {"JSON object", "a string"});
  ExpectRejected(SafetensorsBytes("null", ""), {"JSON object", "null"});
}

TEST(SafetensorsTest, RejectsDeepNesting) {
  ExpectRejected(SafetensorsBytes(std::string(1000000, '['), ""), {"an array"});
  ExpectRejected(WithTensor(R"({"dtype":"F64","shape":)" + std::string(1000000, '[')),
                 {"\"t\"", "shape", "an array"});
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  ExpectRejected(SafetensorsBytes(objects, ""), {"found \"a\""});
}

TEST(SafetensorsTest, RejectsIllFormedUtf8) {
  ExpectRejected(
      SafetensorsBytes("{\"\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", ""),
      {"not valid JSON", "UTF-8"});
  ExpectRejected(
      SafetensorsBytes(R"({"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", ""),
      {"not valid JSON"});
}

TEST(SafetensorsTest, RejectsAnEmptyName) {
  ExpectRejected(SafetensorsBytes(R"({"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", ""),
                 {"tensor \"\"", "empty"});
}

TEST(SafetensorsTest, RejectsDuplicates) {
  ExpectRejected(SafetensorsBytes(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                  R"("t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                  "01"),
                 {"tensor \"t\"", "twice"});
  // The same name by way of an escape.
  ExpectRejected(SafetensorsBytes(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                  R"("\u0074":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                  "01"),
                 {"tensor \"t\"", "twice"});
  ExpectRejected(WithTensor(R"({"dtype":"F64","dtype":"F64","shape":[],"data_offsets":[0,8]})"),
                 {"\"t\"", "\"dtype\"", "twice"});
  ExpectRejected(SafetensorsBytes(R"({"__metadata__":{"a":"b","a":"b"}})", ""), {"\"a\"", "twice"});
  ExpectRejected(SafetensorsBytes(R"({"__metadata__":{},"__metadata__":{}})", ""), {"twice"});
}

TEST(SafetensorsTest, RejectsMetadataThatIsNotStrings) {
  ExpectRejected(SafetensorsBytes(R"({"__metadata__":{"a":1}})", ""), {"__metadata__", "\"a\""});
  ExpectRejected(SafetensorsBytes(R"({"__metadata__":{"a":{}}})", ""), {"__metadata__", "\"a\""});
  ExpectRejected(SafetensorsBytes(R"({"__metadata__":[]})", ""), {"__metadata__", "an array"});
}

TEST(SafetensorsTest, RejectsUnknownAndMissingKeys) {
  ExpectRejected(WithTensor(R"({"shape":[],"data_offsets":[0,8]})"), {"\"t\"", "no \"dtype\""});
  ExpectRejected(WithTensor(R"({"dtype":"F64","data_offsets":[0,8]})"), {"no \"shape\""});
  ExpectRejected(WithTensor(R"({"dtype":"F64","shape":[]})"), {"no \"data_offsets\""});
  ExpectRejected(WithTensor(R"({"dtype":"F64","shape":[],"data_offsets":[0,8],"offset":1})"),
                 {"\"t\"", "found \"offset\""});
  ExpectRejected(WithTensor("null"), {"\"t\"", "an object", "null"});
  ExpectRejected(WithTensor("[]"), {"\"t\"", "an object", "an array"});
}

TEST(SafetensorsTest, RejectsUnknownDtypes) {
  ExpectRejected(WithTensor(R"({"dtype":"F65","shape":[],"data_offsets":[0,8]})"),
                 {"\"t\"", "dtype", "\"F65\""});
  ExpectRejected(WithTensor(R"({"dtype":"f64","shape":[],"data_offsets":[0,8]})"), {"\"f64\""});
  ExpectRejected(WithTensor(R"({"dtype":4,"shape":[],"data_offsets":[0,8]})"),
                 {"dtype", "the number 4"});
}

TEST(SafetensorsTest, TensorsOfUnsupportedDtypesAreRefusedWhenTheyAreNeeded) {
  const std::string bytes =
      SafetensorsBytes(R"({"scale":{"dtype":"F8_E8M0","shape":[3],"data_offsets":[4,7]},)"
                       R"("half":{"dtype":"F4","shape":[2,3],"data_offsets":[7,10]},)"
                       R"("z":{"dtype":"C64","shape":[1],"data_offsets":[10,18]},)"
                       R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                       "012345678901234567");
  const auto file = SafetensorsFile::Parse(bytes, "here");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 1u);
  EXPECT_TRUE(GetTensor(**file, "w", {}, {1}).ok());
  EXPECT_EQ((*file)->Find("scale"), nullptr);
  const absl::Status needed = GetTensor(**file, "half", {}, {2, 3}).status();
  EXPECT_EQ(needed.code(), absl::StatusCode::kUnimplemented) << needed;
  EXPECT_THAT(std::string(needed.message()),
              AllOf(HasSubstr("here: "), HasSubstr("\"half\""), HasSubstr("\"F4\"")));
  EXPECT_EQ(GetTensor(**file, "none", {}, {1}).status().code(), absl::StatusCode::kNotFound);
}

TEST(SafetensorsTest, ChecksTheSizesOfUnsupportedDtypes) {
  ExpectRejected(WithTensor(R"({"dtype":"F8_E4M3","shape":[7],"data_offsets":[0,8]})"),
                 {"\"t\"", "expected 7 bytes for F8_E4M3 [7]"});
  ExpectRejected(WithTensor(R"({"dtype":"C64","shape":[2],"data_offsets":[0,8]})"),
                 {"expected 16 bytes"});
  ExpectRejected(WithTensor(R"({"dtype":"F4","shape":[15],"data_offsets":[0,8]})"),
                 {"expected whole bytes", "60 bits"});
  ExpectRejected(WithTensor(R"({"dtype":"F4","shape":[18],"data_offsets":[0,9]})"),
                 {"data offsets of at most 8"});
  ExpectRejected(WithTensor(R"({"dtype":"C64","shape":[144115188075855872],"data_offsets":[0,8]})"),
                 {"expected a size below 2^63"});
}

// safetensors 0.8 refuses it, too.
TEST(SafetensorsTest, RejectsAHeaderPaddedWithNuls) {
  const std::string header = R"({"t":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})";
  ExpectRejected(SafetensorsBytes(header + std::string(3, '\0'), "01234567"),
                 {"header is not valid JSON", "NUL"});
  EXPECT_TRUE(ParseStatus(SafetensorsBytes(header + "   ", "01234567")).ok());
}

TEST(SafetensorsTest, RejectsShapesThatMakeNoSense) {
  const auto with_shape = [](const std::string& shape) {
    return WithTensor(R"({"dtype":"F64","shape":)" + shape + R"(,"data_offsets":[0,8]})");
  };
  ExpectRejected(with_shape("[-1]"), {"\"t\"", "shape", "-1"});
  ExpectRejected(with_shape("[1.0]"), {"\"t\"", "shape", "1.0"});
  ExpectRejected(with_shape("[\"1\"]"), {"\"t\"", "shape", "a string"});
  ExpectRejected(with_shape("[true]"), {"shape", "true"});
  ExpectRejected(with_shape("1"), {"shape", "the number 1"});
  ExpectRejected(with_shape("{}"), {"shape", "an object"});
  ExpectRejected(with_shape("null"), {"shape", "null"});
  ExpectRejected(with_shape("[18446744073709551616]"), {"shape"});
  ExpectRejected(with_shape("[9223372036854775808]"), {"shape", "2^63"});
  std::string many = "[1";
  for (int i = 0; i < 64; ++i) many += ",1";
  ExpectRejected(with_shape(many + "]"), {"shape", "at most 64"});
}

TEST(SafetensorsTest, RejectsSizesThatOverflow) {
  const auto with_shape = [](const std::string& shape) {
    return WithTensor(R"({"dtype":"F64","shape":)" + shape + R"(,"data_offsets":[0,8]})");
  };
  // 8 * 2^61 wraps to 0; 8 * (2^61 + 1) to 8.
  ExpectRejected(with_shape("[2305843009213693952]"), {"\"t\"", "2^63"});
  ExpectRejected(with_shape("[2305843009213693953]"), {"\"t\"", "2^63"});
  ExpectRejected(with_shape("[4294967296,4294967296]"), {"\"t\"", "2^63"});
}

TEST(SafetensorsTest, RejectsOffsetsThatMakeNoSense) {
  const auto with_offsets = [](const std::string& offsets) {
    return WithTensor(R"({"dtype":"F64","shape":[1],"data_offsets":)" + offsets + "}");
  };
  ExpectRejected(with_offsets("[8,0]"), {"\"t\"", "begin <= end", "[8, 0]"});
  ExpectRejected(with_offsets("[0]"), {"begin <= end", "[0]"});
  ExpectRejected(with_offsets("[]"), {"begin <= end"});
  ExpectRejected(with_offsets("[0,8,8]"), {"\"data_offsets\"", "at most 2"});
  ExpectRejected(with_offsets("[-8,0]"), {"\"data_offsets\"", "-8"});
  ExpectRejected(with_offsets("[0,8.0]"), {"\"data_offsets\"", "8.0"});
  ExpectRejected(with_offsets("\"0,8\""), {"\"data_offsets\"", "a string"});
}

TEST(SafetensorsTest, RejectsASizeThatDisagreesWithTheShape) {
  ExpectRejected(WithTensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
                 {"\"t\"", "expected 12 bytes", "F32 [3]", "8 bytes"});
}

TEST(SafetensorsTest, RejectsOffsetsOutOfRange) {
  ExpectRejected(WithTensor(R"({"dtype":"F64","shape":[2],"data_offsets":[0,16]})"),
                 {"\"t\"", "at most 8", "[0, 16]"});
  ExpectRejected(
      WithTensor(
          R"({"dtype":"U8","shape":[8],"data_offsets":[9223372036854775799,9223372036854775807]})"),
      {"\"t\"", "at most 8"});
}

TEST(SafetensorsTest, RejectsOverlappingTensors) {
  ExpectRejected(SafetensorsBytes(R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
                                  R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                  "01234567"),
                 {"\"b\"", "overlaps", "\"a\"", "[4, 8]"});
  ExpectRejected(SafetensorsBytes(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                                  R"("b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
                                  "01234567"),
                 {"overlaps"});
}

TEST(SafetensorsTest, RejectsHoles) {
  ExpectRejected(SafetensorsBytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                  R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                  "01234567"),
                 {"\"b\"", "begins at 2", "hole of 2"});
  ExpectRejected(WithTensor(R"({"dtype":"U8","shape":[4],"data_offsets":[4,8]})"),
                 {"\"t\"", "begins at 0", "hole of 4"});
}

TEST(SafetensorsTest, RejectsTrailingBytes) {
  ExpectRejected(WithTensor(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4]})"),
                 {"expected 4 bytes", "found 8"});
  ExpectRejected(SafetensorsBytes("{}", "x"), {"expected 0 bytes", "found 1"});
}

TEST(SafetensorsTest, RejectsEveryTruncation) {
  const std::string bytes = SafetensorsBytes(
      R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", std::string(16, 'x'));
  ASSERT_TRUE(ParseStatus(bytes).ok());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_EQ(ParseStatus(bytes.substr(0, length)).code(), absl::StatusCode::kDataLoss) << length;
  }
}

TEST(SafetensorsTest, OpenNamesTheFile) {
  const TemporaryFolder folder;
  EXPECT_EQ(SafetensorsFile::Open(folder.File("none")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::string path = folder.Write("empty.safetensors", "");
  const absl::Status status = SafetensorsFile::Open(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

TEST(SafetensorsTest, OpensTheSampleModel) {
  const auto file = SafetensorsFile::Open(std::string(SAMPLE_MODEL_DIR) + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 47u);
  const auto embedding = GetTensor(**file, "model.embed_tokens.weight", {}, {8192, 256});
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  EXPECT_TRUE(CheckFinite(**file, "model.embed_tokens.weight", *embedding).ok());
}

class WriteSafetensorsTest : public ::testing::Test {
 protected:
  TensorToWrite Tensor(std::string name, DType dtype, std::vector<int64_t> shape) {
    TensorToWrite tensor;
    tensor.name = std::move(name);
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
    tensor.data = kData;
    return tensor;
  }

  static constexpr char kData[65] =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!?";
  TemporaryFolder folder_;
  std::string path_ = folder_.File("out.safetensors");
};

TEST_F(WriteSafetensorsTest, RoundTrips) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"quote\"", "\n\xc3\xa9"}};
  ASSERT_TRUE(
      WriteSafetensors(path_,
                       {Tensor("bytes", DType::kU8, {5}), Tensor("half", DType::kF16, {3}),
                        Tensor("empty", DType::kF32, {0, 7}), Tensor("scalar", DType::kI64, {}),
                        Tensor("name with \"\\ \xe2\x82\xac", DType::kF32, {2, 3})},
                       metadata)
          .ok());
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata(), metadata);
  ASSERT_EQ((*file)->tensors().size(), 5u);
  for (const NamedTensor& tensor : (*file)->tensors()) {
    EXPECT_EQ(std::memcmp(tensor.view.data, kData, static_cast<size_t>(tensor.view.num_bytes())), 0)
        << tensor.name;
    // A mapping starts at a page, so that alignment in memory is alignment in the file.
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view.data) %
                  static_cast<uintptr_t>(ElementBytes(tensor.view.dtype)),
              0u)
        << tensor.name;
  }
  EXPECT_THAT((*file)->Find("empty")->shape, ElementsAre(0, 7));
  EXPECT_THAT(folder_.List(), ElementsAre("out.safetensors"));
}

TEST_F(WriteSafetensorsTest, WritesCanonicalOrderWhateverTheOrderGiven) {
  const TensorToWrite a = Tensor("a", DType::kU8, {3});
  const TensorToWrite b = Tensor("b", DType::kF32, {2});
  const TensorToWrite c = Tensor("c", DType::kF16, {5});
  const TensorToWrite d = Tensor("d", DType::kF32, {1});
  ASSERT_TRUE(WriteSafetensors(path_, {a, b, c, d}).ok());
  const std::string first = *ReadFile(path_);
  ASSERT_TRUE(WriteSafetensors(path_, {d, c, b, a}).ok());
  EXPECT_EQ(first, *ReadFile(path_));
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok());
  const uint8_t* start = (*file)->Find("b")->data;
  EXPECT_EQ((*file)->Find("d")->data - start, 8);
  EXPECT_EQ((*file)->Find("c")->data - start, 12);
  EXPECT_EQ((*file)->Find("a")->data - start, 22);
}

TEST_F(WriteSafetensorsTest, HeaderIsPaddedToEightBytes) {
  for (const char* name : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"}) {
    ASSERT_TRUE(WriteSafetensors(path_, {Tensor(name, DType::kF64, {1})}).ok());
    const std::string bytes = *ReadFile(path_);
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), 8);
    EXPECT_EQ(header_bytes % 8, 0u);
    EXPECT_TRUE(ParseJson(std::string_view(bytes).substr(8, header_bytes), "header").ok());
  }
}

TEST_F(WriteSafetensorsTest, StreamsFromProducers) {
  TensorToWrite tensor = Tensor("streamed", DType::kF32, {1000, 1000});
  tensor.data = nullptr;
  tensor.produce = [](TensorToWrite::Append append) -> absl::Status {
    std::vector<float> row(1000);
    for (int r = 0; r < 1000; ++r) {
      for (int c = 0; c < 1000; ++c) row[static_cast<size_t>(c)] = static_cast<float>(r * 1000 + c);
      const absl::Status status = append(row.data(), 4000);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  };
  ASSERT_TRUE(WriteSafetensors(path_, {tensor}).ok());
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<float> values = ToFloatVector(*(*file)->Find("streamed"));
  for (size_t i = 0; i < values.size(); i += 997) EXPECT_EQ(values[i], static_cast<float>(i));
}

TEST_F(WriteSafetensorsTest, EveryTensorHasAChecksumThatVerifies) {
  ThreadPool pool(2);
  TensorToWrite streamed = Tensor("b", DType::kF32, {2, 3});
  streamed.data = nullptr;
  streamed.produce = [](TensorToWrite::Append append) -> absl::Status {
    const absl::Status status = append(kData, 5);
    return status.ok() ? append(kData + 5, 19) : status;
  };
  for (const TensorToWrite& b : {Tensor("b", DType::kF32, {2, 3}), streamed}) {
    ASSERT_TRUE(WriteSafetensors(path_, {Tensor("a", DType::kU8, {0}), b}).ok());
    const std::string bytes = *ReadFile(path_);
    EXPECT_THAT(bytes, HasSubstr("\"ultrasketch.crc64.b\":\"" +
                                 ChecksumString(Crc64(kData, 24, Crc64("F32[2,3]", 8))) + "\""));
    const auto file = SafetensorsFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->has_checksums());
    EXPECT_TRUE((*file)->metadata().empty());
    EXPECT_TRUE((*file)->VerifyChecksums(pool).ok());

    std::string changed = bytes;
    changed.back() ^= 1;
    const auto corrupt = SafetensorsFile::Parse(changed, "test.safetensors");
    ASSERT_TRUE(corrupt.ok()) << corrupt.status();
    const absl::Status status = (*corrupt)->VerifyChecksums(pool);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("test.safetensors: tensor \"b\": expected the checksum " +
                                ChecksumString(Crc64(kData, 24, Crc64("F32[2,3]", 8)))),
                      HasSubstr("found ")));
  }
}

TEST_F(WriteSafetensorsTest, RefusesMetadataThatWouldBeAChecksum) {
  const absl::Status status =
      WriteSafetensors(path_, {Tensor("a", DType::kU8, {1})}, {{"ultrasketch.crc64.a", "x"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(folder_.List().empty());
}

TEST_F(WriteSafetensorsTest, FailingProducersLeaveTheOldFile) {
  folder_.Write("out.safetensors", "old");
  TensorToWrite tensor = Tensor("streamed", DType::kU8, {10});
  tensor.data = nullptr;
  const auto expect_failure = [&](absl::StatusCode code, const std::string& part) {
    const absl::Status status = WriteSafetensors(path_, {tensor});
    EXPECT_EQ(status.code(), code);
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    EXPECT_EQ(*ReadFile(path_), "old");
    EXPECT_THAT(folder_.List(), ElementsAre("out.safetensors"));
  };
  expect_failure(absl::StatusCode::kInternal, "none");
  tensor.produce = [](TensorToWrite::Append append) { return append("123", 3); };
  expect_failure(absl::StatusCode::kInternal, "only 3");
  tensor.produce = [](TensorToWrite::Append append) { return append(kData, 11); };
  expect_failure(absl::StatusCode::kInternal, "more");
  tensor.produce = [](TensorToWrite::Append) { return absl::CancelledError("enough"); };
  expect_failure(absl::StatusCode::kCancelled, "enough");
}

TEST_F(WriteSafetensorsTest, RejectsBadNamesAndShapes) {
  const auto expect_rejected = [&](std::vector<TensorToWrite> tensors, const std::string& part) {
    const absl::Status status = WriteSafetensors(path_, tensors);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr(part)));
    EXPECT_TRUE(folder_.List().empty());
  };
  expect_rejected({Tensor("", DType::kU8, {1})}, "name");
  expect_rejected({Tensor("\xff", DType::kU8, {1})}, "\\xff");
  expect_rejected({Tensor("__metadata__", DType::kU8, {1})}, "__metadata__");
  expect_rejected({Tensor("a", DType::kU8, {1}), Tensor("a", DType::kU8, {1})}, "twice");
  expect_rejected({Tensor("a", DType::kU8, {-1})}, "[-1]");
  expect_rejected({Tensor("a", DType::kF64, {int64_t{1} << 61})}, "2^63");
  expect_rejected(
      {Tensor("a", DType::kU8, {int64_t{1} << 62}), Tensor("b", DType::kU8, {int64_t{1} << 62})},
      "2^63");
  EXPECT_EQ(WriteSafetensors(path_, {}, {{"a", "\xff"}}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(WriteSafetensorsTest, ReportsAFolderThatIsNotThere) {
  EXPECT_EQ(WriteSafetensors(folder_.File("none/out"), {}).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultrasketch
