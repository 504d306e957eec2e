# Debian 12's packages. Everything is found here, once.

find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Eigen3 REQUIRED NO_MODULE)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(ICU REQUIRED IMPORTED_TARGET icu-uc)
pkg_check_modules(LZMA REQUIRED IMPORTED_TARGET liblzma)

# Of OpenBLAS's builds the one that several threads may call and that starts none of its own at load.
# By path: which build `openblas` is, is the system's choice.
find_library(OPENBLAS_LIBRARY openblas REQUIRED
  PATHS /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp NO_DEFAULT_PATH)
find_path(OPENBLAS_INCLUDE_DIR cblas.h REQUIRED
  PATHS /usr/include/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp NO_DEFAULT_PATH)
add_library(us_openblas INTERFACE)
target_link_libraries(us_openblas INTERFACE ${OPENBLAS_LIBRARY})
target_include_directories(us_openblas SYSTEM INTERFACE ${OPENBLAS_INCLUDE_DIR})
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp REQUIRED)
find_path(CLI11_INCLUDE_DIR CLI/CLI.hpp REQUIRED)

if(ULTRASKETCH_SERVICE)
  find_package(Protobuf REQUIRED)
  find_package(gRPC CONFIG REQUIRED)
  find_package(prometheus-cpp CONFIG REQUIRED)
  find_package(Boost 1.74 REQUIRED)
  find_package(OpenSSL REQUIRED)
  find_path(TOMLPLUSPLUS_INCLUDE_DIR toml++/toml.h REQUIRED)
  find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
endif()

if(ULTRASKETCH_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()
