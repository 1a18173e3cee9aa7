// Which Host headers an exporter answers.
//
// A web page can make a browser on this machine ask a loopback address under a name of the page's
// own (DNS rebinding), and could then read the answer. The browser says that name in Host, so only
// names that no foreign page can have are answered.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvm::ctl {

// `host`: the value of the header, with or without a port. True for a numeric address, localhost,
// and each of `names` (a proxy's); in any case of letters. An empty one is refused.
bool HostIsAllowed(std::string_view host, const std::vector<std::string>& names);

}  // namespace kvm::ctl
