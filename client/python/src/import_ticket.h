// ImportTicket with a lock around it (kvm's own is for one thread), waiting without the GIL.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"

namespace kvm::python {

class PyImportTicket {
 public:
  explicit PyImportTicket(ImportTicket ticket) : state_(std::make_shared<State>(std::move(ticket)), "import") {}

  bool Done() const {
    const std::shared_ptr<State> state = state_.Get();
    return WithoutGil([&] {
      const std::unique_lock lock(state->mutex, std::try_to_lock);
      return lock.owns_lock() && state->ticket.Done();
    });
  }

  ImportResult Wait(std::optional<double> timeout_s) const {
    const Deadline deadline = ToDeadline(timeout_s);
    const std::shared_ptr<State> state = state_.Get();
    return Unwrap(WithoutGil([&]() -> Result<ImportResult> {
      const std::lock_guard lock(state->mutex);
      if (Status status = state->ticket.Wait(deadline); !status) return status.error();
      return state->ticket.result();
    }));
  }

 private:
  struct State {
    explicit State(ImportTicket started) : ticket(std::move(started)) {}
    std::mutex mutex;
    ImportTicket ticket;
  };
  Owned<State> state_;
};

}  // namespace kvm::python
