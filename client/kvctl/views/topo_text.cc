#include "client/kvctl/views/topo_text.h"

#include <boost/json/array.hpp>

#include <ostream>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

std::string DeviceName(const DeviceInfo& device) { return "GPU " + std::to_string(device.ordinal); }

std::string LinkCell(const LinkInfo& link) {
  if (!link.reachable) return "-";
  std::string cell = MemoryPathName(link.path);
  if (link.nvlinks > 0) cell += " x" + std::to_string(link.nvlinks);
  if (link.measured_gb_per_s > 0) cell += ", " + FormatFixed(link.measured_gb_per_s, 1) + " GB/s";
  return cell;
}

void PrintDevices(std::ostream& out, const Topology& topology) {
  Table table({"GPU", "name", "UUID", "PCI", ">memory", ">SMs", ">compute"});
  for (const DeviceInfo& device : topology.devices) {
    table.Add({std::to_string(device.ordinal), Printable(device.name), FormatUuid(device.uuid), device.pci_address,
               HumanBytes(device.memory_bytes), std::to_string(device.sm_count), ComputeCapability(device)});
  }
  table.Print(out);
}

void PrintMatrix(std::ostream& out, const Topology& topology) {
  std::vector<std::string> titles{"importer"};
  for (const DeviceInfo& owner : topology.devices) titles.push_back("from " + DeviceName(owner));
  Table table(std::move(titles));
  for (std::size_t importer = 0; importer < topology.devices.size(); ++importer) {
    std::vector<std::string> cells{DeviceName(topology.devices[importer])};
    for (std::size_t owner = 0; owner < topology.devices.size(); ++owner) cells.push_back(LinkCell(topology.Link(importer, owner)));
    table.Add(std::move(cells));
  }
  table.Print(out);
}

void PrintNotes(std::ostream& out, const Topology& topology) {
  FieldList notes;
  for (const DeviceInfo& device : topology.devices) {
    if (!device.unusable.empty()) notes.Add(DeviceName(device), "not used: " + device.unusable);
  }
  for (std::size_t importer = 0; importer < topology.devices.size(); ++importer) {
    for (std::size_t owner = 0; owner < topology.devices.size(); ++owner) {
      const std::string& note = topology.Link(importer, owner).note;
      if (!note.empty())
        notes.Add(DeviceName(topology.devices[importer]) + " from " + DeviceName(topology.devices[owner]), Printable(note));
    }
  }
  if (notes.empty()) return;
  out << '\n';
  notes.Print(out);
}

}  // namespace

void PrintTopology(std::ostream& out, const Topology& topology) {
  if (topology.devices.empty()) {
    out << "no GPU is visible\n";
    return;
  }
  PrintDevices(out, topology);
  out << '\n';
  PrintMatrix(out, topology);
  PrintNotes(out, topology);
}

boost::json::object TopologyJson(const Topology& topology) {
  boost::json::array devices, links;
  for (const DeviceInfo& device : topology.devices) {
    devices.push_back(boost::json::object{{"ordinal", device.ordinal},
                                          {"name", Printable(device.name)},
                                          {"uuid", FormatUuid(device.uuid)},
                                          {"pci_address", device.pci_address},
                                          {"memory_bytes", device.memory_bytes},
                                          {"sm_count", device.sm_count},
                                          {"compute_capability", ComputeCapability(device)},
                                          {"usable", device.unusable.empty()},
                                          {"unusable_reason", device.unusable}});
  }
  for (std::size_t importer = 0; importer < topology.devices.size(); ++importer) {
    for (std::size_t owner = 0; owner < topology.devices.size(); ++owner) {
      const LinkInfo& link = topology.Link(importer, owner);
      boost::json::object object{{"importer", topology.devices[importer].ordinal},
                                 {"owner", topology.devices[owner].ordinal},
                                 {"reachable", link.reachable},
                                 {"path", nullptr},
                                 {"nvlinks", link.nvlinks},
                                 {"gb_per_s", nullptr},
                                 {"note", Printable(link.note)}};
      if (link.reachable) object["path"] = MemoryPathName(link.path);
      if (link.measured_gb_per_s > 0) object["gb_per_s"] = link.measured_gb_per_s;
      links.push_back(std::move(object));
    }
  }
  return {{"devices", std::move(devices)}, {"links", std::move(links)}};
}

std::string ComputeCapability(const DeviceInfo& device) {
  return std::to_string(device.compute_capability / 10) + "." + std::to_string(device.compute_capability % 10);
}

}  // namespace kvm::ctl
