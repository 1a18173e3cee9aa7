#include "tests/fuzz/targets.h"

#include <cstdio>
#include <cstdlib>

namespace kvm::fuzz {

const std::vector<Target>& Targets() {
  static const std::vector<Target> targets = {
      {"frame_reader", FrameReaderTarget, FrameReaderSeeds},
      {"wire", WireTarget, WireSeeds},
      {"model_spec", ModelSpecTarget, ModelSpecSeeds},
      {"registry_view", RegistryViewTarget, RegistryViewSeeds},
      {"geometry", GeometryTarget, GeometrySeeds},
      {"generation_table", GenerationTableTarget, GenerationTableSeeds},
      {"block_key", BlockKeyTarget, BlockKeySeeds},
      {"broker", BrokerTarget, BrokerSeeds},
      {"config_file", ConfigFileTarget, ConfigFileSeeds},
      {"restore", RestoreTarget, RestoreSeeds},
      {"trace", TraceTarget, TraceSeeds},
#ifdef KVM_FUZZ_MESH
      {"disk_segment", DiskSegmentTarget, DiskSegmentSeeds},
      {"etcd_messages", EtcdMessagesTarget, EtcdMessagesSeeds},
      {"mesh_events", MeshEventsTarget, MeshEventsSeeds},
      {"mesh_messages", MeshMessagesTarget, MeshMessagesSeeds},
#endif
  };
  return targets;
}

const Target* FindTarget(const std::string& name) {
  for (const Target& target : Targets()) {
    if (target.name == name) return &target;
  }
  return nullptr;
}

void Broken(const char* property) {
  std::fprintf(stderr, "broken property: %s\n", property);
  std::abort();
}

}  // namespace kvm::fuzz
