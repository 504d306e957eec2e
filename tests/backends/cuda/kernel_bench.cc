// Times the products of linear sites on the device: folded weights, dense weights with our kernel,
// and cuBLAS's choice for bfloat16. Prints one JSON object.
//
//   cuda_kernel_bench [--preset llama-3.1-8b|llama-3.2-1b]... [--tokens 1,4,...] [--seconds S]
//
// A measurement is a CUDA graph of launches that go through copies of the weights larger than the
// second-level cache together, so that each launch finds its weights in device memory. Its time is
// the median over repetitions, divided by the launches.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "engine/backends/cuda/kernels.h"
#include "engine/codecs/cuda/product.h"
#include "engine/codecs/cuda/tile_layout.h"
#include "engine/codecs/fold/cuda/bit_layout.h"

namespace ultrasketch::cuda {
namespace {

void Require(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}

void Require(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "%s: status %d\n", call, static_cast<int>(status));
  std::exit(1);
}

// Device memory of random bytes that are finite as binary16, bfloat16 and float.
class Random {
 public:
  explicit Random(int64_t num_bytes) : num_bytes_((num_bytes + 15) / 16 * 16) {
    Require(cudaMalloc(&data_, static_cast<size_t>(num_bytes_)), "cudaMalloc");
    static const std::vector<uint16_t> pattern = [] {
      std::vector<uint16_t> values(size_t{1} << 22);
      uint64_t state = 88172645463325252u;
      for (uint16_t& value : values) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Exponents around one: sign, then 0x38 to 0x3f in the high byte.
        value = static_cast<uint16_t>((state & 0x87ffu) | 0x3800u);
      }
      return values;
    }();
    const auto pattern_bytes = static_cast<int64_t>(pattern.size() * sizeof(uint16_t));
    for (int64_t offset = 0; offset < num_bytes_; offset += pattern_bytes) {
      Require(cudaMemcpy(static_cast<uint8_t*>(data_) + offset, pattern.data(),
                         static_cast<size_t>(std::min(pattern_bytes, num_bytes_ - offset)),
                         cudaMemcpyHostToDevice),
              "cudaMemcpy");
    }
  }
  ~Random() { static_cast<void>(cudaFree(data_)); }
  Random(const Random&) = delete;
  Random& operator=(const Random&) = delete;
  void* at(int64_t offset) const { return static_cast<uint8_t*>(data_) + offset; }

 private:
  int64_t num_bytes_;
  void* data_ = nullptr;
};

