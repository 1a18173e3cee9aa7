# The Python suite: one test for each file of tests/python/, labelled python. KVM_PYTHON_ENV is the virtual
# environment that scripts/python_env.sh makes; without it there are none, and nothing here needs Python packages.
# KVM_VLLM_ENV is the one that its --vllm makes; without it the tests with real vLLM engines skip.
set(KVM_VLLM_ENV "" CACHE PATH "Virtual environment with vLLM, from scripts/python_env.sh --vllm")
set(KVM_PYTHON_ENV "" CACHE PATH "Virtual environment for the Python suite, from scripts/python_env.sh")

# kvm_python_test(NAME sentence [TIMEOUT seconds] [GPU] COMMAND …); GPU: labelled gpu as well, one at a time, and skipped if
# all of the file's tests are.
function(kvm_python_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "GPU" "NAME;TIMEOUT" "COMMAND")
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_test(NAME "python/${arg_NAME}" COMMAND ${arg_COMMAND} WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/python)
  set_tests_properties("python/${arg_NAME}" PROPERTIES LABELS python TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "KVMD_BINARY=$<TARGET_FILE:kvmd>;KVMD_SOCKET=/nonexistent/kvmd.sock;HF_HUB_OFFLINE=1;PYTHONDONTWRITEBYTECODE=1")
  if(arg_GPU)
    set_tests_properties("python/${arg_NAME}" PROPERTIES LABELS "python;gpu" RESOURCE_LOCK gpu SKIP_REGULAR_EXPRESSION "[\n][0-9]+ skipped in")
  endif()
endfunction()

if(KVM_PYTHON_ENV AND TARGET kvmd)
  set(pytest_arguments -m pytest -q -p no:cacheprovider)
  set(pytest ${KVM_PYTHON_ENV}/bin/python ${pytest_arguments})
  set(pytest_vllm ${pytest})
  if(KVM_VLLM_ENV)
    set(pytest_vllm ${KVM_VLLM_ENV}/bin/python ${pytest_arguments})
  endif()
  kvm_python_test(NAME "blocks between processes" COMMAND ${pytest} test_two_processes.py)
  kvm_python_test(NAME "the package's own types and errors" COMMAND ${pytest} test_package.py)
  kvm_python_test(NAME "regions of one process" COMMAND ${pytest} test_regions.py)
  kvm_python_test(NAME "the host cache" COMMAND ${pytest} test_host_cache.py)
  kvm_python_test(NAME "tensors as regions" COMMAND ${pytest} test_torch_memory.py)
  kvm_python_test(NAME "GPU memory" GPU TIMEOUT 600 COMMAND ${pytest} test_gpu.py)
  kvm_python_test(NAME "geometry of tensors" COMMAND ${pytest} test_torch_geometry.py)
  kvm_python_test(NAME "parity of generate()" TIMEOUT 300 COMMAND ${pytest} test_transformers_parity.py)
  kvm_python_test(NAME "sharing under generate()" TIMEOUT 300 COMMAND ${pytest} test_transformers.py)
  kvm_python_test(NAME "parts of the vLLM connector" COMMAND ${pytest} test_vllm_parts.py)
  kvm_python_test(NAME "the vLLM connector under a model engine" TIMEOUT 300 COMMAND ${pytest} test_vllm_model.py)
  kvm_python_test(NAME "vLLM engines" TIMEOUT 900 COMMAND ${pytest_vllm} -rs test_vllm_engine.py)
  set_tests_properties("python/vLLM engines" PROPERTIES SKIP_RETURN_CODE 5)
  kvm_python_test(NAME "the example shows hits and parity" COMMAND ${pytest} test_example.py)
  kvm_python_test(NAME "style and types" COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/python/check.sh ${KVM_PYTHON_ENV})
endif()
