// bf16 matrix products through cuBLAS, for measuring what imports cost the model next to them.
#pragma once

namespace kvm::test {

// Runs 8192 x 8192 x 8192 products on the GPU for about `seconds`; TFLOP/s, 0 if cuBLAS can't be
// loaded.
double GemmTeraflops(int ordinal, double seconds);

}  // namespace kvm::test
