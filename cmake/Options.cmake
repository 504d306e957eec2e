# Compiler options for all targets, ccache, and the helpers that declare targets.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

add_library(us_options INTERFACE)
target_include_directories(us_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(us_options INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False alarms of gcc 12's optimizer in libstdc++'s own headers (gcc bugs 105329, 105651).
  target_compile_options(us_options INTERFACE -Wno-restrict)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(us_options INTERFACE -Wthread-safety)
endif()
if(ULTRASKETCH_SANITIZE)
  add_compile_options(-fsanitize=${ULTRASKETCH_SANITIZE} -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${ULTRASKETCH_SANITIZE})
  if(ULTRASKETCH_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# us_library(<name> SOURCES <file>... DEPENDS <target>...): one static library, one folder.
function(us_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  # Nothing of it is for programs that use an installed library.
  target_link_libraries(${name} PUBLIC $<BUILD_INTERFACE:us_options> ${ARG_DEPENDS})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()

# us_test(<name> SOURCES <file>... DEPENDS <target>...): one GoogleTest executable, a ctest entry
# for each of its tests. Test data is found through the macro TEST_DATA_DIR.
function(us_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPENDS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE us_options ${ARG_DEPENDS} GTest::gmock GTest::gtest_main)
  # Tests wait for the compiler more than for themselves: -O1 halves that.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_compile_definitions(${name} PRIVATE
    TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/tests/data"
    SAMPLE_MODEL_DIR="${PROJECT_SOURCE_DIR}/deploy/models/classics-6m")
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()

# us_fuzzer(<name> SOURCES <file>... DEPENDS <target>...): a libFuzzer executable.
function(us_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE us_options ${ARG_DEPENDS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()
