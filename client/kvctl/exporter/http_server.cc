#include "client/kvctl/exporter/http_server.h"

#include <sys/socket.h>

#include <chrono>
#include <csignal>
#include <deque>
#include <exception>
#include <iostream>
#include <list>
#include <memory>
#include <string_view>
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "proto/base/bytes_only_socket.h"

namespace kvm::ctl {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Protocol = asio::generic::stream_protocol;
using Acceptor = asio::basic_socket_acceptor<Protocol, asio::io_context::executor_type>;
using Stream = BytesOnlySocket<Protocol, asio::io_context::executor_type>;
using Timer =
    asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, asio::io_context::executor_type>;
using Request = http::request<http::empty_body>;
using Response = http::response<http::string_body>;

constexpr std::size_t kMaxHeaderBytes = 8192, kMaxConnections = 64;
constexpr std::chrono::seconds kRequestTimeout{30};  // for a request, and for a response to be read
constexpr std::chrono::milliseconds kAcceptPause{100};

Response ResponseTo(const Request& request, const HttpServer::Content& content, const HttpServer::HostCheck& host_check, bool by_tcp) {
  Response response(http::status::ok, request.version());
  response.keep_alive(request.keep_alive());
  const std::string_view target(request.target().data(), request.target().size());
  const auto host = request[http::field::host];
  if (!host_check(std::string_view(host.data(), host.size()), by_tcp)) {
    response.result(http::status::misdirected_request);
    response.set(http::field::content_type, "text/plain; charset=utf-8");
    response.body() = "This Host is not answered; a proxy's is with --allow-host\n";
  } else if (request.method() != http::verb::get && request.method() != http::verb::head) {
    response.result(http::status::method_not_allowed);
    response.set(http::field::allow, "GET, HEAD");
  } else if (std::optional<HttpContent> found = content(target.substr(0, target.find('?')), by_tcp)) {
    response.set(http::field::content_type, found->type);
    if (!found->security_policy.empty()) response.set("Content-Security-Policy", found->security_policy);
    response.body() = std::move(found->body);
  } else {
    response.result(http::status::not_found);
    response.set(http::field::content_type, "text/plain; charset=utf-8");
    response.body() = "Nothing is here; see /metrics\n";
  }
  // What is served is of this moment, and of the type that it says.
  response.set(http::field::cache_control, "no-store");
  response.set("X-Content-Type-Options", "nosniff");
  response.set("Referrer-Policy", "no-referrer");
  response.content_length(response.body().size());
  if (request.method() == http::verb::head) response.body().clear();
  return response;
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(std::vector<UniqueFd> sockets, Content content, HostCheck host_check)
      : content_(std::move(content)), host_check_(std::move(host_check)), signals_(context_, SIGINT, SIGTERM) {
    closer_.StartForSockets();
    for (UniqueFd& socket : sockets) {
      sockaddr address{};
      socklen_t size = sizeof(address);
      ::getsockname(socket.get(), &address, &size);
      Listener& listener = listeners_.emplace_back(context_);
      listener.by_tcp = address.sa_family != AF_UNIX;
      listener.acceptor.assign(Protocol(address.sa_family, 0), socket.Release());
      listener.acceptor.non_blocking(true);
    }
  }

  // Connections that are not accepted are closed with a listener, and what they have sent.
  ~Impl() {
    boost::system::error_code ignored;
    for (Listener& listener : listeners_) closer_.Close(kNoUser, UniqueFd(listener.acceptor.release(ignored)));
  }

  void Run() {
    signals_.async_wait([this](const boost::system::error_code&, int) { context_.stop(); });
    for (bool failed = false; !context_.stopped();) {
      try {
        // What an exception has ended is destroyed by the context, as one of its tasks.
        if (failed) context_.run_for(kAcceptPause);
        AcceptAll();
        failed = false;
        context_.run();
      } catch (const std::exception& lack) {
        std::cerr << "kvctl: " << lack.what() << std::endl;
        failed = true;
      }
    }
  }

 private:
  struct Listener {
    explicit Listener(asio::io_context& context) : acceptor(context) {}
    Acceptor acceptor;
    bool by_tcp = false;
    std::weak_ptr<void> run;  // of its coroutine, while that exists
  };

  // Starts those coroutines that do not run. One that an exception ends throws it out of `Run`.
  void AcceptAll() {
    for (Listener& listener : listeners_) {
      if (!listener.run.expired()) continue;
      const auto run = std::make_shared<char>();
      listener.run = run;
      asio::co_spawn(context_, Accept(listener), [run](const std::exception_ptr& failed) {
        if (failed) std::rethrow_exception(failed);
      });
    }
  }

  asio::awaitable<void, asio::io_context::executor_type> Accept(Listener& listener) {
    Timer pause(context_);
    for (;;) {
      boost::system::error_code error;
      Stream::Socket socket(context_);
      co_await listener.acceptor.async_accept(socket, asio::redirect_error(token_, error));
      if (!error) {
        Stream stream(std::move(socket), closer_);
        if (closer_.Behind(stream.uid())) continue;
        // An exception ends this connection alone.
        asio::co_spawn(context_, Serve(std::move(stream), listener.by_tcp), asio::detached);
      } else {
        // Mostly for lack of descriptors, which a connection's end brings back.
        pause.expires_after(kAcceptPause);
        co_await pause.async_wait(asio::redirect_error(token_, error));
      }
    }
  }

  asio::awaitable<void, asio::io_context::executor_type> Serve(Stream accepted, bool by_tcp) {
    const auto stream = std::make_shared<Stream>(std::move(accepted));
    Connection connection(*this, stream);
    beast::flat_buffer buffer(kMaxHeaderBytes);
    boost::system::error_code error;
    for (bool again = true; again;) {
      http::request_parser<http::empty_body> parser;
      parser.header_limit(kMaxHeaderBytes);
      connection.Wait();
      co_await http::async_read(*stream, buffer, parser, asio::redirect_error(token_, error));
      if (error) co_return;
      Response response = ResponseTo(parser.get(), content_, host_check_, by_tcp);
      again = response.keep_alive();
      connection.Wait();
      co_await http::async_write(*stream, response, asio::redirect_error(token_, error));
      if (error) co_return;
    }
  }

  // A connection, while it is served. Where there are too many, the one ends that has been waited
  // for longest: those that say nothing, or do not read, keep none out that ask.
  class Connection {
   public:
    Connection(Impl& all, std::shared_ptr<Stream> stream) : all_(all), stream_(std::move(stream)), patience_(stream_->get_executor()) {
      if (all_.connections_.size() >= kMaxConnections) all_.connections_.front()->End();
      place_ = all_.connections_.insert(all_.connections_.end(), this);
    }
    ~Connection() {
      if (listed_) all_.connections_.erase(place_);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // For the next of a request or an answer.
    void Wait() {
      if (listed_) all_.connections_.splice(all_.connections_.end(), all_.connections_, place_);
      patience_.expires_after(kRequestTimeout);
      patience_.async_wait([waited_for = std::weak_ptr<Stream>(stream_)](const boost::system::error_code& cancelled) {
        const std::shared_ptr<Stream> stream = waited_for.lock();
        if (!cancelled && stream) Close(*stream);
      });
    }

   private:
    void End() {
      all_.connections_.erase(place_);
      listed_ = false;
      Close(*stream_);
    }
    static void Close(Stream& stream) {
      boost::system::error_code ignored;
      stream.close(ignored);
    }

    Impl& all_;
    const std::shared_ptr<Stream> stream_;
    Timer patience_;
    std::list<Connection*>::iterator place_;
    bool listed_ = true;
  };

  static constexpr asio::use_awaitable_t<asio::io_context::executor_type> token_{};

  const Content content_;
  const HostCheck host_check_;
  DescriptorCloser closer_;             // of what clients send
  std::list<Connection*> connections_;  // the one that has been waited for longest first
  asio::io_context context_{1};
  asio::signal_set signals_;
  std::deque<Listener> listeners_;
};

HttpServer::HttpServer(std::vector<UniqueFd> sockets, Content content, HostCheck host_check)
    : impl_(std::make_unique<Impl>(std::move(sockets), std::move(content), std::move(host_check))) {}
HttpServer::~HttpServer() = default;
void HttpServer::Run() { impl_->Run(); }

}  // namespace kvm::ctl
