#include "client/declared_models.h"

#include <algorithm>

namespace kvm {
namespace {

// `announce_again`: kvmd also announces regions that it has announced on this connection before.
kvmwire::ClientMessage Declaration(const ModelSpec& spec, bool announce_again) {
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec(spec.Canonical());
  message.mutable_declare_model()->set_announce_again(announce_again);
  return message;
}

}  // namespace

std::vector<Model> DeclaredModels::Models() const {
  MutexLock lock(mutex_);
  return models_;
}

void DeclaredModels::DeclareAgain() {
  for (const Model& model : Models()) link_.Request(Declaration(model.spec, true), {}, [](const Result<Answer>&) {});
}

Result<Model> DeclaredModels::Declare(const ModelSpec& spec, Deadline deadline) {
  if (Status valid = spec.Validate(); !valid) return valid.error();
  Model model{spec, spec.ComputeFingerprint()};
  const auto same = [&](const Model& other) { return other.fingerprint == model.fingerprint; };
  {
    MutexLock lock(mutex_);
    if (std::none_of(models_.begin(), models_.end(), same)) models_.push_back(model);
  }
  if (!link_.connected()) return model;  // declared on connecting
  const Result<Answer> reply = link_.Call(Declaration(spec, false), {}, deadline);
  if (!reply && reply.error().code != Errc::kUnavailable) {
    if (reply.error().code != Errc::kDeadlineExceeded) {
      MutexLock lock(mutex_);
      std::erase_if(models_, same);
    }
    return reply.error();
  }
  // The announcements came before the reply, so they are queued by now. kCancelled: the client is
  // being closed.
  if (Status mapped = mapper_.Drain(deadline); !mapped) return mapped.error();
  return model;
}

Result<std::size_t> DeclaredModels::OpenDevice(const DeviceUuid& device, Deadline deadline) {
  const std::size_t before = devices_.size();
  Result<std::size_t> index = devices_.Open(device);
  if (!index || *index < before || !link_.connected()) return index;
  for (const Model& model : Models()) {
    const Result<Answer> reply = link_.Call(Declaration(model.spec, true), {}, deadline);
    if (!reply && reply.error().code == Errc::kDeadlineExceeded) return reply.error();
  }
  if (Status mapped = mapper_.Drain(deadline); !mapped) return mapped.error();
  return index;
}

}  // namespace kvm
