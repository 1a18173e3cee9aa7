#include "client/mesh/transfer/ucx_transfer.h"

#include "client/mesh/log/event_log.h"
#include "client/mesh/transfer/ucx_channel.h"

namespace kvm::mesh {

using std::chrono::steady_clock;

bool UcxShared::Avoids(const std::string& address) const noexcept {
  const auto found = avoided.find(address);
  return found != avoided.end() && steady_clock::now() < found->second;
}

void UcxShared::Avoid(const std::string& address, const std::string& why) {
  avoided[address] = steady_clock::now() + kUcxPause;
  LogEvent(LogLevel::kWarn, "ucx_avoided", {{"address", address}, {"reason", why}, {"seconds", kUcxPause.count()}});
}

UcxTransfer::UcxTransfer(TcpTransfer& tcp, std::shared_ptr<UcxWorker> worker)
    : tcp_(tcp), shared_(std::make_shared<UcxShared>(UcxShared{std::move(worker)})) {}

UcxTransfer::~UcxTransfer() { shared_->worker->Stop(); }

Awaitable<Result<std::shared_ptr<Channel>>> UcxTransfer::Connect(std::string address, Time deadline) {
  Result<std::shared_ptr<Channel>> channel = co_await tcp_.Connect(address, deadline);
  if (!channel) co_return channel;
  co_return std::make_shared<UcxChannel>(std::move(*channel), shared_, address);
}

Awaitable<Result<std::shared_ptr<Channel>>> UcxTransfer::Accept() {
  Result<std::shared_ptr<Channel>> channel = co_await tcp_.Accept();
  if (!channel) co_return channel;
  co_return std::make_shared<UcxChannel>(std::move(*channel), shared_);
}

}  // namespace kvm::mesh
