#include "client/computing_marks.h"

#include <algorithm>
#include <utility>

#include "client/connection/wait.h"
#include "client/find/marked_keys.h"
#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

Status StatusOf(const Result<Answer>& reply) {
  if (!reply) return reply.error();
  const kvmwire::MarkComputingReply& marked = reply->message.mark_computing_reply();
  return marked.reason().empty() ? Status() : Status(MakeError(Errc::kResourceExhausted, marked.reason()));
}

}  // namespace

void ComputingMark::Impl::Answer(Status its_answer) {
  MutexLock lock(mutex);
  answer = std::move(its_answer);
  answered.notify_all();
}

ComputingMark ComputingMarks::Mark(std::span<const BlockKey> missing, std::chrono::milliseconds ttl) {
  const std::vector<BlockKey> keys = KeysToMark(missing, kMaxMarkBatch);
  auto mark = std::make_shared<ComputingMark::Impl>(self_, last_.fetch_add(1, std::memory_order_relaxed) + 1);
  const std::shared_ptr<const PeerSnapshot> snapshot = peers_.Get().current;
  if (!snapshot || !snapshot->registry.marks().exist()) {
    mark->Answer(snapshot ? MakeError(Errc::kUnsupported, "mark: this kvmd knows no marks")
                          : MakeError(Errc::kUnavailable, "not connected to kvmd"));
    return ComputingMark(std::move(mark));
  }
  kvmwire::ClientMessage message;
  kvmwire::MarkComputing& request = *message.mutable_mark_computing();
  request.set_mark(mark->id);
  request.set_ttl_ms(static_cast<std::uint32_t>(std::clamp<std::int64_t>(ttl.count(), 1, UINT32_MAX)));
  request.set_keys(keys.data(), keys.size() * sizeof(BlockKey));
  link_.Request(std::move(message), {}, [mark](const Result<kvm::Answer>& reply) { mark->Answer(StatusOf(reply)); });
  return ComputingMark(std::move(mark));
}

void ComputingMarks::End(std::uint64_t mark) {
  const std::shared_ptr<const PeerSnapshot> snapshot = peers_.Get().current;
  if (!snapshot || !snapshot->registry.marks().exist()) return;
  kvmwire::ClientMessage message;
  message.mutable_end_computing()->set_mark(mark);
  link_.Post(message);
}

ComputingMark::ComputingMark() noexcept = default;
ComputingMark::ComputingMark(std::shared_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
ComputingMark::~ComputingMark() { End(); }
ComputingMark::ComputingMark(ComputingMark&&) noexcept = default;
ComputingMark& ComputingMark::operator=(ComputingMark&& other) noexcept {
  if (this == &other) return *this;
  End();
  impl_ = std::move(other.impl_);
  return *this;
}

bool ComputingMark::Answered() const noexcept {
  if (!impl_ || !impl_->process.Here()) return true;
  MutexLock lock(impl_->mutex);
  return impl_->answer.has_value();
}

Status ComputingMark::Wait(Deadline deadline) const {
  if (!impl_) return MakeError(Errc::kNotFound, "mark: there is none");
  if (!impl_->process.Here()) return BelongsToParent("mark");
  MutexLock lock(impl_->mutex);
  if (!WaitUntil(impl_->answered, lock, deadline, [&]() KVM_REQUIRES(impl_->mutex) { return impl_->answer.has_value(); }))
    return MakeError(Errc::kDeadlineExceeded, "kvmd did not answer in time");
  return *impl_->answer;
}

void ComputingMark::End() noexcept {
  std::shared_ptr<Impl> impl = std::exchange(impl_, nullptr);
  if (!impl) return;
  if (!impl->process.Here()) return LeaveToParent(std::move(impl));
  if (const std::shared_ptr<ComputingMarks> marks = impl->marks.lock()) marks->End(impl->id);
}

}  // namespace kvm
