// libFuzzer entry of one target, named by KVM_FUZZ_TARGET. `binary --write-seeds DIR` fills a
// corpus.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>

#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::strcmp((*argv)[1], "--write-seeds") != 0) return 0;
  int number = 0;
  for (const std::string& seed : kvm::fuzz::FindTarget(KVM_FUZZ_TARGET)->seeds()) {
    const std::string path = std::string((*argv)[2]) + "/seed-" + std::to_string(number++);
    std::ofstream file(path, std::ios::binary);
    file.write(seed.data(), static_cast<std::streamsize>(seed.size()));
    if (!file) {
      std::cerr << "can't write " << path << std::endl;
      std::exit(1);
    }
  }
  std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const kvm::fuzz::Target* target = kvm::fuzz::FindTarget(KVM_FUZZ_TARGET);
  target->run({data, size});
  return 0;
}
