// One allocation of this thread that fails, for tests of a lack of memory. Only for binaries that
// have failing_allocation.cc, which defines operator new. With sanitizers none fails (sanitized.h).
#pragma once

namespace kvm::test {

// Of this thread's allocations from now on, the one after `others` fails; negative: none. `failed`,
// which may be in shared memory, is set then, and outlives that.
void FailAllocation(long others, bool* failed = nullptr) noexcept;

}  // namespace kvm::test
