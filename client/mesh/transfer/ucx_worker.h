// UcxWorker: this process's part of UCX: one worker, whose progress the io_context makes when its
// event descriptor says that there is something to do, and one listener.
//
// A connection that was accepted is a stranger's until its first message has a ticket of a link
// that waits for one (ucx_binding.h). Until then nothing else is taken from it, and there are at
// most kMaxStrangers. Links register here while they want messages.
//
// UCX is told to leave its own TCP alone unless UCX_TLS names it: a process that reaches the ports
// of that transport can write any memory of this one (docs/MESH.md). Of the io_context's thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>

#include "client/mesh/transfer/ucx_library.h"

namespace kvm::mesh {

class UcxLink;

class UcxWorker : public std::enable_shared_from_this<UcxWorker> {
 public:
  // kUnsupported: there is no UCX, or no transport. kSystem: it can't listen at `at`.
  [[nodiscard]] static Result<std::shared_ptr<UcxWorker>> Start(boost::asio::io_context& io, const boost::asio::ip::tcp::endpoint& at);
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  // Ends every connection, and UCX: afterwards it uses no memory of a caller. Links may be
  // destroyed later.
  void Stop() noexcept;

  boost::asio::io_context& io() noexcept { return io_; }
  const UcxLibrary& library() const noexcept { return ucx_; }
  ucp_worker_h handle() const noexcept { return worker_; }
  const boost::asio::ip::tcp::endpoint& address() const noexcept { return address_; }
  std::string version() const { return ucx_.ucp_get_version_string(); }

  // A link's messages go to it from now on. It calls Remove before it is destroyed.
  void Add(UcxLink& link);
  void Remove(const UcxLink& link) noexcept;
  // A connection of `link`'s own. What UCX says of its failure, later, goes to the link.
  [[nodiscard]] Result<ucp_ep_h> Connect(const boost::asio::ip::tcp::endpoint& to, UcxLink& link);
  // `force`: what is under way ends with an error; else it is flushed.
  void Close(ucp_ep_h endpoint, bool force) noexcept;
  // Makes progress, and nothing else, until `done`. If that takes too long, Stop.
  void DrainUntil(const std::function<bool()>& done) noexcept;
  // After each call that starts something.
  void Kick() noexcept;

  static constexpr std::uint16_t kGreetingId = 0, kPieceId = 1;
  static constexpr std::size_t kMaxStrangers = 32;

 private:
  UcxWorker(boost::asio::io_context& io, const UcxLibrary& ucx) : io_(io), ucx_(ucx), events_(io) {}
  Status Create();
  Status Listen(const boost::asio::ip::tcp::endpoint& at);
  void Turn() noexcept;
  bool WaitForEvents() noexcept;
  ucp_ep_params_t EndpointParams() noexcept;

  static void OnConnection(ucp_conn_request_h request, void* self) noexcept;
  static void OnFailure(void* self, ucp_ep_h endpoint, ucs_status_t status) noexcept;
  static ucs_status_t OnGreeting(void* self, const void* header, size_t header_length, void* data, size_t length,
                                 const ucp_am_recv_param_t* param) noexcept;
  static ucs_status_t OnPiece(void* self, const void* header, size_t header_length, void* data, size_t length,
                              const ucp_am_recv_param_t* param) noexcept;
  void Accept(ucp_conn_request_h request);
  void CloseLater(ucp_ep_h endpoint) noexcept;

  boost::asio::io_context& io_;
  const UcxLibrary& ucx_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_listener_h listener_ = nullptr;
  boost::asio::ip::tcp::endpoint address_;
  boost::asio::posix::stream_descriptor events_;  // UCX owns the descriptor
  std::unordered_map<std::uint64_t, UcxLink*> links_;
  std::unordered_map<ucp_ep_h, UcxLink*> endpoints_;  // null: a stranger's
  std::deque<ucp_ep_h> strangers_;                    // the oldest first
  std::deque<ucp_ep_h> closing_;                      // not to be closed inside a callback of UCX
  bool scheduled_ = false, waiting_ = false;
};

}  // namespace kvm::mesh
