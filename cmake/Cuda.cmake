# The CUDA plug-in: whether it is built, and for which devices.

set(ULTRASKETCH_CUDA "AUTO" CACHE STRING
  "Build the CUDA plug-in: AUTO (when there is a compiler for it), ON or OFF")
set_property(CACHE ULTRASKETCH_CUDA PROPERTY STRINGS AUTO ON OFF)
set(ULTRASKETCH_CUDA_ARCHITECTURES "90a-real" CACHE STRING
  "Compute capabilities to build for, as for CMAKE_CUDA_ARCHITECTURES: 8.0 or later")

set(ULTRASKETCH_HAVE_CUDA OFF)
if(ULTRASKETCH_CUDA STREQUAL "AUTO" AND ULTRASKETCH_SANITIZE)
  message(STATUS "CUDA plug-in: not built with sanitizers")
elseif(ULTRASKETCH_CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(ULTRASKETCH_NVCC nvcc
      HINTS ENV CUDACXX ENV CUDA_PATH PATHS /usr/local/cuda/bin PATH_SUFFIXES bin)
    if(DEFINED ENV{CUDACXX})
      set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
    elseif(ULTRASKETCH_NVCC)
      set(CMAKE_CUDA_COMPILER "${ULTRASKETCH_NVCC}")
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES "${ULTRASKETCH_CUDA_ARCHITECTURES}")
    if(CCACHE_PROGRAM)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
    endif()
    enable_language(CUDA)
    # CMake 3.25 does not know how nvcc 13 spells C++20.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    find_package(CUDAToolkit REQUIRED)
    set(ULTRASKETCH_HAVE_CUDA ON)
    message(STATUS "CUDA plug-in: built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for "
                   "${CMAKE_CUDA_ARCHITECTURES}")
  elseif(ULTRASKETCH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ULTRASKETCH_CUDA is ON, and there is no nvcc: set CUDACXX to its path")
  else()
    message(STATUS "CUDA plug-in: not built, there is no nvcc")
  endif()
endif()

# An executable takes only a plug-in that was built from the same interfaces by the same compiler.
set(interface_hash "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${CMAKE_BUILD_TYPE}")
foreach(header backends/backend.h backends/cuda/cuda_plugin.h backends/sampling/sampling.h
               base/tensor.h codecs/absmaxmin/absmaxmin_layout.h
               codecs/absmaxmin/absmaxmin_linear.h codecs/codec.h codecs/cpu_linear.h
               codecs/fold/fold_layout.h codecs/fold/fold_linear.h codecs/grouped/grouped_table.h
               codecs/linear_site.h kv/cache_layout.h)
  set(path ${PROJECT_SOURCE_DIR}/engine/${header})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
  file(SHA256 ${path} header_hash)
  string(APPEND interface_hash " ${header_hash}")
endforeach()
string(SHA256 interface_hash "${interface_hash}")
string(SUBSTRING "${interface_hash}" 0 12 interface_hash)
set(ULTRASKETCH_PLUGIN_VERSION "${PROJECT_VERSION}-${interface_hash}")

# us_cuda_library(<name> SOURCES <file>.cu... DEPENDS <target>...): kernels and their launch
# functions. No header of Abseil or gRPC comes near nvcc.
function(us_cuda_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC CUDA::cudart_static ${ARG_DEPENDS})
  target_compile_options(${name} PRIVATE
    -lineinfo --expt-relaxed-constexpr -Werror=all-warnings
    -Xcompiler=-Wall,-Wextra,-Werror)
  if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "90a")
    target_compile_definitions(${name} PRIVATE US_BUILD_SM_90A)
  endif()
  set_target_properties(${name} PROPERTIES
    POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
endfunction()