struct Device {
  Device() {
    Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    Require(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    Require(cublasLtCreate(&blas), "cublasLtCreate");
  }
  cudaStream_t stream = nullptr;
  cudaDeviceProp properties;
  cublasLtHandle_t blas = nullptr;
  double seconds = 0.05;  // for each measurement
};

// Microseconds of one launch; `launch(i)` is the i-th of num_copies.
double Time(const Device& device, int num_copies, const std::function<void(int)>& launch) {
  const int num_launches = std::max(num_copies, 8);
  for (int i = 0; i < 2; ++i) launch(i % num_copies);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Require(cudaStreamSynchronize(device.stream), "warm-up");
  Require(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < num_launches; ++i) launch(i % num_copies);
  Require(cudaStreamEndCapture(device.stream, &graph), "capture");
  Require(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  Require(cudaEventCreate(&begin), "cudaEventCreate");
  Require(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  const auto start = std::chrono::steady_clock::now();
  for (int repetition = 0; repetition < 200; ++repetition) {
    Require(cudaEventRecord(begin, device.stream), "cudaEventRecord");
    Require(cudaGraphLaunch(executable, device.stream), "cudaGraphLaunch");
    Require(cudaEventRecord(end, device.stream), "cudaEventRecord");
    Require(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    Require(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (repetition > 0) times.push_back(milliseconds);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (repetition >= 5 && elapsed.count() > device.seconds) break;
  }
  static_cast<void>(cudaEventDestroy(begin));
  static_cast<void>(cudaEventDestroy(end));
  static_cast<void>(cudaGraphExecDestroy(executable));
  static_cast<void>(cudaGraphDestroy(graph));
  std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2),
                   times.end());
  return 1e3 * double{times[times.size() / 2]} / num_launches;
}

struct SiteShape {
  const char* name;
  int64_t rows;
  int64_t cols;
};

struct Preset {
  const char* name;
  std::vector<SiteShape> sites;
};

std::vector<Preset> Presets() {
  return {{"llama-3.1-8b",
           {{"attention_input", 6144, 4096},
            {"attention_output", 4096, 4096},
            {"mlp_input", 28672, 4096},
            {"mlp_output", 4096, 14336}}},
          {"llama-3.2-1b",
           {{"attention_input", 3072, 2048},
            {"attention_output", 2048, 2048},
            {"mlp_input", 16384, 2048},
            {"mlp_output", 2048, 8192}}}};
}

// Copies whose bytes together are several times the second-level cache.
int NumCopies(const Device& device, int64_t bytes_each) {
  const int64_t wanted = 4 * static_cast<int64_t>(device.properties.l2CacheSize);
  return static_cast<int>(std::clamp<int64_t>((wanted + bytes_each - 1) / bytes_each, 2, 256));
}

double TimeProduct(const Device& device, LaunchProduct launch_product, const SiteShape& site,
                   int64_t num_steps, int64_t step_bytes, int64_t num_tokens) {
  const int64_t tile_bytes = NumRowTiles(site.rows) * num_steps * step_bytes;
  const int num_copies = NumCopies(device, tile_bytes);
  const Random tiles(tile_bytes * num_copies);
  const Random scales(site.rows * static_cast<int64_t>(sizeof(float)));
  const Random prepared(num_tokens * PreparedRowBytes(num_steps));
  const Random output(num_tokens * site.rows * static_cast<int64_t>(sizeof(float)));
  return Time(device, num_copies, [&](int copy) {
    ProductArguments arguments;
    arguments.matrix.tiles = tiles.at(copy * tile_bytes);
    arguments.matrix.row_scales = static_cast<const float*>(scales.at(0));
    arguments.matrix.rows = site.rows;
    arguments.matrix.num_steps = num_steps;
    arguments.prepared = prepared.at(0);
    arguments.num_tokens = num_tokens;
    arguments.y = static_cast<float*>(output.at(0));
    arguments.num_multiprocessors = device.properties.multiProcessorCount;
    Require(launch_product(arguments, device.stream), "product");
  });
}

// The quickest of the algorithms that cuBLAS proposes.
double TimeCublas(const Device& device, const SiteShape& site, int64_t num_tokens) {
  const int64_t weight_bytes = site.rows * site.cols * 2;
  const int num_copies = NumCopies(device, weight_bytes);
  constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
  const Random weights(weight_bytes * num_copies);
  const Random input(num_tokens * site.cols * 2);
  const Random output(num_tokens * site.rows * 2);
  const Random workspace(kWorkspaceBytes);

  // Column-major: output [rows, tokens] = weights^T [cols, rows] x input [cols, tokens].
  cublasLtMatmulDesc_t operation = nullptr;
  Require(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLt");
  const cublasOperation_t transpose = CUBLAS_OP_T;
  Require(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                         sizeof(transpose)),
          "cublasLt");
  cublasLtMatrixLayout_t a = nullptr;
  cublasLtMatrixLayout_t b = nullptr;
  cublasLtMatrixLayout_t c = nullptr;
  const auto rows = static_cast<uint64_t>(site.rows);
  const auto cols = static_cast<uint64_t>(site.cols);
  const auto tokens = static_cast<uint64_t>(num_tokens);
  Require(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, cols, rows, site.cols), "cublasLt");
  Require(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, cols, tokens, site.cols), "cublasLt");
  Require(cublasLtMatrixLayoutCreate(&c, CUDA_R_16BF, rows, tokens, site.rows), "cublasLt");
  cublasLtMatmulPreference_t preference = nullptr;
  Require(cublasLtMatmulPreferenceCreate(&preference), "cublasLt");
  const size_t workspace_bytes = kWorkspaceBytes;
  Require(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &workspace_bytes, sizeof(workspace_bytes)),
          "cublasLt");
  cublasLtMatmulHeuristicResult_t algorithms[8];
  int num_algorithms = 0;
  Require(cublasLtMatmulAlgoGetHeuristic(device.blas, operation, a, b, c, c, preference, 8,
                                         algorithms, &num_algorithms),
          "cublasLtMatmulAlgoGetHeuristic");
  const float alpha = 1.0f;
  const float beta = 0.0f;
  double best = 0;
  for (int i = 0; i < num_algorithms; ++i) {
    const double time = Time(device, num_copies, [&](int copy) {
      Require(cublasLtMatmul(device.blas, operation, &alpha, weights.at(copy * weight_bytes), a,
                             input.at(0), b, &beta, output.at(0), c, output.at(0), c,
                             &algorithms[i].algo, workspace.at(0), workspace_bytes, device.stream),
              "cublasLtMatmul");
    });
    if (i == 0 || time < best) best = time;
  }
  static_cast<void>(cublasLtMatmulPreferenceDestroy(preference));
  for (cublasLtMatrixLayout_t layout : {a, b, c}) {
    static_cast<void>(cublasLtMatrixLayoutDestroy(layout));
  }
  static_cast<void>(cublasLtMatmulDescDestroy(operation));
  return best;
}

