// The order of a new connection's first messages: what Events::connected sends comes before what
// other threads send, since they build on it. And what the library's threads do where memory is
// short.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <thread>

#include "client/connection/link.h"
#include "client/connection/task_thread.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;

// A server that accepts one connection and answers its hello.
class Server {
 public:
  Server() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof(address.sun_path) - 1);
    listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    REQUIRE(::listen(listener_.get(), 1) == 0);
  }

  std::string path() const { return dir_ / "s"; }

  void Greet() {
    connection_ = UniqueFd(::accept(listener_.get(), nullptr, nullptr));
    REQUIRE(connection_);
    reader_ = FrameReader();
    REQUIRE(Next().has_hello());
    kvmwire::ServerMessage reply;
    reply.mutable_hello_reply()->set_client_id(1);
    FrameWriter writer;
    const Result<bool> sent = writer.Send(connection_.get(), reply.SerializeAsString(), {});
    REQUIRE(sent);
    REQUIRE(*sent);
  }

  // Something that answers no request.
  void Announce() {
    kvmwire::ServerMessage message;
    message.mutable_lease_shrunk()->set_lease(1);
    FrameWriter writer;
    KVM_REQUIRE_OK(writer.Send(connection_.get(), message.SerializeAsString(), {}));
  }

  kvmwire::ClientMessage Next(std::size_t fds = 0) {
    for (;;) {
      Result<std::optional<Frame>> frame = reader_.Next();
      KVM_REQUIRE_OK(frame);
      if (*frame) {
        CHECK((*frame)->fds.size() == fds);
        kvmwire::ClientMessage message;
        REQUIRE(message.ParseFromString((*frame)->payload));
        return message;
      }
      pollfd ready{connection_.get(), POLLIN, 0};
      REQUIRE(::poll(&ready, 1, 10'000) == 1);
      const Result<ReadOutcome> read = reader_.Fill(connection_.get());
      KVM_REQUIRE_OK(read);
      REQUIRE(*read != ReadOutcome::kEnd);
    }
  }

 private:
  test::TempDir dir_;
  UniqueFd listener_, connection_;
  FrameReader reader_;
};

kvmwire::ClientMessage Declaration(const std::string& spec) {
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec(spec);
  return message;
}

ClientOptions OptionsFor(const Server& server) {
  ClientOptions options;
  options.socket_path = server.path();
  return options;
}

// A link whose Events::connected lets another thread request something, with a descriptor, and then
// posts "ours".
class GreetedLink {
 public:
  GreetedLink(const Server& server, Status end)
      : link_(OptionsFor(server), {
                                      .connected =
                                          [this, end](const kvmwire::HelloReply&, Fds) {
                                            std::thread other([&] { RequestTheirs(); });
                                            other.join();
                                            link_.Post(Declaration("ours"));
                                            return end;
                                          },
                                      .announced = [](const kvmwire::ServerMessage&, const Result<Fds>&) {},
                                      .takes_more = [] { return true; },
                                      .disconnected = [] {},
                                      .tick = [] {},
                                  }) {
    link_.Start();
  }
  ~GreetedLink() { link_.Stop(); }

  Link& link() { return link_; }
  std::atomic<bool> was_connected = false;
  std::atomic<int> replies = 0;
  std::atomic<Errc> error{};

 private:
  void RequestTheirs() {
    was_connected = link_.connected();
    // Closed before the frame is sent.
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    link_.Request(Declaration("theirs"), {fd.get()}, [this](const Result<Answer>& reply) {
      if (!reply) error = reply.error().code;
      ++replies;
    });
  }

  Link link_;
};

}  // namespace

TEST_CASE("Link: what another thread sends while the connection is being set up comes after what sets it up", "[unit]") {
  Server server;
  GreetedLink greeted(server, {});
  server.Greet();
  CHECK(server.Next().declare_model().spec() == "ours");
  CHECK(server.Next(1).declare_model().spec() == "theirs");
  CHECK(greeted.was_connected);
  CHECK(greeted.link().Post(Declaration("later")));
  CHECK(server.Next().declare_model().spec() == "later");
}

TEST_CASE("Link: a request that was waiting for a connection that could not be set up fails once", "[unit]") {
  Server server;
  {
    GreetedLink greeted(server, MakeError(Errc::kProtocol, "no registry"));
    server.Greet();
    CHECK(server.Next().declare_model().spec() == "ours");
    while (greeted.replies == 0) std::this_thread::sleep_for(1ms);
    CHECK(greeted.error == Errc::kUnavailable);
    CHECK_FALSE(greeted.link().connected());
    CHECK(greeted.replies == 1);
  }
}

// Without Attempt in Link::Run the process ends.
TEST_CASE("Link: a lack of memory on its thread ends the connection, and the next one serves", "[unit]") {
  Server server;
  std::atomic<int> connections = 0, disconnections = 0, announced = 0, failed = 0;
  Link link(OptionsFor(server), {
                                    .connected = [&](const kvmwire::HelloReply&, Fds) -> Status {
                                      if (++connections == 1) throw std::bad_alloc();
                                      return {};
                                    },
                                    .announced =
                                        [&](const kvmwire::ServerMessage&, const Result<Fds>&) {
                                          if (++announced == 1) throw std::bad_alloc();
                                        },
                                    .takes_more = [] { return true; },
                                    .disconnected =
                                        [&] {
                                          ++disconnections;
                                          throw std::bad_alloc();
                                        },
                                    .tick = [] {},
                                });
  link.Start();
  server.Greet();
  server.Greet();
  while (!link.connected()) std::this_thread::sleep_for(1ms);
  link.Request(Declaration("lost"), {}, [&](const Result<Answer>& reply) {
    if (!reply) ++failed;
    throw std::bad_alloc();
  });
  CHECK(server.Next().declare_model().spec() == "lost");
  server.Announce();
  server.Greet();
  while (connections < 3 || !link.connected()) std::this_thread::sleep_for(1ms);
  CHECK(failed == 1);
  CHECK(disconnections == 2);
  link.mailbox()->Post([] { throw std::bad_alloc(); });
  server.Announce();
  while (announced < 2) std::this_thread::sleep_for(1ms);
  CHECK(link.Post(Declaration("served")));
  CHECK(server.Next().declare_model().spec() == "served");
  link.Stop();
}

// Without Attempt in TaskThread::Run the process ends.
TEST_CASE("Link: a task that lacks memory ends alone", "[unit]") {
  TaskThread thread;
  std::atomic<int> ran = 0;
  thread.Post([] { throw std::bad_alloc(); });
  thread.Post([&] { ++ran; });
  KVM_REQUIRE_OK(thread.Drain(std::chrono::steady_clock::now() + 60s));
  CHECK(ran == 1);
}
