// A worker of a replay: an inference engine without the model.
//
// For each request: derive the keys; let its pool choose what stays; find at its peers what the pool lacks of the
// prefix, and import it; "prefill" what is left, which writes bytes that follow from each block's key; publish.
// Whatever the pool held or was imported is compared, byte for byte, with what its key says.
#pragma once

#include "client/kvctl/process/channel.h"

namespace kvm::ctl {

// Serves until the coordinator says finish or ends; returns the process's exit code.
int RunReplayWorker(Channel channel);

}  // namespace kvm::ctl
