// UcxLibrary: UCX's functions, looked up in the machine's libucp.so.0 when they are first needed.
//
// kvmd-mesh is not linked with UCX: it starts without it, it takes the one that LD_LIBRARY_PATH or
// ldconfig names, and UCX's initialisation runs only in processes that are asked for it. Only what
// the headers of UCX 1.13 declare is used. Load is called before other threads read the
// environment.
#pragma once

#include <ucp/api/ucp.h>

#include <string>

#include "kvm/error.h"

namespace kvm::mesh {

#define KVM_UCX_FUNCTIONS(each)                                                                                                          \
  each(ucp_am_data_release) each(ucp_am_recv_data_nbx) each(ucp_am_send_nbx) each(ucp_cleanup) each(ucp_config_modify)                   \
      each(ucp_config_read) each(ucp_config_release) each(ucp_ep_close_nbx) each(ucp_ep_create) each(ucp_get_version_string)             \
          each(ucp_init_version) each(ucp_listener_create) each(ucp_listener_destroy) each(ucp_listener_query) each(ucp_listener_reject) \
              each(ucp_request_free) each(ucp_worker_arm) each(ucp_worker_create) each(ucp_worker_destroy) each(ucp_worker_get_efd)      \
                  each(ucp_worker_progress) each(ucp_worker_set_am_recv_handler) each(ucs_status_string)

struct UcxLibrary {
  // The same one at each call; it stays loaded. kUnsupported: the library, or a function of it, is
  // not there.
  [[nodiscard]] static Result<const UcxLibrary*> Load();

  std::string Text(ucs_status_t status) const { return this->ucs_status_string(status); }

// NOLINTNEXTLINE(bugprone-macro-parentheses): a name
#define KVM_UCX_MEMBER(name) decltype(&::name) name = nullptr;
  KVM_UCX_FUNCTIONS(KVM_UCX_MEMBER)
#undef KVM_UCX_MEMBER
};

}  // namespace kvm::mesh
