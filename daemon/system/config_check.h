// Every fault of a configuration file, with its line.
//
// kvmd does not start with a faulty file, and reads it up to the first fault; --check-config names
// all of them, so that an operator mends them at once.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace kvm::daemon {

struct ConfigFault {
  unsigned line = 0;   // from 1; 0: of the file as a whole
  std::string option;  // the key, or "[domain.NAME]"; empty: none is known
  std::string what;
};

// `text`: of a TOML file. `fault_of`: what is wrong with such a text, "--KEY: …" or "[SECTION]: …"
// where it is known; empty: nothing. In the order of lines.
std::vector<ConfigFault> FaultsOf(const std::string& text, const std::function<std::string(const std::string& text)>& fault_of);

}  // namespace kvm::daemon
