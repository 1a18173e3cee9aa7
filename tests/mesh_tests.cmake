# kvmd-mesh: its parts, and two nodes on one machine.
if(TARGET kvm_mesh)
  kvm_test(NAME mesh_tests LABEL unit LIBS kvm_mesh kvm_daemon kvm_process_support
    SOURCES unit/mesh/test_mesh_choice.cc unit/mesh/test_mesh_config.cc unit/mesh/test_mesh_directory.cc unit/mesh/test_mesh_frame.cc
      unit/mesh/test_mesh_index_scan.cc unit/mesh/test_mesh_log.cc unit/mesh/test_mesh_worker_socket.cc)
  kvm_test(NAME mesh_events_tests LABEL unit LIBS kvm_mesh_events SOURCES support/mesh/event_reader.cc unit/mesh/test_mesh_events.cc)
  set(ucx_sources)
  if(KVM_HAVE_UCX)
    set(ucx_sources unit/mesh/test_mesh_ucx.cc)
  endif()
  kvm_test(NAME mesh_transfer_tests LABEL unit TIMEOUT 240 LIBS kvm_mesh SOURCES unit/mesh/test_mesh_transfer.cc ${ucx_sources})
  kvm_test(NAME mesh_membership_tests LABEL unit TIMEOUT 180 LIBS kvm_mesh kvm_json kvm_process_support
    SOURCES unit/mesh/test_mesh_etcd.cc unit/mesh/test_mesh_etcd_messages.cc support/mesh/fake_etcd.cc)
  kvm_test(NAME mesh_lack_tests LABEL unit LIBS kvm_mesh
    SOURCES support/process/failing_allocation.cc support/process/temp_dir.cc unit/mesh/test_mesh_lack.cc)
  kvm_test(NAME mesh_disk_tests LABEL unit TIMEOUT 240 LIBS kvm_mesh_disk SOURCES
    support/process/temp_dir.cc unit/mesh/test_mesh_disk_cache.cc unit/mesh/test_mesh_disk_index.cc)
endif()

if(TARGET kvm_process_support AND TARGET kvmd-mesh)
  add_library(kvm_mesh_support STATIC
    support/mesh/etcd_process.cc support/mesh/lying_peer.cc support/mesh/mesh_authority.cc support/mesh/mesh_process.cc
    support/mesh/soak_workers.cc support/mesh/tcp_relay.cc)
  target_link_libraries(kvm_mesh_support PUBLIC kvm_process_support kvm_mesh kvm_kvctl PRIVATE kvm_build_flags)
  target_compile_definitions(kvm_mesh_support PRIVATE KVM_MESH_BINARY="$<TARGET_FILE:kvmd-mesh>")
  add_dependencies(kvm_mesh_support kvmd-mesh kvctl)
  kvm_test(NAME mesh_integration_tests LABEL integration TIMEOUT 120 LIBS kvm_mesh_support
    SOURCES integration/test_mesh.cc integration/test_mesh_disk.cc integration/test_mesh_kvctl.cc integration/test_mesh_log.cc integration/test_mesh_peers.cc
      integration/test_mesh_serving.cc integration/test_mesh_status.cc)
  if(TARGET kvm_zmq)
    kvm_test(NAME mesh_events_integration_tests LABEL integration TIMEOUT 240 LIBS kvm_mesh_support kvm_zmq
      SOURCES integration/test_mesh_events.cc support/mesh/event_reader.cc support/mesh/event_subscriber.cc)
  endif()
  kvm_test(NAME mesh_tls_tests LABEL integration TIMEOUT 120 LIBS kvm_mesh_support SOURCES integration/test_mesh_tls.cc)
  kvm_test(NAME mesh_ucx_tests LABEL integration TIMEOUT 120 LIBS kvm_mesh_support SOURCES integration/test_mesh_ucx.cc)
  kvm_test(NAME mesh_etcd_tests LABEL integration TIMEOUT 240 LIBS kvm_mesh_support SOURCES integration/test_mesh_etcd.cc)
  kvm_test(NAME mesh_fault_tests LABEL fault TIMEOUT 120 LIBS kvm_mesh_support SOURCES fault/test_mesh.cc fault/test_mesh_disk.cc fault/test_mesh_ucx.cc)
  kvm_test(NAME mesh_soak_tests LABEL fault NIGHTLY TIMEOUT 3600 LIBS kvm_mesh_support SOURCES fault/test_mesh_soak.cc)
endif()