// Bytes read and written per second of a copy within the device.
double CopyBandwidth(const Device& device) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const Random from(kBytes);
  const Random to(kBytes);
  const double microseconds = Time(device, 1, [&](int) {
    Require(cudaMemcpyAsync(to.at(0), from.at(0), kBytes, cudaMemcpyDeviceToDevice, device.stream),
            "cudaMemcpyAsync");
  });
  return 2.0 * kBytes / microseconds * 1e6;
}

double TimeNorm(const Device& device, const SiteShape& site, int64_t num_tokens) {
  const Random hidden(num_tokens * site.cols * 4);
  const Random weight(site.cols * 4);
  const int64_t buckets = site.cols / 2;
  std::vector<uint16_t> columns;
  for (int64_t i = 0; i < site.cols; ++i) {
    columns.push_back(static_cast<uint16_t>(i * 1999 % site.cols | (i % 3 == 0 ? 0x8000 : 0)));
  }
  const SketchGroup group = {0, static_cast<int32_t>(buckets), 2, 0, 1.0f};
  const Random tables(site.cols * 2 + 256);
  Require(cudaMemcpy(tables.at(0), &group, sizeof(group), cudaMemcpyHostToDevice), "cudaMemcpy");
  Require(cudaMemcpy(tables.at(256), columns.data(), columns.size() * 2, cudaMemcpyHostToDevice),
          "cudaMemcpy");
  InputSketch sketch;
  sketch.groups = static_cast<const SketchGroup*>(tables.at(0));
  sketch.columns = tables.at(256);
  sketch.num_groups = 1;
  sketch.num_entries = site.cols;
  sketch.cols = site.cols;
  sketch.num_steps = FoldSteps(buckets);
  sketch.form = PreparedForm::kBytePlanes;
  sketch.max_gain = 2.0f;
  const Random prepared(num_tokens * PreparedRowBytes(sketch.num_steps));
  return Time(device, 1, [&](int) {
    Require(LaunchRmsNorm(static_cast<const float*>(hidden.at(0)), nullptr, num_tokens,
                          static_cast<const float*>(weight.at(0)), 1e-5f, sketch,
                          device.properties.multiProcessorCount, prepared.at(0), device.stream),
            "RmsNorm");
  });
}

