#include "daemon/server/server.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <exception>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "daemon/broker/broker.h"
#include "daemon/server/acceptor.h"
#include "daemon/server/connection_quota.h"
#include "daemon/server/fair_turns.h"
#include "daemon/server/huge_page_thread.h"
#include "daemon/server/listener.h"
#include "daemon/server/manager_feed.h"
#include "daemon/server/memory_freer_thread.h"
#include "daemon/server/session.h"
#include "daemon/server/user_loads.h"
#include "daemon/system/process_info.h"
#include "daemon/system/service_manager.h"
#include "daemon/system/wire_log.h"
#include "proto/base/descriptor_closer.h"
#include "proto/base/socket_peer.h"
#include "proto/wire/wire_log.h"

namespace kvm::daemon {

namespace asio = boost::asio;
using asio::local::stream_protocol;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr milliseconds kTick{50};
constexpr milliseconds kAcceptPause{100};
// kvmd accepts no faster than what it refuses leaves its table of descriptors.
constexpr std::size_t kMaxWaitingSockets = 64;
constexpr milliseconds kClosePause{5};

// kvmd needs many descriptors; the soft limit exists for programs that use select().
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// A loop that an exception has ended, which is a lack of memory, is needed: without it kvmd would
// live and do half of its work. So the exception ends kvmd, and the next one takes over.
void EndWithLoop(const std::exception_ptr& failed) {
  if (failed) std::rethrow_exception(failed);
}

// A connection that has not had its turn.
struct Waiting {
  Waiting(DescriptorCloser& all, std::uint32_t user, UniqueFd taken) : closer(all), uid(user), socket(std::move(taken)) {}
  ~Waiting() {
    if (socket) closer.CloseSocket(uid, std::move(socket));
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  DescriptorCloser& closer;
  const std::uint32_t uid;
  UniqueFd socket;
};

}  // namespace

struct Server::Impl {
  explicit Impl(const Config& config_)
      : config(config_),
        manager(ServiceManager::FromEnvironment()),
        state_store(manager, &closer),
        acceptor(context),
        tick(context),
        sweep(context),
        signals(context),
        huge_pages(context, [this] { WorkSoon(); }),
        broker(
            config, [this] { WorkSoon(); }, &state_store, &huge_pages, &memory_freer, &closer),
        turns([this] { RunTurns(); }),
        loads(config),
        quota(config) {
    closer.StartForSockets();
    closer.OnClosed([this] { asio::post(context, [this] { WorkSoon(); }); });
  }

