// The models that a client has declared, so that kvmd announces their regions: declared anew on
// every connection.
#pragma once

#include <cstddef>
#include <vector>

#include "client/connection/link.h"
#include "client/peers/device_set.h"
#include "client/peers/peer_mapper.h"
#include "kvclient/client.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe.
class DeclaredModels {
 public:
  DeclaredModels(Link& link, PeerMapper& mapper, DeviceSet& devices) : link_(link), mapper_(mapper), devices_(devices) {}
  DeclaredModels(const DeclaredModels&) = delete;
  DeclaredModels& operator=(const DeclaredModels&) = delete;

  // As Client::DeclareModel.
  [[nodiscard]] Result<Model> Declare(const ModelSpec& spec, Deadline deadline) KVM_EXCLUDES(mutex_);
  // Without waiting: kvmd announces the models' regions again.
  void DeclareAgain() KVM_EXCLUDES(mutex_);
  // The device's index; peers' regions are mapped for it on return.
  [[nodiscard]] Result<std::size_t> OpenDevice(const DeviceUuid& device, Deadline deadline) KVM_EXCLUDES(mutex_);

 private:
  std::vector<Model> Models() const KVM_EXCLUDES(mutex_);

  Link& link_;
  PeerMapper& mapper_;
  DeviceSet& devices_;

  mutable Mutex mutex_;
  std::vector<Model> models_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
