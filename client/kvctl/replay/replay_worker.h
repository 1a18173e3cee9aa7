// A worker of a replay: an inference engine without the model.
//
// For each request: derive the keys; let the pool choose which blocks stay; find and import the
// blocks of the prefix that the pool lacks; "prefill" the rest, which writes bytes that follow from
// each block's key; publish. Every block that the pool had or that was imported is compared with
// its key, byte for byte.
#pragma once

#include "client/kvctl/process/channel.h"

namespace kvm::ctl {

// Serves until the coordinator says finish or ends; returns the process's exit code.
int RunReplayWorker(Channel channel);

}  // namespace kvm::ctl
