// DeclaredModels: the models that a client has declared, so that kvmd announces their regions. They
// are declared again on every connection.
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

  // See Client::DeclareModel.
  [[nodiscard]] Result<Model> Declare(const ModelSpec& spec, Deadline deadline) KVM_EXCLUDES(mutex_);
  // Asks kvmd to announce the models' regions again; does not wait.
  void DeclareAgain() KVM_EXCLUDES(mutex_);
  // Returns the device's index. On return, peers' regions are mapped for the device.
  [[nodiscard]] Result<std::size_t> OpenDevice(const DeviceUuid& device, Deadline deadline) KVM_EXCLUDES(mutex_);
  std::vector<Model> Models() const KVM_EXCLUDES(mutex_);

 private:
  Link& link_;
  PeerMapper& mapper_;
  DeviceSet& devices_;

  mutable Mutex mutex_;
  std::vector<Model> models_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
