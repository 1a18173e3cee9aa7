// Removes fields that this kvmd does not know from clients' messages.
//
// protobuf keeps unknown fields (and known ones of another type) and writes them again, so what a
// client adds to a message would be stored with a region or a client, and sent on to others. Every
// message that kvmd parses goes through here first.
#pragma once

#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

void DiscardUnknownFields(kvmwire::ClientMessage& message);

}  // namespace kvm::daemon