  ~Impl() { closer.OnClosed(nullptr); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Status Listen();
  asio::awaitable<void> AcceptLoop();
  void Take(UniqueFd socket);
  void Join(std::uint32_t uid, UniqueFd& socket);
  void RunTurns();
  void Refuse(int socket, std::uint32_t uid, const std::string& reason);
  asio::awaitable<void> TickLoop();
  asio::awaitable<void> SweepLoop();
  asio::awaitable<void> SignalLoop();
  void WorkSoon();
  void Reload();
  void ReloadLogLevel();
  void BeginStop(const char* why);

  const Config config;
  ServiceManager manager;
  // Of all that clients have sent; outlives what waits in the context.
  DescriptorCloser closer;
  asio::io_context context{1};
  StateStore state_store;
  ManagerFeed manager_feed{context, manager};
  stream_protocol::acceptor acceptor;
  asio::steady_timer tick, sweep;
  asio::signal_set signals;
  HugePageThread huge_pages;
  MemoryFreerThread memory_freer;
  Broker broker;
  FairTurns turns;
  UserLoads loads;
  ConnectionQuota quota;
  std::map<ClientId, std::shared_ptr<Session>> sessions;
  Listener listener;
  Acceptor connections{[this](UniqueFd socket) { Take(std::move(socket)); }, closer};
  bool stopping = false;
  bool working = false;
  bool turning = false;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::Create(const Config& config) {
  RaiseDescriptorLimit();
  SetLogLevel(config.log_level);
  SetLogLimit(config.max_log_lines_per_user);
  RouteWireLog(&LogWireMessage);
  auto impl = std::make_unique<Impl>(config);
  if (Status fits = CheckHostCache(config, impl->state_store.stores()); !fits) return fits.error();
  if (Status listening = impl->Listen(); !listening) return listening.error();
  impl->broker.Restore(impl->state_store.Sort(impl->manager.TakeStored()));
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Status Server::Impl::Listen() {
  UniqueFd passed = manager.TakeListeningSocket();
  Result<Listener> opened = passed ? Listener::FromFd(std::move(passed)) : Listener::Open(config.socket_path, config.socket_mode);
  if (!opened) return opened.error();
  listener = std::move(*opened);
  UniqueFd socket = listener.TakeSocket();
  boost::system::error_code error;
  acceptor.assign(stream_protocol(), socket.get(), error);
  if (error) return SystemError("use the listening socket", error.value());
  static_cast<void>(socket.Release());
  return {};
}

asio::awaitable<void> Server::Impl::AcceptLoop() {
  while (!stopping) {
    boost::system::error_code error;
    co_await acceptor.async_wait(stream_protocol::acceptor::wait_read, asio::redirect_error(asio::use_awaitable, error));
    if (stopping) co_return;
    const Result<std::size_t> accepted = connections.AcceptSome(acceptor.native_handle());
    const bool taken = !error && accepted;
    if (taken && closer.waiting_sockets() < kMaxWaitingSockets) continue;
    if (!taken) LogLimited(LogLevel::kError, "accept_failed", {{"reason", error ? error.message() : accepted.error().ToString()}});
    asio::steady_timer pause(context, taken ? kClosePause : kAcceptPause);
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
  }
}

// What a connection costs beyond that it is accepted is part of its user's turn.
void Server::Impl::Take(UniqueFd socket) {
  const Result<ucred> peer = PeerOf(socket.get());
  const std::uint32_t uid = peer ? peer->uid : kNoUser;
  const Status known = peer ? CheckUser(*peer, config.domain_mode == DomainMode::kGid) : Status(peer.error());
  const auto refuse = [&](const std::string& why) {
    Refuse(socket.get(), uid, why);
    closer.CloseSocket(uid, std::move(socket));
  };
  if (!known) return refuse(known.error().message);
  if (closer.Behind(uid)) {
    return refuse(
        "descriptors that this user has sent can't be closed, or not as fast as they come: their sockets or file systems do not "
        "answer, or their memory takes time to be freed");
  }
  if (const Status counted = quota.Add(uid); !counted) return refuse(counted.error().message);
  turns.Add(uid, [this, uid, waiting = std::make_shared<Waiting>(closer, uid, std::move(socket))](const WorkBudget&) {
    Join(uid, waiting->socket);
    return false;
  });
}

// Leaves a socket that it does not take.
void Server::Impl::Join(std::uint32_t uid, UniqueFd& socket) {
  Spend(kNewMemoryUnits);
  boost::system::error_code error;
  stream_protocol::socket accepted(context);
  accepted.assign(stream_protocol(), socket.get(), error);
  if (stopping || error) return quota.Remove(uid);
  static_cast<void>(socket.Release());
  auto session = std::make_shared<Session>(std::move(accepted), config, broker, turns, loads, closer, [this, uid](ClientId id) {
    quota.Remove(uid);
    sessions.erase(id);
  });
  session->Start();
  if (session->id() != 0) {
    sessions.emplace(session->id(), std::move(session));
  } else {
    quota.Remove(uid);
  }
}

void Server::Impl::RunTurns() {
  if (turning) return;
  turning = true;
  asio::post(context, [this] {
    turning = false;
    if (turns.Run()) RunTurns();
  });
}

// Sends the reason, if the socket takes it at once.
void Server::Impl::Refuse(int socket, std::uint32_t uid, const std::string& reason) {
  const LogScope scope(uid);
  ++broker.rejected_connections;
  LogLimited(LogLevel::kWarn, "connection_refused", {{"uid", uid}, {"reason", reason}});
  kvmwire::ServerMessage message;
  message.mutable_goodbye()->set_reason(reason);
  FrameWriter writer;
  if (writer.Append(message.SerializeAsString())) static_cast<void>(writer.Drain(socket));
}

// Cleaning up after clients that have left is done in slices between other events.
void Server::Impl::WorkSoon() {
  if (working) return;
  working = true;
  asio::post(context, [this] {
    working = false;
    if (broker.Work()) WorkSoon();
    if (broker.next_deadline() < tick.expiry()) tick.cancel();  // the loop takes it into account
  });
}

asio::awaitable<void> Server::Impl::TickLoop() {
  while (!stopping) {
    boost::system::error_code error;
    tick.expires_at(std::min(steady_clock::now() + kTick, broker.next_deadline()));
    co_await tick.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (stopping) co_return;
    const SteadyTime now = steady_clock::now();
    broker.Tick(now);
    manager_feed.FeedWatchdog(now);
    std::vector<std::shared_ptr<Session>> overdue;  // dropping one takes it out of the map
    for (const auto& [id, session] : sessions) {
      if (session->Overdue(now)) overdue.push_back(session);
    }
    for (const auto& session : overdue) session->DropOverdue(now);
  }
}

asio::awaitable<void> Server::Impl::SweepLoop() {
  while (!stopping) {
    boost::system::error_code error;
    sweep.expires_after(milliseconds(config.sweep_interval_ms));
    co_await sweep.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (!stopping) broker.Sweep();
  }
}

asio::awaitable<void> Server::Impl::SignalLoop() {
  while (!stopping) {
    boost::system::error_code error;
    const int signal = co_await signals.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    if (signal != SIGHUP) co_return BeginStop(signal == SIGTERM ? "SIGTERM" : "SIGINT");
    Reload();
  }
}

void Server::Impl::Reload() {
  manager.Notify("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(MonotonicNs() / 1000) + "\n");
  ReloadLogLevel();
  manager.Notify("READY=1\n");
}

// SIGHUP: the one setting that can change while segments and quotas are in use.
void Server::Impl::ReloadLogLevel() {
  if (config.config_file.empty()) {
    Log(LogLevel::kWarn, "reload_skipped", {{"reason", "no configuration file was given (--config)"}});
    return;
  }
  const Result<LogLevel> level = ReadLogLevel(config.config_file);
  if (!level) {
    Log(LogLevel::kError, "reload_failed", {{"file", config.config_file}, {"reason", level.error().ToString()}});
    return;
  }
  SetLogLevel(*level);
  Log(LogLevel::kInfo, "reloaded", {{"file", config.config_file}, {"log_level", LogLevelName(*level)}});
}

void Server::Impl::BeginStop(const char* why) {
  if (stopping) return;
  stopping = true;
  Log(LogLevel::kInfo, "stopping", {{"reason", why}, {"clients", sessions.size()}});
  manager.Notify("STOPPING=1\n");
  boost::system::error_code ignored;
  // Connections that are not accepted are closed with it, and what they have sent.
  closer.Close(kNoUser, UniqueFd(acceptor.release(ignored)));
  tick.cancel();
  sweep.cancel();
  signals.cancel(ignored);
  broker.Close();
  // Clients have some time to read their replies; then kvmd sends a goodbye to all.
  asio::co_spawn(
      context,
      [this]() -> asio::awaitable<void> {
        asio::steady_timer timer(context);
        const auto drained = [this] {
          for (const auto& [id, session] : sessions) {
            if (!session->drained()) return false;
          }
          return true;
        };
        const SteadyTime deadline = steady_clock::now() + milliseconds(config.drain_timeout_ms);
        while (!drained() && steady_clock::now() < deadline) {
          timer.expires_after(milliseconds(5));
          boost::system::error_code error;
          co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
        }
        const auto current = sessions;
        for (const auto& [id, session] : current) session->Close("kvmd is shutting down");
        context.stop();
      },
      EndWithLoop);
}

Status Server::Run() {
  Impl& server = *impl_;
  boost::system::error_code error;
  server.signals.add(SIGTERM, error);
  server.signals.add(SIGINT, error);
  server.signals.add(SIGHUP, error);
  server.manager_feed.Start();
  asio::co_spawn(server.context, server.AcceptLoop(), EndWithLoop);
  asio::co_spawn(server.context, server.TickLoop(), EndWithLoop);
  asio::co_spawn(server.context, server.SweepLoop(), EndWithLoop);
  asio::co_spawn(server.context, server.SignalLoop(), EndWithLoop);
  // A socket that the service manager passed may have another path than the configuration says.
  const std::string path = server.acceptor.local_endpoint(error).path();
  Log(LogLevel::kInfo, "listening", {{"version", KVM_VERSION}, {"socket", path}, {"pid", static_cast<int>(::getpid())}});
  server.manager.Notify("READY=1\nSTATUS=Listening on " + path + "\n");
  server.context.run();
  server.manager_feed.Flush(steady_clock::now() + milliseconds(server.config.drain_timeout_ms));
  server.listener.RemoveFile();
  Log(LogLevel::kInfo, "stopped");
  return {};
}

void Server::Stop() {
  asio::post(impl_->context, [impl = impl_.get()] { impl->BeginStop("stop requested"); });
}

}  // namespace kvm::daemon
