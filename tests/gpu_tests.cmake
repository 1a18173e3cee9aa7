# Tests of the CUDA data plane. The planning tests need no GPU; those labelled gpu skip visibly
# without one.
kvm_test(NAME transfer_tests LABEL unit LIBS kvm_memory
  SOURCES
    unit/cuda/test_transfer_plan.cc)

if(TARGET kvm_cuda)
  kvm_cuda_object(gpu/pattern)
  add_library(kvm_gpu_testing STATIC gpu/exporter.cc gpu/exporter_process.cc gpu/gemm.cc ${pattern_object})
  target_include_directories(kvm_gpu_testing SYSTEM PUBLIC ${KVM_CUDA_INCLUDE_DIRS})
  target_link_libraries(kvm_gpu_testing PUBLIC kvm_memory kvm_proto PRIVATE kvm_build_flags)

  kvm_test(NAME gpu_tests LABEL gpu TIMEOUT 300 LIBS kvm_gpu_testing kvm_memory
    SOURCES
      bench/copy_baselines.cc
      gpu/test_copy_baselines.cc
      gpu/test_copy_kernels.cc
      gpu/test_cuda_backend.cc
      gpu/test_peer_import.cc
    PROPERTIES RESOURCE_LOCK gpu)

  if(TARGET kvm_process_support)
    add_library(kvm_gpu_market STATIC gpu/gpu_worker.cc gpu/market_processes.cc)
    target_link_libraries(kvm_gpu_market PUBLIC kvm_gpu_testing kvm_process_support PRIVATE kvm_build_flags)
    kvm_test(NAME gpu_market_tests LABEL gpu TIMEOUT 600 LIBS kvm_gpu_market DEPENDS kvctl kvmd
      SOURCES
        gpu/test_exportable_memory.cc
        gpu/test_gpu_host_cache.cc
        gpu/test_market.cc
        gpu/test_market_faults.cc
        gpu/test_gpu_orphans.cc
      PROPERTIES RESOURCE_LOCK gpu)
  endif()

  add_executable(bench_import gpu/bench_import.cc gpu/bench_rows.cc gpu/bench_setup.cc gpu/bench_tune.cc)
  target_link_libraries(bench_import PRIVATE kvm_gpu_testing kvm_memory kvm_build_flags)
endif()

# kvctl on GPUs, in every build: without CUDA, driver or GPU they are skipped and say which.
if(TARGET kvctl AND TARGET kvmd)
  kvm_test(NAME kvctl_gpu_tests LABEL gpu TIMEOUT 300 LIBS kvm_kvctl DEPENDS kvctl kvmd SOURCES gpu/test_kvctl_gpu.cc
    PROPERTIES RESOURCE_LOCK gpu)
endif()
