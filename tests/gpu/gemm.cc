// cuBLAS is loaded when used and declared by hand: nothing else needs it, and its header is not
// always there.
#include "tests/gpu/gemm.h"

#include <dlfcn.h>

#include <chrono>
#include <vector>

#include "tests/gpu/pattern.h"
#include "tests/support/data/random.h"

namespace kvm::test {
namespace {

// cublas_api.h, library_types.h
constexpr int kNoTranspose = 0, kBf16 = 14, kComputeFloat = 68, kDefaultAlgorithm = -1;

struct Cublas {
  using Handle = void*;
  int (*Create)(Handle*) = nullptr;
  int (*Destroy)(Handle) = nullptr;
  int (*SetStream)(Handle, cudaStream_t) = nullptr;
  int (*GemmEx)(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int, int,
                int, int) = nullptr;

  bool Load() {
    void* library = nullptr;
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "/usr/local/cuda/lib64/libcublas.so"}) {
      if (library == nullptr) library = ::dlopen(name, RTLD_NOW);
    }
    if (library == nullptr) return false;
    Create = reinterpret_cast<decltype(Create)>(::dlsym(library, "cublasCreate_v2"));
    Destroy = reinterpret_cast<decltype(Destroy)>(::dlsym(library, "cublasDestroy_v2"));
    SetStream = reinterpret_cast<decltype(SetStream)>(::dlsym(library, "cublasSetStream_v2"));
    GemmEx = reinterpret_cast<decltype(GemmEx)>(::dlsym(library, "cublasGemmEx"));
    return Create != nullptr && Destroy != nullptr && SetStream != nullptr && GemmEx != nullptr;
  }
};

}  // namespace

double GemmTeraflops(int ordinal, double seconds) {
  constexpr int kSize = 8192;
  Cublas cublas;
  if (!cublas.Load()) return 0.0;
  MustSucceed(cudaSetDevice(ordinal), "cudaSetDevice");
  std::byte* data = nullptr;
  const std::size_t bytes = std::size_t{kSize} * kSize * 2;
  MustSucceed(cudaMalloc(reinterpret_cast<void**>(&data), 3 * bytes), "cudaMalloc");
  // Random signs and mantissas around 1: finite products, and the power draw of real data.
  Random random(3);
  std::vector<std::uint64_t> values(2 * bytes / sizeof(std::uint64_t));
  for (std::uint64_t& value : values) value = (random.Next() & 0x807F807F807F807FULL) | 0x3F003F003F003F00ULL;
  MustSucceed(cudaMemcpy(data, values.data(), 2 * bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  cudaStream_t stream = nullptr;
  MustSucceed(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  Cublas::Handle handle = nullptr;
  if (cublas.Create(&handle) != 0) return 0.0;
  static_cast<void>(cublas.SetStream(handle, stream));
  const float one = 1e-4f, zero = 0.0f;
  const auto multiply = [&](int times) {
    for (int i = 0; i < times; ++i) {
      cublas.GemmEx(handle, kNoTranspose, kNoTranspose, kSize, kSize, kSize, &one, data, kBf16, kSize, data + bytes, kBf16, kSize, &zero,
                    data + 2 * bytes, kBf16, kSize, kComputeFloat, kDefaultAlgorithm);
    }
    MustSucceed(cudaStreamSynchronize(stream), "gemm");
  };
  multiply(5);
  const auto begin = std::chrono::steady_clock::now();
  double elapsed = 0;
  int done = 0;
  while (elapsed < seconds) {
    multiply(20);
    done += 20;
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  cublas.Destroy(handle);
  cudaStreamDestroy(stream);
  cudaFree(data);
  return 2.0 * kSize * kSize * kSize * done / elapsed / 1e12;
}

}  // namespace kvm::test
