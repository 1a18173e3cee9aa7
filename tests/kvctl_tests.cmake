# Unit tests of kvctl's parts; built by tests/CMakeLists.txt against kvm_kvctl.
set(KVM_KVCTL_TEST_SOURCES
  unit/test_block_pool.cc
  unit/test_trace.cc
  unit/test_workload.cc)
