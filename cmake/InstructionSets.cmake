# us_instruction_sets(): compile <name>_avx512.cc, <name>_avx2.cc and <name>_portable.cc of the
# current folder for the instruction set that they are named after. Which one runs is decided at run
# time. Where a * b + c is to be rounded once the kernels say so themselves: left to the compiler, it
# would depend on the code around it.
function(us_instruction_sets)
  foreach(name ${ARGN})
    foreach(set avx512 avx2 portable)
      set(options -ffp-contract=off -fno-trapping-math -fno-math-errno)
      if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        list(APPEND options -Wno-psabi -Wno-maybe-uninitialized)
      endif()
      if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        if(set STREQUAL "avx512")
          list(APPEND options -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
               -mprefer-vector-width=512)
        elseif(set STREQUAL "avx2")
          list(APPEND options -mavx2 -mfma -mf16c)
        endif()
      endif()
      set_source_files_properties(${name}_${set}.cc PROPERTIES COMPILE_OPTIONS "${options}")
    endforeach()
  endforeach()
endfunction()
