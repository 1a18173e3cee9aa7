# What `cmake --install` puts in place: programs, library, headers, CMake package, pkg-config file,
# service manager's files and the default configuration. Components: what each Debian package holds.
include(CMakePackageConfigHelpers)

install(TARGETS kvmd kvctl RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT service)
install(TARGETS kvclient EXPORT kvclientTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT development)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/client/include/kvclient ${PROJECT_SOURCE_DIR}/proto/include/kvm
  ${PROJECT_SOURCE_DIR}/cuda/include/kvm
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development FILES_MATCHING PATTERN "*.h")

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvclient)
install(EXPORT kvclientTargets NAMESPACE kvclient:: DESTINATION ${package_dir} COMPONENT development)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/kvclientConfig.cmake.in ${PROJECT_BINARY_DIR}/kvclientConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvclientConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvclientConfig.cmake ${PROJECT_BINARY_DIR}/kvclientConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT development)
configure_file(${CMAKE_CURRENT_LIST_DIR}/kvclient.pc.in ${PROJECT_BINARY_DIR}/kvclient.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvclient.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)

foreach(unit kvmd.service kvmd-exporter.service)
  configure_file(${PROJECT_SOURCE_DIR}/systemd/${unit}.in ${PROJECT_BINARY_DIR}/systemd/${unit} @ONLY)
endforeach()
set(systemd_dir lib/systemd/system)
install(FILES ${PROJECT_BINARY_DIR}/systemd/kvmd.service ${PROJECT_SOURCE_DIR}/systemd/kvmd.socket
  ${PROJECT_BINARY_DIR}/systemd/kvmd-exporter.service ${PROJECT_SOURCE_DIR}/systemd/kvmd-exporter.socket
  DESTINATION ${systemd_dir} COMPONENT service)
install(FILES ${PROJECT_SOURCE_DIR}/systemd/kvmd.sysusers.conf DESTINATION lib/sysusers.d RENAME kvmd.conf COMPONENT service)
install(FILES ${PROJECT_SOURCE_DIR}/systemd/kvmd.tmpfiles.conf DESTINATION lib/tmpfiles.d RENAME kvmd.conf COMPONENT service)
install(FILES ${CMAKE_CURRENT_LIST_DIR}/kvctl.schema.json DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/kvmd COMPONENT service)
install(DIRECTORY ${CMAKE_CURRENT_LIST_DIR}/monitoring ${CMAKE_CURRENT_LIST_DIR}/deploy DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/kvmd COMPONENT service)
# Below /usr the configuration belongs in /etc, as the unit file says.
set(config_dir ${CMAKE_INSTALL_SYSCONFDIR}/kvmd)
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(config_dir ${CMAKE_INSTALL_FULL_SYSCONFDIR}/kvmd)
endif()
install(FILES ${PROJECT_SOURCE_DIR}/systemd/kvmd.toml DESTINATION ${config_dir} COMPONENT service)

if(TARGET kvmd-mesh)
  install(TARGETS kvmd-mesh RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT mesh)
  install(FILES ${PROJECT_SOURCE_DIR}/systemd/kvmd-mesh@.service ${PROJECT_SOURCE_DIR}/systemd/kvmd-mesh@.socket
    DESTINATION ${systemd_dir} COMPONENT mesh)
  # Each user's instance has a file of its own, so there is none to install but an example.
  install(FILES ${PROJECT_SOURCE_DIR}/systemd/kvmd-mesh.toml DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/doc/kvmd-mesh/examples COMPONENT mesh)
endif()
