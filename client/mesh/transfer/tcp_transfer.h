// TcpTransfer: the Transfer over TCP, which every machine has. With a TlsIdentity it is TLS, and
// both ends are authenticated; without one it is neither encrypted nor authenticated.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <memory>
#include <string>

#include "client/mesh/transfer/address.h"
#include "client/mesh/transfer/tls_identity.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class TcpTransfer final : public Transfer {
 public:
  // Listens. `identity`: null for no encryption. `congestion`: the kernel's congestion control, by
  // its name; kSystemCongestion: as the system has it; kAutoCongestion: the same, except for BBR,
  // which paces every piece of a block by a timer, and halves what a local network carries: then
  // cubic, or reno where a process without rights may not use that. kInvalidArgument: the kernel
  // has none of that name, or refuses it. kSystem.
  [[nodiscard]] static Result<std::unique_ptr<TcpTransfer>> Listen(boost::asio::io_context& io, const std::string& address,
                                                                   std::shared_ptr<TlsIdentity> identity,
                                                                   const std::string& congestion = kAutoCongestion);
  static constexpr const char* kAutoCongestion = "auto";
  static constexpr const char* kSystemCongestion = "system";
  // For connections from now on; those there are stop being current().
  void UseIdentity(std::shared_ptr<TlsIdentity> identity);

  Awaitable<Result<std::shared_ptr<Channel>>> Connect(std::string address, Time deadline) override;
  Awaitable<Result<std::shared_ptr<Channel>>> Accept() override;
  void Stop() noexcept override;

  std::string address() const;  // with the port that the kernel chose, if the configuration has 0
  // Of its connections, as the kernel calls it.
  std::string congestion();

 private:
  TcpTransfer(boost::asio::io_context& io, std::shared_ptr<TlsIdentity> identity)
      : io_(io), acceptor_(io), identity_(std::move(identity)) {}
  std::shared_ptr<Channel> MakeChannel(boost::asio::ip::tcp::socket socket, bool accepted) const;
  [[nodiscard]] Status UseCongestion(const std::string& wanted);

  boost::asio::io_context& io_;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::shared_ptr<TlsIdentity> identity_;
  std::string congestion_{};  // empty: as the system has it
};

}  // namespace kvm::mesh
