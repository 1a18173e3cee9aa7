// PyImportTicket: a thread-safe ImportTicket, which waits without the GIL.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"

namespace kvm::python {

class PyImportTicket {
 public:
  // `destination`: kept alive, with the Python object that owns its memory, until the copy has
  // ended.
  PyImportTicket(ImportTicket ticket, std::shared_ptr<Region> destination)
      : event_(reinterpret_cast<std::uintptr_t>(ticket.event())),
        state_(std::make_shared<State>(std::move(ticket), std::move(destination)), "import") {}

  std::optional<std::uintptr_t> event() const { return event_ != 0 ? std::optional(event_) : std::nullopt; }

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
    for (;;) {
      // Waits in steps and releases the ticket's lock in between, since a signal handler may use
      // this ticket, too.
      const Deadline step = std::min(deadline, After(std::chrono::milliseconds(50)));
      Result<ImportResult> result = WithoutGil([&]() -> Result<ImportResult> {
        const std::lock_guard lock(state->mutex);
        if (Status status = state->ticket.Wait(step); !status) return status.error();
        state->destination.reset();
        return state->ticket.result();
      });
      if (result || step == deadline) return Unwrap(std::move(result));
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  }

 private:
  struct State {
    State(ImportTicket started, std::shared_ptr<Region> into) : destination(std::move(into)), ticket(std::move(started)) {}
    std::mutex mutex;
    std::shared_ptr<Region> destination;
    ImportTicket ticket;  // destroyed first
  };
  std::uintptr_t event_;
  Owned<State> state_;
};

}  // namespace kvm::python
