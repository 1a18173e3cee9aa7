# Unit tests of kvctl's parts; built by tests/CMakeLists.txt against kvm_kvctl.
set(KVM_KVCTL_TEST_SOURCES
  bench/compared_rows.cc
  unit/kvctl/test_block_pieces.cc
  unit/kvctl/test_block_pool.cc
  unit/kvctl/test_compared_rows.cc
  unit/kvctl/test_doctor_clients.cc
  unit/kvctl/test_doctor_host_cache.cc
  unit/kvctl/test_doctor_mesh.cc
  unit/kvctl/test_doctor_models.cc
  unit/kvctl/test_doctor_orphans.cc
  support/process/temp_dir.cc
  unit/kvctl/test_hot_tree.cc
  unit/kvctl/test_key_query.cc
  unit/kvctl/test_kvctl_gpus.cc
  unit/kvctl/test_kvctl_output.cc
  unit/kvctl/test_kvctl_processes.cc
  unit/kvctl/test_kvctl_text.cc
  unit/kvctl/test_live.cc
  unit/kvctl/test_miss_checks.cc
  unit/kvctl/test_pool_memory.cc
  unit/kvctl/test_replay_pace.cc
  unit/kvctl/test_restart_losses.cc
  unit/kvctl/test_simulate.cc
  unit/kvctl/test_simulate_bound.cc
  unit/kvctl/test_trace.cc
  unit/kvctl/test_trace_formats.cc
  unit/kvctl/test_workload.cc)

if(PROMETHEUS_CORE_FOUND)
  list(APPEND KVM_KVCTL_TEST_SOURCES unit/kvctl/test_host_header.cc unit/kvctl/test_listening_sockets.cc unit/kvctl/test_mesh_sockets.cc unit/kvctl/test_metric_page.cc unit/kvctl/test_status_page.cc)
endif()

# The command line, with kvmd and worker processes.
if(TARGET kvctl AND TARGET kvmd)
  kvm_test(NAME kvctl_cli_tests LABEL integration TIMEOUT 120 LIBS kvm_kvctl kvm_process_support DEPENDS kvctl kvmd
    SOURCES integration/test_kvctl_cli.cc integration/test_kvctl_output.cc)
  kvm_test(NAME kvctl_live_tests LABEL integration TIMEOUT 120 LIBS kvm_kvctl kvm_process_support DEPENDS kvctl kvmd
    SOURCES integration/test_kvctl_evict.cc integration/test_kvctl_explain_last.cc integration/test_kvctl_live.cc
      integration/test_kvctl_operate.cc)
  if(TARGET kvctl_live_tests AND PROMETHEUS_CORE_FOUND)
    target_sources(kvctl_live_tests PRIVATE integration/test_exporter.cc)
  endif()
  kvm_test(NAME kvctl_replay_tests LABEL integration TIMEOUT 120 LIBS kvm_kvctl DEPENDS kvctl kvmd
    SOURCES integration/test_kvctl_replay_policy.cc)
  kvm_test(NAME kvctl_retained_tests LABEL integration LIBS kvm_kvctl kvm_process_support DEPENDS kvctl SOURCES integration/test_kvctl_retained.cc)
  kvm_test(NAME kvctl_bench_tests LABEL integration TIMEOUT 120 LIBS kvm_kvctl kvm_process_support DEPENDS kvctl kvmd
    SOURCES integration/test_kvctl_bench.cc)
  kvm_test(NAME kvctl_trace_tests LABEL integration TIMEOUT 120 LIBS kvm_kvctl kvm_process_support DEPENDS kvctl kvmd
    SOURCES integration/test_kvctl_traces.cc)
endif()