int Run(const std::vector<std::string>& presets, const std::vector<int64_t>& token_counts,
        double seconds) {
  Device device;
  device.seconds = seconds;
  nlohmann::json result;
  const double bandwidth = CopyBandwidth(device);
  result["device"] = device.properties.name;
  result["copy_bytes_per_second"] = bandwidth;
  result["measurements"] = nlohmann::json::array();
  std::fprintf(stderr, "%-14s %-17s %6s %9s %9s %9s %6s %6s %7s\n", "preset", "site", "tokens",
               "fold us", "dense us", "cublas us", "ratio", "TB/s", "TFLOP/s");
  for (const Preset& preset : Presets()) {
    if (!presets.empty() &&
        std::find(presets.begin(), presets.end(), preset.name) == presets.end()) {
      continue;
    }
    for (const int64_t num_tokens : token_counts) {
      double fold_total = 0;
      double cublas_total = 0;
      for (const SiteShape& site : preset.sites) {
        const int64_t fold_steps = FoldSteps(site.cols / 2);
        const double fold =
            TimeProduct(device, LaunchFoldProduct, site, fold_steps, kFoldStepBytes, num_tokens);
        const double dense = TimeProduct(device, LaunchDenseProduct, site, NumSteps(site.cols),
                                         kDenseStepBytes, num_tokens);
        const double cublas = TimeCublas(device, site, num_tokens);
        const double norm = TimeNorm(device, site, num_tokens);
        fold_total += fold;
        cublas_total += cublas;
        // Each read or written once.
        const double bytes = static_cast<double>(site.rows * fold_steps * 8 + site.rows * 4 +
                                                 num_tokens * PreparedRowBytes(fold_steps) +
                                                 num_tokens * site.rows * 4);
        const double operations = 2.0 * static_cast<double>(site.rows * site.cols / 2 * num_tokens);
        result["measurements"].push_back({{"preset", preset.name},
                                          {"site", site.name},
                                          {"tokens", num_tokens},
                                          {"fold_us", fold},
                                          {"dense_us", dense},
                                          {"cublas_bf16_us", cublas},
                                          {"norm_and_sketch_us", norm},
                                          {"ratio_to_cublas", cublas / fold},
                                          {"bytes_per_second", bytes / fold * 1e6},
                                          {"flops_per_second", operations / fold * 1e6}});
        std::fprintf(stderr, "%-14s %-17s %6lld %9.2f %9.2f %9.2f %6.2f %6.3f %7.1f  norm %.2f\n",
                     preset.name, site.name, static_cast<long long>(num_tokens), fold, dense,
                     cublas, cublas / fold, bytes / fold * 1e-6, operations / fold * 1e-6, norm);
      }
      std::fprintf(stderr, "%-14s %-17s %6lld %9.2f %9s %9.2f %6.2f\n", preset.name, "all sites",
                   static_cast<long long>(num_tokens), fold_total, "", cublas_total,
                   cublas_total / fold_total);
      result["totals"].push_back({{"preset", preset.name},
                                  {"tokens", num_tokens},
                                  {"fold_us", fold_total},
                                  {"cublas_bf16_us", cublas_total},
                                  {"ratio_to_cublas", cublas_total / fold_total}});
    }
  }
  std::printf("%s\n", result.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace ultrasketch::cuda

int main(int argc, char** argv) {
  std::vector<std::string> presets;
  std::vector<int64_t> token_counts = {1, 4, 8, 16, 32, 64, 256, 2048};
  double seconds = 0.05;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--preset") presets.emplace_back(argv[i + 1]);
    if (option == "--seconds") seconds = std::strtod(argv[i + 1], nullptr);
    if (option == "--tokens") {
      token_counts.clear();
      for (char* text = argv[i + 1]; *text != '\0'; text += *text == ',' ? 1 : 0) {
        token_counts.push_back(std::strtoll(text, &text, 10));
        if (token_counts.back() <= 0) return 2;
      }
    }
  }
  if (argc % 2 == 0) {
    std::fprintf(stderr, "usage: %s [--preset NAME]... [--tokens 1,4,...] [--seconds S]\n",
                 argv[0]);
    return 2;
  }
  return ultrasketch::cuda::Run(presets, token_counts, seconds);
}
