// Two ends of a connection in one process, over each way that kvmd-mesh can send blocks.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/mesh/transfer/make_ucx.h"
#include "tests/catch.h"

namespace kvm::test {

// "tcp", or how UCX is to move what it has been offered (UCX_RNDV_SCHEME). Over "tcp" alone where
// this was built without UCX.
inline std::vector<std::string> TransferWays() {
#if defined(KVM_HAVE_UCX)
  return {"tcp", "ucx:get_zcopy", "ucx:put_zcopy"};
#else
  return {"tcp"};
#endif
}

inline mesh::Time Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(60); }

// Both ends have greeted each other, as two nodes do.
class TransferEnds {
 public:
  explicit TransferEnds(const std::string& way) : connecting_(Make(way)), accepting_(Make(way)) {
    if (way != "tcp") CHECK(accepting().bulk().way == "ucx");
    std::optional<Result<std::shared_ptr<mesh::Channel>>> accepted;
    boost::asio::co_spawn(
        io, [this, &accepted]() -> mesh::Awaitable<void> { accepted = co_await Accept(); },
        [](const std::exception_ptr& failed) { REQUIRE_FALSE(failed); });
    const Result<std::shared_ptr<mesh::Channel>> connected = Wait(Connect());
    RunUntil([&] { return accepted.has_value(); });
    KVM_REQUIRE_OK(connected);
    KVM_REQUIRE_OK(*accepted);
    left = *connected;
    right = **accepted;
  }
  ~TransferEnds() {
    left.reset();
    right.reset();
    io.shutdown();
  }
  TransferEnds(const TransferEnds&) = delete;
  TransferEnds& operator=(const TransferEnds&) = delete;

  mesh::Transfer& connecting() { return connecting_.transfer(); }
  mesh::Transfer& accepting() { return accepting_.transfer(); }

  template <class Done>
  void RunUntil(Done done) {
    const mesh::Time until = Soon();
    while (!done() && std::chrono::steady_clock::now() < until) {
      io.restart();
      io.run_one_for(std::chrono::milliseconds(100));
    }
    REQUIRE(done());
  }
  // Runs everything until this has ended.
  template <class T>
  T Wait(mesh::Awaitable<T> work) {
    std::optional<T> out;
    std::exception_ptr failed;
    Start(
        std::move(work), [&](T value) { out = std::move(value); }, &failed);
    RunUntil([&] { return out.has_value() || failed; });
    if (failed) std::rethrow_exception(failed);
    return std::move(*out);
  }
  // Runs when something else is waited for. `end` is called with what it has returned.
  template <class T, class End>
  void Start(mesh::Awaitable<T> work, End end, std::exception_ptr* failed = nullptr) {
    boost::asio::co_spawn(io, std::move(work), [end = std::move(end), failed](const std::exception_ptr& error, T value) mutable {
      if (error) {
        if (failed != nullptr) *failed = error;
      } else {
        end(std::move(value));
      }
    });
  }
  void RunFor(std::chrono::milliseconds time) {
    io.restart();
    io.run_for(time);
  }

  class Io : public boost::asio::io_context {
   public:
    using execution_context::shutdown;
  };
  Io io;
  std::shared_ptr<mesh::Channel> left, right;  // of the end that connects, and of the other one

 private:
  struct Made {
    std::unique_ptr<mesh::TcpTransfer> tcp;
    std::unique_ptr<mesh::Transfer> ucx;
    mesh::Transfer& transfer() const { return ucx ? *ucx : static_cast<mesh::Transfer&>(*tcp); }
  };

  Made Make(const std::string& way) {
    Result<std::unique_ptr<mesh::TcpTransfer>> tcp = mesh::TcpTransfer::Listen(io, "127.0.0.1:0", nullptr);
    KVM_REQUIRE_OK(tcp);
    Made made{std::move(*tcp), nullptr};
    if (way == "tcp") return made;
    ::setenv("UCX_TLS", "tcp,self", 1);
    ::setenv("UCX_RNDV_SCHEME", way.substr(way.find(':') + 1).c_str(), 1);
    Result<std::unique_ptr<mesh::Transfer>> ucx = mesh::MakeUcxTransfer(io, *made.tcp, *mesh::ParseAddress("127.0.0.1:0"));
    ::unsetenv("UCX_TLS");
    ::unsetenv("UCX_RNDV_SCHEME");
    KVM_REQUIRE_OK(ucx);
    made.ucx = std::move(*ucx);
    return made;
  }

  mesh::Awaitable<Result<std::shared_ptr<mesh::Channel>>> Connect() {
    Result<std::shared_ptr<mesh::Channel>> channel = co_await connecting().Connect(accepting_.tcp->address(), Soon());
    if (!channel) co_return channel;
    const std::string offer = (*channel)->Offer({});
    Status good = co_await (*channel)->Send("hello" + offer, {}, Soon());
    if (!good) co_return good.error();
    Result<mesh::Received> hello = co_await (*channel)->Receive(Soon());
    if (!hello) co_return hello.error();
    good = co_await (*channel)->Use(hello->message.substr(5), Soon());
    if (!good) co_return good.error();
    co_return channel;
  }
  mesh::Awaitable<Result<std::shared_ptr<mesh::Channel>>> Accept() {
    Result<std::shared_ptr<mesh::Channel>> channel = co_await accepting().Accept();
    if (!channel) co_return channel;
    Result<mesh::Received> hello = co_await (*channel)->Receive(Soon());
    if (!hello) co_return hello.error();
    const std::string theirs = hello->message.substr(5);
    const std::string offer = (*channel)->Offer(theirs);
    Status good = co_await (*channel)->Send("hello" + offer, {}, Soon());
    if (good) good = co_await (*channel)->Use(theirs, Soon());
    if (!good) co_return good.error();
    co_return channel;
  }

  Made connecting_, accepting_;
};

}  // namespace kvm::test
