// Fuzz targets: everything that turns foreign bytes into something else. Each runs under libFuzzer
// (KVM_FUZZ=ON, clang) and, with seeded mutations of its seeds, in the normal suite
// (fuzz_smoke.cc).
//
// A target never throws, leaks nothing, and calls Broken() when a property does not hold;
// sanitizers find the rest.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvm::fuzz {

using Bytes = std::span<const std::uint8_t>;

struct Target {
  std::string name;
  void (*run)(Bytes input);
  std::vector<std::string> (*seeds)();  // well-formed inputs
};

const std::vector<Target>& Targets();
const Target* FindTarget(const std::string& name);

// A property of the code under test does not hold: says which, and aborts.
[[noreturn]] void Broken(const char* property);

// Takes numbers off the front of an input; zeros when it is used up.
class Consumer {
 public:
  explicit Consumer(Bytes input) : left_(input) {}
  template <class T>
  T Take() {
    T value{};
    auto* to = reinterpret_cast<std::uint8_t*>(&value);
    for (std::size_t i = 0; i < sizeof(T) && !left_.empty(); ++i) {
      to[i] = left_.front();
      left_ = left_.subspan(1);
    }
    return value;
  }
  Bytes left() const { return left_; }
  bool empty() const { return left_.empty(); }

 private:
  Bytes left_;
};

// The targets, one file each.
void FrameReaderTarget(Bytes input);
std::vector<std::string> FrameReaderSeeds();
void WireTarget(Bytes input);
std::vector<std::string> WireSeeds();
void ModelSpecTarget(Bytes input);
std::vector<std::string> ModelSpecSeeds();
void RegistryViewTarget(Bytes input);
std::vector<std::string> RegistryViewSeeds();
void GeometryTarget(Bytes input);
std::vector<std::string> GeometrySeeds();
void GenerationTableTarget(Bytes input);
std::vector<std::string> GenerationTableSeeds();
void BlockKeyTarget(Bytes input);
std::vector<std::string> BlockKeySeeds();
void BrokerTarget(Bytes input);
std::vector<std::string> BrokerSeeds();
void ConfigFileTarget(Bytes input);
std::vector<std::string> ConfigFileSeeds();
void RestoreTarget(Bytes input);
std::vector<std::string> RestoreSeeds();
// Of kvmd-mesh, where there is one.
void DiskSegmentTarget(Bytes input);
std::vector<std::string> DiskSegmentSeeds();
void EtcdMessagesTarget(Bytes input);
std::vector<std::string> EtcdMessagesSeeds();
void MeshEventsTarget(Bytes input);
std::vector<std::string> MeshEventsSeeds();
void MeshMessagesTarget(Bytes input);
std::vector<std::string> MeshMessagesSeeds();
void TraceTarget(Bytes input);
std::vector<std::string> TraceSeeds();

}  // namespace kvm::fuzz
