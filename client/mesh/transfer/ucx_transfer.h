// UcxTransfer: the Transfer with payloads over UCX. Connections, messages and TLS are
// TcpTransfer's; between two nodes that both have UCX, payloads of kUcxLeastBytes and more take a
// UcxLink that belongs to the connection. They are not encrypted.
//
// Where UCX does not work between two nodes, their payloads go over TCP, and it is tried again
// after kUcxPause. Of the io_context's thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "client/mesh/transfer/tcp_transfer.h"
#include "client/mesh/transfer/transfer.h"
#include "client/mesh/transfer/ucx_worker.h"

namespace kvm::mesh {

inline constexpr std::size_t kUcxLeastBytes = 4096;
inline constexpr std::chrono::seconds kUcxPause{30};

// What the channels of one transfer share.
struct UcxShared {
  std::shared_ptr<UcxWorker> worker;
  std::uint64_t sent_bytes = 0, received_bytes = 0;
  std::map<std::string, Time> avoided{};  // addresses of peers, as the configuration has them

  bool Avoids(const std::string& address) const noexcept;
  // Says so on standard error.
  void Avoid(const std::string& address, const std::string& why);
};

class UcxTransfer final : public Transfer {
 public:
  // `tcp` outlives it, and the io_context's coroutines have been destroyed before it is.
  UcxTransfer(TcpTransfer& tcp, std::shared_ptr<UcxWorker> worker);
  ~UcxTransfer() override;
  UcxTransfer(const UcxTransfer&) = delete;
  UcxTransfer& operator=(const UcxTransfer&) = delete;

  Awaitable<Result<std::shared_ptr<Channel>>> Connect(std::string address, Time deadline) override;
  Awaitable<Result<std::shared_ptr<Channel>>> Accept() override;
  void Stop() noexcept override { tcp_.Stop(); }

  BulkTotals bulk() const override { return {"ucx", shared_->sent_bytes, shared_->received_bytes}; }

 private:
  TcpTransfer& tcp_;
  const std::shared_ptr<UcxShared> shared_;
};

}  // namespace kvm::mesh
