#include "client/mesh/transfer/ucx_library.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <utility>

namespace kvm::mesh {
namespace {

// UCX reads its settings from the environment while it is loaded. What the user has set stays.
void SetDefaults() {
  constexpr std::array<std::pair<const char*, const char*>, 4> kDefaults{{
      // It would replace this process's handler of SIGBUS (proto/shm/memory_guard.h).
      {"UCX_HANDLE_ERRORS", "none"},
      {"UCX_ERROR_SIGNALS", ""},
      // Standard output has one line, which programs read.
      {"UCX_LOG_FILE", "stderr"},
      // A thread and files in /tmp, for debugging.
      {"UCX_VFS_ENABLE", "n"},
  }};
  for (const auto& [name, value] : kDefaults) ::setenv(name, value, 0);
}

Result<UcxLibrary> Find() {
  SetDefaults();
  constexpr const char* kName = "libucp.so.0";
  void* const library = ::dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return MakeError(Errc::kUnsupported, std::string("UCX: ") + ::dlerror());
  UcxLibrary out;
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr) missing = name;
  };
#define KVM_UCX_FIND(name) find(out.name, #name);
  KVM_UCX_FUNCTIONS(KVM_UCX_FIND)
#undef KVM_UCX_FIND
  if (missing != nullptr) return MakeError(Errc::kUnsupported, std::string("UCX: ") + kName + " has no " + missing);
  return out;
}

}  // namespace

Result<const UcxLibrary*> UcxLibrary::Load() {
  static const Result<UcxLibrary> library = Find();
  if (!library) return library.error();
  return &*library;
}

}  // namespace kvm::mesh
