// kvclient._native: libkvclient for Python. Names and documentation as users see them are in
// kvclient/.
#include "client/python/src/bindings.h"

NB_MODULE(_native, module) {
  nanobind::set_leak_warnings(false);  // engines end without destroying all their objects
  module.doc() = "libkvclient's interface; import it from kvclient.";
  kvm::python::WatchPythonsEnd(module);
  kvm::python::BindModel(module);
  kvm::python::BindKeys(module);
  kvm::python::BindGeometry(module);
  kvm::python::BindDevice(module);
  kvm::python::BindWrites(module);
  kvm::python::BindRegion(module);
  kvm::python::BindComputing(module);
  kvm::python::BindImport(module);
  kvm::python::BindLease(module);
  kvm::python::BindJoin(module);
  kvm::python::BindDescribe(module);
  kvm::python::BindStats(module);
  kvm::python::BindClient(module);
  kvm::python::BindSteps(module);
}
