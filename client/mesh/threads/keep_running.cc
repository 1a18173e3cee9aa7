#include "client/mesh/threads/keep_running.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <utility>
#include <vector>

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {

// All of an io_context, which owns it.
class KeepRunning::Kept : public boost::asio::execution_context::service {
 public:
  static boost::asio::execution_context::id id;

  explicit Kept(boost::asio::execution_context& context) : service(context) {}

  std::vector<std::shared_ptr<KeepRunning>> all;

 private:
  void shutdown() override { all.clear(); }
};

boost::asio::execution_context::id KeepRunning::Kept::id;

void KeepRunning::Start(boost::asio::io_context& io, std::function<Awaitable<void>()> work) {
  const std::shared_ptr<KeepRunning> kept(new KeepRunning(io, std::move(work)));
  boost::asio::use_service<Kept>(io).all.push_back(kept);
  try {
    kept->Run();
  } catch (const std::exception&) {
    kept->RunLater();
  }
}

void KeepRunning::Run() {
  const auto run = std::make_shared<char>();
  run_ = run;
  // What is called at the end is destroyed with the coroutine, and `run` with it.
  boost::asio::co_spawn(io_, work_(), [self = shared_from_this(), run](const std::exception_ptr& failed) {
    if (failed) return self->RunLater();
    auto& all = boost::asio::use_service<Kept>(self->io_).all;
    all.erase(std::remove(all.begin(), all.end(), self), all.end());
  });
}

void KeepRunning::RunLater() {
  pause_.expires_after(kRestartPause);
  const auto run = std::make_shared<char>();
  pause_.async_wait([self = shared_from_this(), run](boost::system::error_code) { self->Run(); });
  run_ = run;
}

void KeepRunning::RestartLost(boost::asio::io_context& io) {
  const std::vector<std::shared_ptr<KeepRunning>> all = boost::asio::use_service<Kept>(io).all;
  for (const std::shared_ptr<KeepRunning>& each : all) {
    if (each->run_.expired()) each->Run();
  }
}

void KeepRunning::RunAll(boost::asio::io_context& io) {
  bool look = true;  // an earlier call may have been stopped before it looked
  while (!io.stopped()) {
    try {
      if (!look) {
        io.run();
        continue;
      }
      // What an exception has destroyed is taken apart by the io_context, as one of its tasks.
      io.run_for(kRestartPause);
      RestartLost(io);
      look = false;
    } catch (const std::exception& failed) {
      // A lack of memory in a handler; those of other connections go on.
      LogException("handler_failed", failed);
      look = true;
    }
  }
}

}  // namespace kvm::mesh
