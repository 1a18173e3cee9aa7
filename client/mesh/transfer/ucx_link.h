// UcxLink: the UCX connection of one channel: payloads in pieces, both ways.
//
// A sender offers each piece (an active message by rendezvous: its header alone travels), and the
// receiver fetches the bytes into the memory where they belong, once its caller wants them. At most
// kWindow offers are held, and no bytes of them, so a peer can't make this process take memory. A
// piece is taken only in its turn, with its ticket, and with the length that is expected there.
//
// Memory given to Send and Receive is in use until sending() and receiving() have gone back to 0,
// which they do in the end, whatever happens: Close ends what is under way. Of the io_context's
// thread.
#pragma once

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "client/mesh/transfer/transfer.h"
#include "client/mesh/transfer/ucx_binding.h"
#include "client/mesh/transfer/ucx_worker.h"

namespace kvm::mesh {

class UcxLink : public std::enable_shared_from_this<UcxLink> {
 public:
  enum class Role : std::uint8_t { kAccepting, kConnecting };

  static constexpr std::size_t kPieceBytes = std::size_t{512} << 10;
  static constexpr std::size_t kWindow = 16;  // pieces that are under way, or held

  // Accepting: waits for the connection that has the binding's ticket.
  UcxLink(std::shared_ptr<UcxWorker> worker, UcxBinding binding, Role role);
  ~UcxLink();
  UcxLink(const UcxLink&) = delete;
  UcxLink& operator=(const UcxLink&) = delete;

  // Connecting: first. It is open() when the other end has proven that it knows the binding, too.
  [[nodiscard]] Status Connect(const boost::asio::ip::tcp::endpoint& to);

  bool open() const noexcept { return state_ == State::kOpen; }
  // For good: it has failed, or was closed.
  bool ended() const noexcept { return state_ == State::kEnded; }
  std::string failure() const { return "UCX: " + (failure_ == UCS_OK ? "closed" : worker_->library().Text(failure_)); }

  // One piece, of at most kPieceBytes, at most kWindow at a time. Precondition: open().
  void Send(std::span<const std::byte> piece);
  std::size_t sending() const noexcept { return sending_; }
  std::uint64_t sent_bytes() const noexcept { return sent_bytes_; }

  // Bytes of the next piece in turn; empty: it was not offered yet.
  std::optional<std::size_t> offered() const noexcept;
  // Fetches it. Precondition: offered() is into.size().
  void Receive(std::span<std::byte> into);
  std::size_t receiving() const noexcept { return receiving_; }
  std::uint64_t received_bytes() const noexcept { return received_bytes_; }

  // Returns when one of the above may have changed, or at `until`. One caller at a time.
  Awaitable<void> Changed(Time until = Time::max());

  // `force`: does not wait for the peer. What is under way ends with an error, in later turns.
  void Close(bool force) noexcept;
  // Close, and what is under way has ended when it returns. For callers that can't wait in turns.
  void CloseNow() noexcept;

  // UcxWorker's.
  std::uint64_t channel() const noexcept { return binding_.channel(); }
  bool Opens(const UcxHeader& greeting) const;
  void Attach(ucp_ep_h endpoint) noexcept;
  void Opened(const UcxHeader& greeting);
  bool Offered(const UcxHeader& piece, void* data, std::size_t bytes);
  void Failed(ucs_status_t status) noexcept;

 private:
  enum class State : std::uint8_t { kWaiting, kOpen, kEnded };
  struct Operation;
  struct Offer {
    void* data = nullptr;
    std::size_t bytes = 0;
  };

  void SendGreeting(UcxTicketUse use);
  void Begin(std::unique_ptr<Operation> operation, ucs_status_ptr_t request);
  void End(const Operation& operation, ucs_status_t status) noexcept;
  void ReleaseOffers() noexcept;
  void Notify() noexcept { changed_.cancel(); }
  static void OnSent(void* request, ucs_status_t status, void* operation) noexcept;
  static void OnReceived(void* request, ucs_status_t status, std::size_t bytes, void* operation) noexcept;

  const std::shared_ptr<UcxWorker> worker_;
  const UcxBinding binding_;
  const Role role_;
  State state_ = State::kWaiting;
  ucp_ep_h endpoint_ = nullptr;
  ucs_status_t failure_ = UCS_OK;
  std::size_t sending_ = 0, receiving_ = 0;
  std::uint64_t sent_bytes_ = 0, received_bytes_ = 0;
  std::uint64_t next_sent_ = 0;      // number of the next piece to be sent
  std::uint64_t next_received_ = 0;  // number of the next piece to be fetched
  std::array<Offer, kWindow> offers_{};
  boost::asio::steady_timer changed_;
};

}  // namespace kvm::mesh
