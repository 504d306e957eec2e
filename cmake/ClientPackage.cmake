# What C++ programs build against: find_package(ultrasketch) gives ultrasketch::client, the calls as plain
# C++, and ultrasketch::proto, messages and stubs. Component `development`.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ultrasketch)

set_target_properties(us_client PROPERTIES EXPORT_NAME client OUTPUT_NAME ultrasketch_client)
set_target_properties(us_proto PROPERTIES EXPORT_NAME proto OUTPUT_NAME ultrasketch_proto)
# Only what the client itself is linked with.
set_target_properties(us_base PROPERTIES EXPORT_NAME base OUTPUT_NAME ultrasketch_base)

install(TARGETS us_client us_proto us_base EXPORT ultrasketchTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT ultrasketchTargets NAMESPACE ultrasketch:: DESTINATION ${package_dir}
  COMPONENT development)

install(FILES client/client.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ultrasketch
  COMPONENT development)
# Where client.h, which includes it as "client/channel.h", finds it beside itself.
install(FILES client/channel.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ultrasketch/client
  COMPONENT development)
# Not those of google.rpc and grpc.health: other packages install files of these names.
install(DIRECTORY ${PROJECT_BINARY_DIR}/proto_generated/ultrasketch
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development FILES_MATCHING PATTERN "*.h")
install(DIRECTORY proto DESTINATION ${CMAKE_INSTALL_DATADIR}/ultrasketch COMPONENT development
  FILES_MATCHING PATTERN "*.proto")

configure_package_config_file(cmake/ultrasketchConfig.cmake.in
  ${PROJECT_BINARY_DIR}/ultrasketchConfig.cmake
  INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_DATADIR)
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ultrasketchConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ultrasketchConfig.cmake
              ${PROJECT_BINARY_DIR}/ultrasketchConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT development)
