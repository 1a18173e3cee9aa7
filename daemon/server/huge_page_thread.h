// HugePageThread: makes huge pages (daemon/system/huge_page_maker.h) in a thread of its own, one
// range after another, and reports them on the event loop's thread. Server owns it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>

#include "daemon/system/huge_page_maker.h"

namespace kvm::daemon {

class HugePageThread final : public HugePageMaker {
 public:
  static constexpr char kName[] = "kvmd-huge";  // of the thread, as top and /proc show it

  // `made` runs on the loop's thread after each range, once its `done` has run. The context
  // outlives the object.
  HugePageThread(boost::asio::io_context& context, std::function<void()> made);
  // Waits for the range that the kernel is at, and drops those that follow.
  ~HugePageThread() override;
  HugePageThread(const HugePageThread&) = delete;
  HugePageThread& operator=(const HugePageThread&) = delete;

  // To be called on the loop's thread. If kvmd is out of descriptors, no page is made.
  void Make(int fd, std::uint64_t offset, std::uint64_t bytes, Done done) override;

 private:
  boost::asio::io_context& context_;
  // Reports under way see by it whether the object lives.
  const std::shared_ptr<const std::function<void()>> made_;
  boost::asio::thread_pool thread_{1};
};

}  // namespace kvm::daemon
