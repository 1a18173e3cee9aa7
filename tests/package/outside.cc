// A program as a user would write it, built against the installed package only.
#include <iostream>

#include <kvclient/kvclient.h>

int main() {
  kvm::ModelSpec spec;
  spec.model_id = "example/model";
  kvm::KeyChain chain(spec.ComputeFingerprint(), kvm::Shard{});
  const std::uint32_t tokens[] = {1, 2, 3, 4};
  std::cout << "key " << chain.Next(tokens).ToHex() << '\n';

  kvm::ClientOptions options;
  options.socket_path = "/nonexistent/kvmd.sock";
  options.timeout = std::chrono::seconds(2);
  const auto client = kvm::Client::Connect(options);
  if (client) return 1;
  std::cout << "without kvmd: " << kvm::ErrcName(client.error().code) << '\n';
  return client.error().code == kvm::Errc::kUnavailable ? 0 : 1;
}
