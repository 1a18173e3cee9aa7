#include "daemon/server/huge_page_thread.h"

#include <fcntl.h>
#include <pthread.h>

#include <memory>
#include <utility>

#include <boost/asio/post.hpp>

#include "proto/base/unique_fd.h"

namespace kvm::daemon {

HugePageThread::HugePageThread(boost::asio::io_context& context, std::function<void()> made)
    : context_(context), made_(std::make_shared<const std::function<void()>>(std::move(made))) {
  boost::asio::post(thread_, [] { ::pthread_setname_np(::pthread_self(), kName); });
}

HugePageThread::~HugePageThread() {
  thread_.stop();
  thread_.join();
}

void HugePageThread::Make(int fd, std::uint64_t offset, std::uint64_t bytes, Done done) {
  const auto own = std::make_shared<UniqueFd>(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!*own) return done(0);
  boost::asio::post(thread_, [this, own, offset, bytes, done = std::move(done)]() mutable {
    const std::uint64_t moved = MoveToHugePages(own->get(), offset, bytes);
    own->Reset();
    boost::asio::post(context_, [alive = std::weak_ptr(made_), moved, done = std::move(done)] {
      const auto made = alive.lock();
      if (!made) return;
      done(moved);
      (*made)();
    });
  });
}

}  // namespace kvm::daemon
