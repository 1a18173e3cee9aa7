# Debian packages by CPack (scripts/package.sh): kvmd with kvctl and the service, kvmd-mesh, the
# library, and what programs are built with. Each holds the install() rules of one component.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME kvmd)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(KVM_PACKAGE_CONTACT "The kvmd authors <kvmd@users.noreply.github.com>" CACHE STRING "Maintainer: field of the packages")
set(CPACK_PACKAGE_CONTACT ${KVM_PACKAGE_CONTACT})
# Else CPack puts one summary before the description of each package.
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "")
set(CPACK_COMPONENTS_ALL service library development)
if(TARGET kvmd-mesh)
  list(APPEND CPACK_COMPONENTS_ALL mesh)
endif()
set(CPACK_STRIP_FILES ON)
set(CPACK_SET_DESTDIR ON)  # the configuration's path is absolute
set(CPACK_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

set(debian_dir ${CMAKE_CURRENT_LIST_DIR}/debian)
# The first line of a description is its summary; CPack indents the others.
set(CPACK_DEBIAN_SERVICE_PACKAGE_NAME kvmd)
set(CPACK_DEBIAN_SERVICE_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_SERVICE_PACKAGE_DEPENDS "systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles, init-system-helpers (>= 1.54)")
set(CPACK_DEBIAN_SERVICE_DESCRIPTION "registry of KV cache blocks shared between inference processes
kvmd keeps the registry of the KV cache blocks that the inference processes of
a node have computed, and hands each process the memory handles of its peers,
so that a prompt's prefix is computed once a node.

This package has the service, its configuration, and kvctl, which shows what
is shared, by whom, and why a prompt was a miss.")
set(CPACK_DEBIAN_SERVICE_PACKAGE_CONTROL_EXTRA
  "${debian_dir}/kvmd/postinst;${debian_dir}/kvmd/prerm;${debian_dir}/kvmd/postrm;${debian_dir}/kvmd/conffiles")

set(CPACK_DEBIAN_MESH_PACKAGE_NAME kvmd-mesh)
set(CPACK_DEBIAN_MESH_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_MESH_PACKAGE_DEPENDS "kvmd (= ${PROJECT_VERSION}), init-system-helpers (>= 1.54)")
set(CPACK_DEBIAN_MESH_PACKAGE_SUGGESTS "libucx0")  # loaded if the configuration asks for it
set(CPACK_DEBIAN_MESH_DESCRIPTION "brings KV cache blocks of other nodes to this one
kvmd-mesh, one process on each node for each user, asks the kvmd-mesh of other
nodes for the blocks of a prompt's prefix, and publishes them on this node like
any worker of kvmd.

No instance runs until one is configured and enabled: see the example in
/usr/share/doc/kvmd-mesh/examples, and kvmd-mesh(8).")
set(CPACK_DEBIAN_MESH_PACKAGE_CONTROL_EXTRA "${debian_dir}/mesh/postinst;${debian_dir}/mesh/prerm;${debian_dir}/mesh/postrm")

# The library's name in Debian says its SONAME: libkvclient.so.0.2 is in libkvclient0.2.
set(soname_version ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set(library_package libkvclient${soname_version})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME ${library_package})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION "library that shares KV cache blocks through kvmd
libkvclient publishes KV cache blocks in place, finds the longest common prefix
of a prompt in shared memory, and copies its blocks from the memory of the
process that has them, validated.")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA "${debian_dir}/library/triggers;${PROJECT_BINARY_DIR}/debian/shlibs")
file(WRITE ${PROJECT_BINARY_DIR}/debian/shlibs "libkvclient ${soname_version} ${library_package} (>= ${PROJECT_VERSION})\n")

set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libkvclient-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
# What kvclientConfig.cmake asks for: 1.81 or newer, which Debian 12 has beside its default.
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${library_package} (= ${PROJECT_VERSION}), libboost-dev (>= 1.81) | libboost1.81-dev")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION "headers of libkvclient
What a program is built with that shares KV cache blocks through kvmd: headers,
a CMake package and a pkg-config file.")

include(CPack)

# Documents that every Debian package has, and what package.sh makes of the programs' own
# description.
set(doc_dir ${CMAKE_INSTALL_DATAROOTDIR}/doc)
set(documented "service kvmd" "library ${library_package}" "development libkvclient-dev")
if(TARGET kvmd-mesh)
  list(APPEND documented "mesh kvmd-mesh")
endif()
foreach(pair IN LISTS documented)
  separate_arguments(pair UNIX_COMMAND "${pair}")
  list(GET pair 0 component)
  list(GET pair 1 package)
  install(FILES ${debian_dir}/copyright DESTINATION ${doc_dir}/${package} COMPONENT ${component})
  install(FILES ${PROJECT_BINARY_DIR}/debian/changelog.gz DESTINATION ${doc_dir}/${package} COMPONENT ${component} OPTIONAL)
endforeach()
install(FILES ${debian_dir}/library/lintian-overrides DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/lintian/overrides RENAME ${library_package} COMPONENT library)
install(DIRECTORY ${PROJECT_BINARY_DIR}/debian/man1 DESTINATION ${CMAKE_INSTALL_MANDIR} COMPONENT service OPTIONAL)
# Manual pages and completion of the programs: of kvmd there is nothing to complete.
foreach(pair "service kvmd" "service kvctl" "mesh kvmd-mesh")
  separate_arguments(pair UNIX_COMMAND "${pair}")
  list(GET pair 0 component)
  list(GET pair 1 program)
  if(component STREQUAL mesh AND NOT TARGET kvmd-mesh)
    continue()
  endif()
  set(made ${PROJECT_BINARY_DIR}/debian)
  install(FILES ${made}/${program}.8.gz DESTINATION ${CMAKE_INSTALL_MANDIR}/man8 COMPONENT ${component} OPTIONAL)
  install(FILES ${made}/${program}.bash DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/bash-completion/completions RENAME ${program} COMPONENT ${component} OPTIONAL)
  install(FILES ${made}/${program}.zsh DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/zsh/vendor-completions RENAME _${program} COMPONENT ${component} OPTIONAL)
  install(FILES ${made}/${program}.fish DESTINATION ${CMAKE_INSTALL_DATAROOTDIR}/fish/vendor_completions.d COMPONENT ${component} OPTIONAL)
endforeach()
