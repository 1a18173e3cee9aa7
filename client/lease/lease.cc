#include "kvclient/lease.h"

#include <chrono>
#include <string>
#include <utility>

#include "client/lease/lease_impl.h"
#include "client/lease/leases.h"

namespace kvm {
namespace {

Error Over(const char* how) { return MakeError(Errc::kNotFound, std::string("the lease is over: ") + how); }

}  // namespace

void Lease::Impl::End(const Error& why) {
  MutexLock lock(mutex);
  if (blocks == 0) return;
  blocks = 0;
  reason = why;
}

Lease::Lease() noexcept = default;
Lease::Lease(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Lease::~Lease() { Release(); }
Lease::Lease(Lease&&) noexcept = default;
Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  impl_ = std::move(other.impl_);
  return *this;
}

std::size_t Lease::blocks() const noexcept {
  if (!impl_ || !impl_->process.Here()) return 0;
  MutexLock lock(impl_->mutex);
  return impl_->BlocksAt(std::chrono::steady_clock::now());
}

Error Lease::reason() const {
  if (!impl_) return MakeError(Errc::kCancelled, "lease: it covers no block");
  if (!impl_->process.Here()) return BelongsToParent("lease");
  MutexLock lock(impl_->mutex);
  if (impl_->blocks > 0 && impl_->BlocksAt(std::chrono::steady_clock::now()) == 0) return Over("its time has passed");
  return impl_->reason;
}

std::chrono::milliseconds Lease::left() const noexcept {
  if (!impl_ || !impl_->process.Here()) return std::chrono::milliseconds(0);
  const Deadline now = std::chrono::steady_clock::now();
  MutexLock lock(impl_->mutex);
  if (impl_->BlocksAt(now) == 0) return std::chrono::milliseconds(0);
  return std::chrono::duration_cast<std::chrono::milliseconds>(impl_->expires - now);
}

Status Lease::Renew(std::chrono::milliseconds ttl, Deadline deadline) {
  if (const Result<std::uint32_t> ttl_ms = Leases::TtlMs(ttl); !ttl_ms) return ttl_ms.error();
  if (blocks() == 0) return reason().message.empty() ? Over("it covers no block") : reason();
  const std::shared_ptr<Leases> leases = impl_->leases.lock();
  if (!leases) return MakeError(Errc::kCancelled, "the lease's client is closed");
  return leases->Renew(*impl_, ttl, deadline);
}

void Lease::Release() noexcept {
  std::shared_ptr<Impl> impl = std::exchange(impl_, nullptr);
  if (!impl) return;
  if (!impl->process.Here()) return LeaveToParent(std::move(impl));
  const std::shared_ptr<Leases> leases = impl->leases.lock();
  std::uint64_t id = 0;
  {
    MutexLock lock(impl->mutex);
    impl->released = true;  // an answer for it may still come
    id = std::exchange(impl->id, 0);
  }
  if (leases && id != 0) leases->Release(id);
}

}  // namespace kvm
