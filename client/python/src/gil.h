// Releases Python's lock (the GIL) around calls that can take long, and takes it again.
//
// While Python ends, a thread that takes the GIL never gets it: CPython ends that thread there, up
// to 3.13 by pthread_exit, from 3.14 on by letting it hang. The unwinding of pthread_exit must meet
// neither a noexcept function ("terminate called without an active exception") nor a catch block
// that does not rethrow, such as nanobind's ("exception not rethrown"): both end the process. So
// the unwinding is stopped at the first of the following three places, and the thread hangs until
// the process ends, as it does from 3.14 on. Objects that it refers to are not destroyed.
//   - TakeGil, by which this module takes the GIL again.
//   - An exception translator, for Python code that a bound function calls (an exception's class,
//     an argument's __dlpack__).
//   - The terminate handler, for Python code that a noexcept function calls (nanobind's export of
//     arrays, destructors).
//
// Threads of libkvclient never take the GIL, since Python may be waiting for them to end.
#pragma once

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include <nanobind/nanobind.h>

#include "kvclient/interrupt.h"

namespace kvm::python {

namespace nb = nanobind;

// The reverse of PyEval_SaveThread; does not return while Python ends, unless on the thread that
// ends it.
void TakeGil(PyThreadState* thread) noexcept;

// Drops a reference: at once if the thread may do so, else with the next call that has the GIL. May
// be called on any thread, with or without the GIL; never waits. Once Python is ending, the
// reference is never dropped.
void DropReference(PyObject* object) noexcept;

class WithoutGilScope {
 public:
  WithoutGilScope() noexcept : thread_(PyEval_SaveThread()) {}
  ~WithoutGilScope();  // also drops the references that were passed to DropReference
  WithoutGilScope(const WithoutGilScope&) = delete;
  WithoutGilScope& operator=(const WithoutGilScope&) = delete;

  // Runs Python's signal handlers. True if one has raised (KeyboardInterrupt); `raised` is that
  // exception.
  bool RunSignalHandlers(std::optional<nb::python_error>& raised);

 private:
  PyThreadState* thread_;
};

// For calls that take little time, or that can't be interrupted.
template <class F>
auto WithoutGil(F&& function) {
  const WithoutGilScope scope;
  return function();
}

// Whether this is the process's first thread, the only one on which Python runs signal handlers.
bool OnSignalThread() noexcept;

// For calls that wait. Signal handlers run meanwhile. If one raises, the waits of `function` end as
// if their deadlines had passed, and the exception is raised once `function` has returned.
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
    // If the call succeeded nevertheless, its region is released here, without the GIL, since that
    // may wait
    if (raised) outcome.reset();
  }
  if (raised) throw std::move(*raised);
  return std::move(*outcome);
}

// To be called once, when the module is loaded: installs the hooks that report Python's end.
void WatchPythonsEnd(nb::module_& module);

}  // namespace kvm::python
