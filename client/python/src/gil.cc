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

// References to let go of. Left as it is at the process's end, when threads may still use it.
struct Dropped {
  std::mutex mutex;
  std::vector<PyObject*> objects;
  std::atomic<bool> any{false};
  bool ended = false;  // Python ends
};
Dropped& TheDropped() {
  static Dropped* const dropped = new Dropped;
  return *dropped;
}

std::atomic<bool> python_is_gone{false};  // finalized, while the process goes on to its end
std::atomic<long> ending_thread{0};       // Python ends, by this thread

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

// Null: not an exception of C++, hence pthread_exit's unwinding, inside of nanobind's catch block.
void TranslateUnwinding(const std::exception_ptr& exception, void*) {
  if (exception == nullptr) HangForEver();
  std::rethrow_exception(exception);  // the next translator's
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
    HangForEver();  // within the block: leaving it, rethrowing or not, would end the process
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
  // One is enough for all; a full queue of Python's leaves it to the next call of ours.
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
  static_cast<void>(Py_AtExit([] { python_is_gone.store(true); }));  // refused: CPython's own check has to do
  nb::module_::import_("atexit").attr("register")(module.attr("_python_ends"));
}

}  // namespace kvm::python
