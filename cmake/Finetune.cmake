# The trainer: whether it is built, and with which LibTorch. One that is not the system's is found
# through CMAKE_PREFIX_PATH, for example that of a PyTorch installed by pip:
#   -DCMAKE_PREFIX_PATH="$(python3 -c 'import torch; print(torch.__path__[0])')"

set(ULTRASKETCH_FINETUNE "AUTO" CACHE STRING
  "Build the trainer: AUTO (when there is a LibTorch), ON or OFF")
set_property(CACHE ULTRASKETCH_FINETUNE PROPERTY STRINGS AUTO ON OFF)

set(ULTRASKETCH_HAVE_FINETUNE OFF)
if(ULTRASKETCH_FINETUNE STREQUAL "AUTO" AND ULTRASKETCH_SANITIZE)
  message(STATUS "Trainer: not built with sanitizers")
elseif(ULTRASKETCH_FINETUNE)
  find_path(TORCH_INCLUDE_DIR ATen/ATen.h)
  find_library(TORCH_CPU_LIBRARY torch_cpu)
  if(TORCH_INCLUDE_DIR AND TORCH_CPU_LIBRARY)
    get_filename_component(torch_folder "${TORCH_CPU_LIBRARY}" DIRECTORY)
    find_library(TORCH_C10_LIBRARY c10 PATHS "${torch_folder}" NO_DEFAULT_PATH REQUIRED)
    find_library(TORCH_CUDA_LIBRARY torch_cuda PATHS "${torch_folder}" NO_DEFAULT_PATH)
    find_library(TORCH_C10_CUDA_LIBRARY c10_cuda PATHS "${torch_folder}" NO_DEFAULT_PATH)
    add_library(us_torch INTERFACE)
    target_include_directories(us_torch SYSTEM INTERFACE
      ${TORCH_INCLUDE_DIR} ${TORCH_INCLUDE_DIR}/torch/csrc/api/include)
    target_link_libraries(us_torch INTERFACE ${TORCH_CPU_LIBRARY} ${TORCH_C10_LIBRARY})
    # gcc's optimizer sees dangers in LibTorch's inlined reference counts that are not there.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(us_torch INTERFACE -Wno-maybe-uninitialized -Wno-array-bounds
        -Wno-stringop-overflow)
    endif()
    # Several processes on CPUs go through gloo. Its headers must be those of this LibTorch.
    find_path(ULTRASKETCH_GLOO_INCLUDE_DIR gloo/algorithm.h
      PATHS ${TORCH_INCLUDE_DIR} NO_DEFAULT_PATH DOC "Headers of gloo that came with LibTorch")
    if(ULTRASKETCH_GLOO_INCLUDE_DIR)
      target_compile_definitions(us_torch INTERFACE USE_C10D_GLOO)
    endif()
    set(torch_kind "for CPUs")
    if(TORCH_CUDA_LIBRARY AND TORCH_C10_CUDA_LIBRARY)
      find_path(ULTRASKETCH_CUDA_INCLUDE_DIR cuda_runtime_api.h
        PATHS ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include
        DOC "Headers of the CUDA toolkit that LibTorch was built with")
      if(ULTRASKETCH_CUDA_INCLUDE_DIR)
        target_include_directories(us_torch SYSTEM INTERFACE ${ULTRASKETCH_CUDA_INCLUDE_DIR})
        target_compile_definitions(us_torch INTERFACE ULTRASKETCH_TORCH_CUDA)
        # Nothing refers to the kernels by name: they register themselves when they are loaded. What
        # they need of CUDA is found by the loader, and need not be here.
        target_link_libraries(us_torch INTERFACE
          -Wl,--no-as-needed ${TORCH_CUDA_LIBRARY} ${TORCH_C10_CUDA_LIBRARY} -Wl,--as-needed
          -Wl,--allow-shlib-undefined)
        set(torch_kind "for CPUs and CUDA")
        # Several GPUs go through NCCL. pip puts its header beside PyTorch.
        get_filename_component(packages "${torch_folder}/../.." ABSOLUTE)
        find_path(ULTRASKETCH_NCCL_INCLUDE_DIR nccl.h
          HINTS ${packages}/nvidia/nccl/include ${ULTRASKETCH_CUDA_INCLUDE_DIR}
          DOC "Header of the NCCL that LibTorch was built with")
        if(ULTRASKETCH_NCCL_INCLUDE_DIR)
          target_include_directories(us_torch SYSTEM INTERFACE ${ULTRASKETCH_NCCL_INCLUDE_DIR})
          target_compile_definitions(us_torch INTERFACE USE_C10D_NCCL)
        endif()
      else()
        message(STATUS "Trainer: no headers of CUDA found, so it is built for CPUs alone")
      endif()
    endif()
    set(ULTRASKETCH_HAVE_FINETUNE ON)
    message(STATUS "Trainer: built with LibTorch ${torch_kind}, ${TORCH_CPU_LIBRARY}")
  elseif(ULTRASKETCH_FINETUNE STREQUAL "ON")
    message(FATAL_ERROR "ULTRASKETCH_FINETUNE is ON, and there is no LibTorch: install libtorch-dev, "
      "or set CMAKE_PREFIX_PATH to the folder of one")
  else()
    message(STATUS "Trainer: not built, there is no LibTorch")
  endif()
endif()
