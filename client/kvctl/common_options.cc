#include "client/kvctl/common_options.h"

#include <iostream>

#include "client/kvctl/exit_codes.h"
#include "client/kvctl/text.h"

namespace kvm::ctl {

int Fail(const Error& error) {
  std::cerr << "kvctl: " << Printable(error.ToString()) << std::endl;
  return ExitFor(error.code);
}

}  // namespace kvm::ctl
