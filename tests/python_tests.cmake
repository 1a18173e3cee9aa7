# The Python suite: one test for each file of tests/python/, labelled python. KVM_PYTHON_ENV is the
# virtual environment that scripts/python_env.sh makes; without it there are none, and nothing here
# needs Python packages. KVM_VLLM_ENV and KVM_VLLM_NEWEST_ENV are those that its --vllm makes;
# without them the tests with real vLLM engines skip. KVM_DYNAMO_ENV: the same of --routers, for the
# tests with Dynamo.
set(KVM_VLLM_NEWEST_ENV "" CACHE PATH "Virtual environment with the newest vLLM, from scripts/python_env.sh --vllm")
set(KVM_DYNAMO_ENV "" CACHE PATH "Virtual environment with Dynamo, from scripts/python_env.sh --routers")
set(KVM_VLLM_ENV "" CACHE PATH "Virtual environment with vLLM, from scripts/python_env.sh --vllm")
set(KVM_PYTHON_ENV "" CACHE PATH "Virtual environment for the Python suite, from scripts/python_env.sh")

# Compiled Python is kept beside the build, not beside the sources: without it each process with an
# engine in it compiles PyTorch's, Transformers' and vLLM's sources again, which takes longer than
# most tests.
#
# kvm_python_test(NAME sentence [TIMEOUT seconds] [GPU] COMMAND …); GPU: labelled gpu as well, one
# at a time, and skipped if all of the file's tests are.
function(kvm_python_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "GPU" "NAME;TIMEOUT" "COMMAND")
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_test(NAME "python/${arg_NAME}" COMMAND ${arg_COMMAND} WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/python)
  set_tests_properties("python/${arg_NAME}" PROPERTIES LABELS python TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "KVMD_BINARY=$<TARGET_FILE:kvmd>;KVMD_SOCKET=/nonexistent/kvmd.sock;HF_HUB_OFFLINE=1;PYTHONDONTWRITEBYTECODE=;PYTHONPYCACHEPREFIX=${CMAKE_BINARY_DIR}/pycache;KVM_DYNAMO_ENV=${KVM_DYNAMO_ENV}")
  if(arg_GPU)
    set_tests_properties("python/${arg_NAME}" PROPERTIES LABELS "python;gpu" RESOURCE_LOCK gpu SKIP_REGULAR_EXPRESSION "[\n][0-9]+ skipped in")
  endif()
endfunction()

# A file that no test names would never run.
file(GLOB python_tests RELATIVE ${CMAKE_CURRENT_SOURCE_DIR}/python CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/python/test_*.py)
file(READ ${CMAKE_CURRENT_LIST_FILE} wired)
foreach(file ${python_tests})
  if(NOT wired MATCHES "[ /]${file}")
    message(FATAL_ERROR "tests/python/${file} is in no kvm_python_test()")
  endif()
endforeach()

