// TcpTransfer: the Transfer over TCP, which every machine has. Neither encrypted nor authenticated.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <memory>
#include <string>

#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

// An IP address with a port: "127.0.0.1:7600", "[::1]:7600".
// kInvalidArgument. Names are not resolved: what a name means may change after it was checked.
[[nodiscard]] Result<boost::asio::ip::tcp::endpoint> ParseAddress(const std::string& address);

class TcpTransfer final : public Transfer {
 public:
  // Listens. kInvalidArgument, kSystem.
  [[nodiscard]] static Result<std::unique_ptr<TcpTransfer>> Listen(boost::asio::io_context& io, const std::string& address);

  Awaitable<Result<std::shared_ptr<Channel>>> Connect(std::string address, Time deadline) override;
  Awaitable<Result<std::shared_ptr<Channel>>> Accept() override;
  void Stop() noexcept override;

  std::string address() const;  // with the port that the kernel chose, if the configuration has 0

 private:
  explicit TcpTransfer(boost::asio::io_context& io) : io_(io), acceptor_(io) {}

  boost::asio::io_context& io_;
  boost::asio::ip::tcp::acceptor acceptor_;
};

}  // namespace kvm::mesh
