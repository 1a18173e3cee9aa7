// Runs stored inputs through their fuzz targets, without libFuzzer: `fuzz_replay FOLDER` runs each
// file of FOLDER/NAME through the target NAME; `fuzz_replay --write-seeds FOLDER` writes the
// targets' seeds there. A target that breaks ends the process by a signal, after the file's name.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include "tests/fuzz/targets.h"

namespace {

namespace fs = std::filesystem;

int WriteSeeds(const fs::path& folder) {
  for (const kvm::fuzz::Target& target : kvm::fuzz::Targets()) {
    fs::create_directories(folder / target.name);
    int number = 0;
    for (const std::string& seed : target.seeds()) {
      std::ofstream file(folder / target.name / ("seed-" + std::to_string(number++)), std::ios::binary);
      file.write(seed.data(), static_cast<std::streamsize>(seed.size()));
      if (!file) return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--write-seeds") == 0) return WriteSeeds(argv[2]);
  if (argc != 2) {
    std::cerr << "usage: fuzz_replay FOLDER\n";
    return 2;
  }
  std::size_t inputs = 0;
  for (const kvm::fuzz::Target& target : kvm::fuzz::Targets()) {
    const fs::path stored = fs::path(argv[1]) / target.name;
    if (!fs::is_directory(stored)) continue;  // fuzz_smoke.cc runs its seeds
    for (const fs::directory_entry& entry : fs::directory_iterator(stored)) {
      std::cout << target.name << " " << entry.path().filename().string() << std::endl;
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
      target.run({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
      ++inputs;
    }
  }
  if (inputs == 0) {
    std::cerr << "no stored input in " << argv[1] << "\n";
    return 1;
  }
  std::cout << inputs << " inputs\n";
  return 0;
}