if(KVM_PYTHON_ENV AND TARGET kvmd)
  set(pytest_arguments -m pytest -q -p no:cacheprovider)
  set(pytest ${KVM_PYTHON_ENV}/bin/python ${pytest_arguments})
  set(pytest_vllm ${pytest})
  if(KVM_VLLM_ENV)
    set(pytest_vllm ${KVM_VLLM_ENV}/bin/python ${pytest_arguments})
  endif()
  set(pytest_newest ${pytest})
  if(KVM_VLLM_NEWEST_ENV)
    set(pytest_newest ${KVM_VLLM_NEWEST_ENV}/bin/python ${pytest_arguments})
  endif()
  kvm_python_test(NAME "blocks between processes" COMMAND ${pytest} test_two_processes.py)
  kvm_python_test(NAME "the package's own types and errors" COMMAND ${pytest} test_package.py)
  kvm_python_test(NAME "regions of one process" COMMAND ${pytest} test_regions.py)
  kvm_python_test(NAME "a process's end" COMMAND ${pytest} test_exit.py)
  kvm_python_test(NAME "the host cache" COMMAND ${pytest} test_host_cache.py)
  kvm_python_test(NAME "leases" COMMAND ${pytest} test_leases.py)
  kvm_python_test(NAME "blocks that are being computed" COMMAND ${pytest} test_computing.py)
  kvm_python_test(NAME "joins of other nodes' blocks" COMMAND ${pytest} -rs test_join.py)
  kvm_python_test(NAME "events for routers, read by vLLM's classes" TIMEOUT 300 COMMAND ${pytest_newest} -rs test_mesh_events.py)
  kvm_python_test(NAME "events for routers, followed by Dynamo's indexer" TIMEOUT 600 COMMAND ${pytest} -rs test_mesh_routers.py)
  kvm_python_test(NAME "events for routers, by which Dynamo's frontend routes" TIMEOUT 600 COMMAND ${pytest} -rs test_mesh_frontend.py)
  kvm_python_test(NAME "tokens that the vLLM connector tells" COMMAND ${pytest} test_vllm_descriptions.py)
  kvm_python_test(NAME "tensors as regions" COMMAND ${pytest} test_torch_memory.py)
  kvm_python_test(NAME "GPU memory" GPU TIMEOUT 600 COMMAND ${pytest} test_gpu.py)
  kvm_python_test(NAME "geometry of tensors" COMMAND ${pytest} test_torch_geometry.py)
  kvm_python_test(NAME "parity of generate()" TIMEOUT 300 COMMAND ${pytest} test_transformers_parity.py)
  kvm_python_test(NAME "sharing under generate()" TIMEOUT 300 COMMAND ${pytest} test_transformers.py)
  kvm_python_test(NAME "what generate() is called with" TIMEOUT 300 COMMAND ${pytest} test_transformers_requests.py test_transformers_bypass.py)
  kvm_python_test(NAME "digests of weights" COMMAND ${pytest} test_weights.py)
  kvm_python_test(NAME "how processes end" TIMEOUT 300 COMMAND ${pytest} test_process_end.py)
  kvm_python_test(NAME "interrupted calls" COMMAND ${pytest} test_interrupt.py)
  kvm_python_test(NAME "parts of the vLLM connector" COMMAND ${pytest} test_vllm_parts.py test_vllm_refusals.py test_vllm_shards.py)
  kvm_python_test(NAME "keys of the vLLM connector" COMMAND ${pytest_vllm} -rs test_vllm_keys.py)
  kvm_python_test(NAME "steps of the vLLM connector" COMMAND ${pytest} test_vllm_steps.py test_vllm_failed_loads.py)
  kvm_python_test(NAME "the vLLM connector beside others" TIMEOUT 300 COMMAND ${pytest} test_vllm_others.py)
  kvm_python_test(NAME "blocks of other nodes in the vLLM connector" COMMAND ${pytest} -rs test_vllm_joins.py)
  kvm_python_test(NAME "what changes under the vLLM connector" COMMAND ${pytest} test_vllm_changes.py test_vllm_retried.py)
  kvm_python_test(NAME "weights and adapters of the vLLM connector" COMMAND ${pytest} test_vllm_weights.py test_vllm_adapters.py)
  kvm_python_test(NAME "fields of engines' configuration" COMMAND ${pytest_vllm} -rs test_engine_fields.py)
  kvm_python_test(NAME "fields of the newest vLLM's configuration" COMMAND ${pytest_newest} -rs test_engine_fields.py)
  kvm_python_test(NAME "vLLM's interface" TIMEOUT 300 COMMAND ${pytest_vllm} -rs test_vllm_interface.py)
  kvm_python_test(NAME "the newest vLLM's interface" TIMEOUT 300 COMMAND ${pytest_newest} -rs test_vllm_interface.py)
  kvm_python_test(NAME "memory that the vLLM connector has KV caches allocated in" COMMAND ${pytest} test_vllm_kv_pool.py)
  kvm_python_test(NAME "equal prefixes in one engine" COMMAND ${pytest} test_vllm_equal_prefixes.py)
  kvm_python_test(NAME "KV-cache groups of the vLLM connector" COMMAND ${pytest} test_vllm_groups.py)
  kvm_python_test(NAME "KV-cache groups with blocks of different sizes" COMMAND ${pytest} test_vllm_group_sizes.py)
  kvm_python_test(NAME "KV-cache groups by vLLM's own rules" TIMEOUT 300 COMMAND ${pytest_newest} -rs test_vllm_group_rules.py)
  kvm_python_test(NAME "what the vLLM connector reports as held" COMMAND ${pytest} test_vllm_held.py)
  kvm_python_test(NAME "the vLLM connector under a model engine" TIMEOUT 600 COMMAND ${pytest} test_vllm_model.py)
  kvm_python_test(NAME "vLLM engines" TIMEOUT 900 COMMAND ${pytest_vllm} -rs test_vllm_engine.py)
  kvm_python_test(NAME "vLLM engines with several connectors" TIMEOUT 600 COMMAND ${pytest_vllm} -rs test_vllm_multi.py)
  kvm_python_test(NAME "engines of hybrid models with several connectors" TIMEOUT 600 COMMAND ${pytest_newest} -rs test_vllm_multi_groups.py)
  kvm_python_test(NAME "vLLM engines of several workers" TIMEOUT 600 COMMAND ${pytest_newest} -rs test_vllm_ranks.py)
  kvm_python_test(NAME "vLLM engines of hybrid models" TIMEOUT 900 COMMAND ${pytest_vllm} -rs test_vllm_hybrid.py)
  kvm_python_test(NAME "engines of hybrid models of the newest vLLM" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_hybrid.py)
  kvm_python_test(NAME "engines whose groups have blocks of different sizes" TIMEOUT 900
    COMMAND ${pytest_newest} -rs test_vllm_block_sizes.py)
  kvm_python_test(NAME "engines of models with chunks" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_chunks.py)
  kvm_python_test(NAME "engines with draft models" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_drafts.py)
  kvm_python_test(NAME "engines of models with states" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_states.py)
  kvm_python_test(NAME "KV events of vLLM engines" TIMEOUT 600 COMMAND ${pytest_vllm} -rs test_vllm_events.py)
  kvm_python_test(NAME "KV events of the newest vLLM's engines" TIMEOUT 600 COMMAND ${pytest_newest} -rs test_vllm_events.py)
  kvm_python_test(NAME "engines of the newest vLLM" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_engine.py)
  kvm_python_test(NAME "cold prompts in two vLLM engines" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_cold_prompts.py)
  kvm_python_test(NAME "vLLM engines of two nodes" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_vllm_nodes.py)
  kvm_python_test(NAME "a trained model in Transformers" TIMEOUT 600 COMMAND ${pytest} -rs test_real_model.py)
  kvm_python_test(NAME "a trained model in vLLM" TIMEOUT 900 COMMAND ${pytest_newest} -rs test_real_model_vllm.py)
  set_tests_properties("python/vLLM engines" "python/vLLM engines with several connectors"
    "python/vLLM engines of several workers" "python/vLLM engines of two nodes" "python/cold prompts in two vLLM engines"
    "python/engines of hybrid models with several connectors"
    "python/vLLM engines of hybrid models" "python/engines of hybrid models of the newest vLLM"
    "python/engines of models with states"
    "python/KV events of vLLM engines" "python/KV events of the newest vLLM's engines"
    "python/KV-cache groups by vLLM's own rules" "python/engines of the newest vLLM" "python/a trained model in vLLM"
    "python/events for routers, read by vLLM's classes"
    PROPERTIES SKIP_RETURN_CODE 5)
  kvm_python_test(NAME "the example shows hits and parity" COMMAND ${pytest} test_example.py)
  kvm_python_test(NAME "style and types" COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/python/check.sh ${KVM_PYTHON_ENV})
endif()
