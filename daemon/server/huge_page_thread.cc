#include "daemon/server/huge_page_thread.h"

#include <fcntl.h>

#include <memory>

#include <boost/asio/post.hpp>

#include "proto/base/unique_fd.h"

namespace kvm::daemon {

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
