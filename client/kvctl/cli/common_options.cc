#include "client/kvctl/cli/common_options.h"

#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {

int Fail(const Error& error) {
  std::cerr << "kvctl: " << Printable(error.ToString()) << std::endl;
  return ExitFor(error.code);
}

}  // namespace kvm::ctl
