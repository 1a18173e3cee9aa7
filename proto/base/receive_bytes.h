// Receiving from a Unix socket on which nothing but bytes is expected.
//
// Descriptors may come with the bytes, and who receives those without taking them closes them: the
// kernel does it in the thread that reads. The last close of a descriptor may wait for its sender
// (proto/base/descriptor_closer.h).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>

namespace kvm {

// Once, before anything is received from a Unix socket. Bytes that are sent as urgent (MSG_OOB)
// then come in their order. Else the kernel drops them behind the reader's back, and closes the
// descriptors that came with them, whether the reader takes descriptors or not.
void ReceiveInOrder(int socket) noexcept;

// As recv with MSG_DONTWAIT. Errors, in errno: EBADMSG: descriptors come with the next bytes, which
// stay in the socket; it is to be closed by a DescriptorCloser. One thread at a time receives from
// a socket.
ssize_t ReceiveBytes(int socket, std::span<std::byte> into) noexcept;

}  // namespace kvm
