// Giving up Python's lock (the GIL) for what can take long, and taking it back.
//
// While Python ends, a thread that takes the GIL back never gets it: CPython ends that thread there, up to 3.13 by
// pthread_exit, from 3.14 on by letting it hang. The unwinding of pthread_exit must meet neither a noexcept function
// ("terminate called without an active exception") nor a catch block that goes on, such as nanobind's ("exception not
// rethrown"): both end the process. So it is stopped at whichever of our three it meets first, and the thread hangs, as since
// 3.14: it goes with its process, and what it still refers to is left alone.
//   - TakeGil: where this module takes the GIL back.
//   - An exception translator: Python code that a bound function calls (an exception's class, an argument's __dlpack__).
//   - The terminate handler: the same inside of a noexcept function (nanobind's export of arrays, destructors).
//
// Threads of libkvclient's own never take the GIL at all: Python may be waiting for them to end.
#pragma once

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include <nanobind/nanobind.h>

#include "kvclient/interrupt.h"

namespace kvm::python {

namespace nb = nanobind;

// The reverse of PyEval_SaveThread; does not return while Python ends, unless on the thread that ends it.
void TakeGil(PyThreadState* thread) noexcept;

// Lets go of a reference some time: at once if no lock is needed for it, else with the next call that has the GIL. For any
// thread, with or without the GIL; never waits. Once Python ends the reference is kept for ever.
void DropReference(PyObject* object) noexcept;

class WithoutGilScope {
 public:
  WithoutGilScope() noexcept : thread_(PyEval_SaveThread()) {}
  ~WithoutGilScope();  // also drops what DropReference was given
  WithoutGilScope(const WithoutGilScope&) = delete;
  WithoutGilScope& operator=(const WithoutGilScope&) = delete;

  // Runs Python's signal handlers. Whether one has raised (KeyboardInterrupt), and what.
  bool RunSignalHandlers(std::optional<nb::python_error>& raised);

 private:
  PyThreadState* thread_;
};

// For what takes no caller's time to speak of, or can't be cut short.
template <class F>
auto WithoutGil(F&& function) {
  const WithoutGilScope scope;
  return function();
}

// Python's signal handlers run on the process's first thread alone.
bool OnSignalThread() noexcept;

// For what waits: signal handlers run meanwhile, and what one raises is raised once `function`, whose waits
// end then as at their deadlines, has returned.
template <class F>
auto WaitWithoutGil(F&& function) {
  if (!OnSignalThread()) return WithoutGil(std::forward<F>(function));
  using Outcome = std::invoke_result_t<F>;
  std::optional<nb::python_error> raised;
  std::optional<Outcome> outcome;
  {
    WithoutGilScope scope;
    const InterruptScope interrupt([&] { return scope.RunSignalHandlers(raised); });
    outcome.emplace(function());
    if (raised) outcome.reset();  // a region that came all the same is let go of here, where that may wait
  }
  if (raised) throw std::move(*raised);
  return std::move(*outcome);
}

// Once, when the module is loaded: learns when Python ends.
void WatchPythonsEnd(nb::module_& module);

}  // namespace kvm::python
