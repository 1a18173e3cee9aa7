#include "client/mesh/threads/work_threads.h"

#include <boost/asio/bind_allocator.hpp>
#include <boost/asio/post.hpp>

#include "client/mesh/threads/reserved_memory.h"

namespace kvm::mesh {
namespace {

struct Started {
  std::function<void()> work;
  std::function<void(const std::exception_ptr&)> done;
  std::exception_ptr failed{};
  ReservedMemory memory{};
};

}  // namespace

void WorkThreads::Start(std::function<void()> work, std::function<void(const std::exception_ptr&)> done) {
  auto made = std::make_shared<Started>(Started{std::move(work), std::move(done)});
  boost::asio::post(pool_, [mine = std::move(made), &io = io_]() mutable noexcept {
    // What the functions own is destroyed on the io_context's thread: nothing of it stays here.
    std::shared_ptr<Started> started = std::move(mine);
    try {
      started->work();
    } catch (...) {
      started->failed = std::current_exception();
    }
    ReservedMemory& memory = started->memory;
    boost::asio::post(io,
                      boost::asio::bind_allocator(memory.allocator(), [started = std::move(started)] { started->done(started->failed); }));
  });
}

}  // namespace kvm::mesh
