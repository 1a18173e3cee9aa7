#include "client/python/src/gil.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <vector>

namespace kvm::python {
namespace {

// References that are to be dropped. It is never destroyed, since threads may still use it at the
// process's end.
struct Dropped {
  std::mutex mutex;
  std::vector<PyObject*> objects;
  std::atomic<bool> any{false};
  bool ended = false;  // Python is ending
};
Dropped& TheDropped() {
  static Dropped* const dropped = new Dropped;
  return *dropped;
}

std::atomic<bool> python_is_gone{false};  // Python is finalized, and the process is about to end
std::atomic<long> ending_thread{0};       // the thread that ends Python

long ThisThread() noexcept { return ::syscall(SYS_gettid); }

[[noreturn]] void HangForEver() noexcept {
  for (;;) ::pause();
}

std::terminate_handler other_handler = nullptr;
[[noreturn]] void OnTerminate() {
  const long ending = ending_thread.load();
  if (ending != 0 && ending != ThisThread() && std::current_exception() == nullptr) HangForEver();
  if (other_handler != nullptr) other_handler();
  std::abort();
}

// A null pointer is no C++ exception: it is pthread_exit's unwinding, inside of nanobind's catch
// block.
void TranslateUnwinding(const std::exception_ptr& exception, void*) {
  if (exception == nullptr) HangForEver();
  std::rethrow_exception(exception);  // for the next translator
}

// Needs the GIL.
void DropNow() noexcept {
  Dropped& dropped = TheDropped();
  if (!dropped.any.load(std::memory_order_relaxed)) return;
  std::vector<PyObject*> objects;
  {
    const std::lock_guard lock(dropped.mutex);
    if (dropped.ended) return;
    objects.swap(dropped.objects);
    dropped.any.store(false, std::memory_order_relaxed);
  }
  for (PyObject* object : objects) Py_DECREF(object);
}

}  // namespace

void TakeGil(PyThreadState* thread) noexcept {
  try {
    if (!python_is_gone.load()) return PyEval_RestoreThread(thread);
  } catch (...) {
    // Inside the catch block, since to leave it, rethrowing or not, would end the process
    HangForEver();
  }
  HangForEver();
}

void DropReference(PyObject* object) noexcept {
  Dropped& dropped = TheDropped();
  const std::lock_guard lock(dropped.mutex);
  dropped.objects.push_back(object);
  dropped.any.store(true, std::memory_order_relaxed);
  if (dropped.ended) return;
  const auto drop = [](void*) {
    DropNow();
    return 0;
  };
  // One pending call drops all references. If Python's queue is full, the next call of this module
  // drops them.
  if (dropped.objects.size() == 1) static_cast<void>(Py_AddPendingCall(drop, nullptr));
}

WithoutGilScope::~WithoutGilScope() {
  TakeGil(thread_);
  DropNow();
}

bool WithoutGilScope::RunSignalHandlers(std::optional<nb::python_error>& raised) {
  TakeGil(thread_);
  if (PyErr_CheckSignals() != 0) raised.emplace();
  thread_ = PyEval_SaveThread();
  return raised.has_value();
}

bool OnSignalThread() noexcept { return ThisThread() == ::getpid(); }

void WatchPythonsEnd(nb::module_& module) {
  module.def("_python_ends", [] {
    DropNow();
    ending_thread.store(ThisThread());
    const std::lock_guard lock(TheDropped().mutex);
    TheDropped().ended = true;
  });
  nb::register_exception_translator(TranslateUnwinding);
  other_handler = std::set_terminate(OnTerminate);
  // If it is refused, CPython's own check has to suffice
  static_cast<void>(Py_AtExit([] { python_is_gone.store(true); }));
  nb::module_::import_("atexit").attr("register")(module.attr("_python_ends"));
}

}  // namespace kvm::python
