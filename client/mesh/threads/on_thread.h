// OnThread: runs a function that waits, or computes for long, on a thread of a pool, while the
// coroutine that calls it is suspended and others go on.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <functional>
#include <utility>

#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

template <class T>
Awaitable<T> CallInTurn(std::function<T()> work) {
  co_return work();
}

// `T` is default-constructible. What `work` refers to must live until it has returned.
template <class T>
Awaitable<T> OnThread(boost::asio::thread_pool& pool, std::function<T()> work) {
  co_return co_await boost::asio::co_spawn(pool, CallInTurn<T>(std::move(work)), boost::asio::use_awaitable);
}

}  // namespace kvm::mesh
