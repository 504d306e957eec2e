# What is installed, and the archive that runs anywhere: `cpack --config build/CPackConfig.cmake`.
#
#   cmake --install build --component programs     executables and the CUDA plug-in
#   ... --component models                         the sample model
#   ... --component libraries                      the shared libraries that the programs need, all but glibc, and
#                                                  what their packages' licenses say
#
# The archive has all three. The trainer is not in it: LibTorch is larger than all else.

include(GNUInstallDirs)
# Of all that is built, the programs suffice: tests and trainer need not be there.
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)
set(private_libraries ${CMAKE_INSTALL_LIBDIR}/ultrasketch)
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  message(FATAL_ERROR "CMAKE_INSTALL_LIBDIR: expected a relative path, found ${CMAKE_INSTALL_LIBDIR}")
endif()

file(RELATIVE_PATH to_libraries "/${CMAKE_INSTALL_BINDIR}" "/${private_libraries}")
set_target_properties(ultrasketch ultrasketchd PROPERTIES INSTALL_RPATH "$ORIGIN/${to_libraries}")
# DT_RPATH, not DT_RUNPATH: it counts for the libraries of libraries, too.
target_link_options(ultrasketch PRIVATE LINKER:--disable-new-dtags)
target_link_options(ultrasketchd PRIVATE LINKER:--disable-new-dtags)

install(TARGETS ultrasketch ultrasketchd
  RUNTIME_DEPENDENCY_SET needed
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT programs)
if(TARGET ultrasketch_cuda)
  # Beside the executables, which look for it there.
  install(TARGETS ultrasketch_cuda ultrasketch_cuda_compress LIBRARY DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT programs)
endif()
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT programs)
install(DIRECTORY deploy/models/classics-20m-sketch
  DESTINATION ${CMAKE_INSTALL_DATADIR}/ultrasketch/models COMPONENT models)

# glibc stays the system's: its parts fit each other and the loader only.
install(RUNTIME_DEPENDENCY_SET needed
  PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv)\\.so"
  POST_EXCLUDE_REGEXES "/ld-linux[^/]*$" "/lib(c|m|dl|rt|pthread|resolv)\\.so[^/]*$"
  LIBRARY DESTINATION ${private_libraries} COMPONENT libraries EXCLUDE_FROM_ALL)
install(CODE "
  execute_process(COMMAND ${PROJECT_SOURCE_DIR}/cmake/list_packages.sh
    \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${private_libraries}\"
    \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DOCDIR}\"
    COMMAND_ERROR_IS_FATAL ANY)"
  COMPONENT libraries EXCLUDE_FROM_ALL)

set(CPACK_GENERATOR TGZ)
set(CPACK_PACKAGE_NAME ultrasketch)
set(CPACK_PACKAGE_VENDOR ultrasketch)
set(CPACK_PACKAGE_FILE_NAME ultrasketch-${PROJECT_VERSION}-linux-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_STRIP_FILES ON)
set(CPACK_ARCHIVE_COMPONENT_INSTALL ON)
set(CPACK_COMPONENT_INCLUDE_TOPLEVEL_DIRECTORY ON)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
set(CPACK_COMPONENTS_ALL programs libraries models)
include(CPack)
