// The PTX that the kernels are made of: loads with a stated scope, mbarriers, bulk copies.
//
// Bulk copies and mbarriers with transaction counts exist from compute capability 9.0 on.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace kvm {

// Loads payload bytes, which are read once, without a copy in the first-level cache.
__device__ inline uint4 LoadOnce(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}
__device__ inline std::uint64_t LoadOnce(const std::uint64_t* at) {
  std::uint64_t v;
  asm volatile("ld.global.L1::no_allocate.u64 %0, [%1];" : "=l"(v) : "l"(at));
  return v;
}
__device__ inline std::uint32_t LoadOnce(const std::uint32_t* at) {
  std::uint32_t v;
  asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(at));
  return v;
}
__device__ inline std::uint8_t LoadOnce(const std::uint8_t* at) {
  std::uint32_t v;
  asm volatile("ld.global.L1::no_allocate.u8 %0, [%1];" : "=r"(v) : "l"(at));
  return static_cast<std::uint8_t>(v);
}

// Loads a generation counter in host memory that another process changes. The caller puts a fence
// between the loads that the generation guards and this one, so a relaxed load suffices.
__device__ inline std::uint64_t LoadGeneration(std::uint64_t address) {
  std::uint64_t v;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(address) : "memory");
  return v;
}
// Stores to host memory that the CPU polls.
__device__ inline void StoreHost(std::uint8_t* at, std::uint8_t value) {
  asm volatile("st.relaxed.sys.global.u8 [%0], %1;" ::"l"(at), "r"(static_cast<std::uint32_t>(value)) : "memory");
}
__device__ inline void StoreHost(std::uint32_t* at, std::uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ inline std::uint32_t SharedAddress(const void* at) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(at)); }

__device__ inline void InitBarrier(std::uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals) : "memory");
}
// Makes the initialisation visible to the bulk copy engine.
__device__ inline void FenceBarrierInit() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void ArriveBarrier(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ inline void ExpectBytes(std::uint64_t* barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes) : "memory");
}
__device__ inline void WaitBarrier(std::uint64_t* barrier, unsigned parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(SharedAddress(barrier)), "r"(parity)
                 : "memory");
  }
}

// 16-byte aligned addresses and sizes.
__device__ inline void BulkLoad(void* shared, const void* global, std::uint32_t bytes, std::uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
               : "memory");
}
__device__ inline void BulkStore(void* global, const void* shared, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(SharedAddress(shared)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until at most kPending of the thread's stores may still read shared memory.
template <int kPending>
__device__ inline void WaitStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ inline void WaitStoresDone() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

#endif

}  // namespace kvm
