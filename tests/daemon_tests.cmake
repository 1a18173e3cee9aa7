# Tests of kvmd's parts and of a kvmd that runs in the test's process.
set(KVM_DAEMON_TEST_SOURCES
  support/wire_client.cc
  unit/test_block_index.cc
  unit/test_host_cache.cc
  unit/test_host_cache_writers.cc
  unit/test_kvmd_config.cc
  fuzz/mutator.cc
  unit/test_kvmd_connections.cc
  unit/test_kvmd_noise.cc
  unit/test_kvmd_orphans.cc
  unit/test_kvmd_regions.cc
  unit/test_kvmd_sessions.cc
  unit/test_known_fields.cc
  unit/test_leases.cc
  unit/test_log_sink.cc
  unit/test_registry.cc
  unit/test_tier_blocks.cc)
