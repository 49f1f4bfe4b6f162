//! A running VM's devices, as QEMU's object tree shows them, in the definition's words.

use std::collections::BTreeMap;

use serde_json::Value;
use understudy_model::DiskId;

use super::ask::{Object, Tree};
use super::definition::{Bus, Disk, Nic, NicModel};
use super::derive::{DeriveError, asking};
use super::text::{Mac, NetworkName, Serial};

/// Where QEMU keeps devices: those with an id, those without, and those the machine type brings along.
const PLACES: [&str; 3] = ["/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"];
/// Most devices looked at closely.
const DEVICES_MAX: usize = 1024;
/// What the guest agent's channel is called.
pub(super) const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// Devices that a definition implies or that make no difference to a replica: controllers, hubs, the balloon, and what
/// people type and point with.
const IMPLIED: [&str; 28] = [
    "pcie-root-port",
    "ioh3420",
    "pci-bridge",
    "pcie-pci-bridge",
    "i82801b11-bridge",
    "virtio-scsi-pci",
    "virtio-scsi-device",
    "virtio-serial-pci",
    "virtio-serial-device",
    "virtconsole",
    "isa-serial",
    "ich9-ahci",
    "virtio-balloon-pci",
    "virtio-balloon-device",
    "piix3-usb-uhci",
    "piix4-usb-uhci",
    "ich9-usb-uhci1",
    "ich9-usb-uhci2",
    "ich9-usb-uhci3",
    "ich9-usb-ehci1",
    "usb-ehci",
    "qemu-xhci",
    "nec-usb-xhci",
    "usb-hub",
    "usb-tablet",
    "usb-kbd",
    "usb-mouse",
    "nvme-subsys",
];
const VIDEO: [&str; 8] =
    ["VGA", "virtio-vga", "virtio-gpu-pci", "qxl-vga", "qxl", "cirrus-vga", "bochs-display", "ramfb"];
const DISKS: [&str; 8] =
    ["virtio-blk-pci", "virtio-blk-device", "scsi-hd", "ide-hd", "nvme", "nvme-ns", "scsi-cd", "ide-cd"];

/// What a VM has besides its disks.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub root_ports: Vec<Object>,
    pub nics: Vec<Object>,
    pub console: bool,
    pub rng: bool,
    pub agent: bool,
    pub video: Option<String>,
    /// Types of devices that the definition has no word for.
    pub others: Vec<String>,
}

pub(super) struct Devices;

impl Devices {
    /// Looks through the tree.
    pub async fn find(tree: &mut Tree<'_>) -> Result<Found, DeriveError> {
        let mut found = Found::default();
        for place in PLACES {
            let is_ours = place != "/machine/unattached";
            let children = tree.children(place).await.map_err(asking("its devices"))?;
            for object in children.into_iter().take(DEVICES_MAX) {
                found.take(tree, object, is_ours).await?;
            }
        }
        Ok(found)
    }
}

impl Found {
    async fn take(&mut self, tree: &mut Tree<'_>, object: Object, was_asked_for: bool) -> Result<(), DeriveError> {
        let kind = plain(&object.kind);
        if matches!(kind, "pcie-root-port" | "ioh3420") {
            self.root_ports.push(object);
        } else if nic_model(kind).is_some() {
            self.nics.push(object);
        } else if kind == "virtserialport" {
            let name = tree.text(&object.path, "name").await.map_err(asking("its devices"))?;
            // The channels of SPICE and the like mean nothing without their client.
            self.agent |= name.as_deref() == Some(AGENT_CHANNEL);
        } else if matches!(kind, "virtio-rng-pci" | "virtio-rng-device") {
            self.rng = true;
        } else if VIDEO.contains(&kind) {
            self.video.get_or_insert_with(|| kind.to_owned());
        } else if kind == "isa-serial" {
            self.console = true;
        } else if was_asked_for && is_network_card(tree, &object).await? {
            self.nics.push(object);
        } else if was_asked_for && !IMPLIED.contains(&kind) && !DISKS.contains(&kind) {
            self.others.push(object.kind);
        }
        Ok(())
    }
}

/// A type without the suffixes that say only which virtio revisions it speaks.
fn plain(kind: &str) -> &str {
    kind.strip_suffix("-non-transitional").or_else(|| kind.strip_suffix("-transitional")).unwrap_or(kind)
}

async fn is_network_card(tree: &mut Tree<'_>, object: &Object) -> Result<bool, DeriveError> {
    Ok(tree.text(&object.path, "mac").await.map_err(asking("its devices"))?.is_some())
}

fn nic_model(kind: &str) -> Option<NicModel> {
    Some(match kind {
        "virtio-net-pci" | "virtio-net-device" => NicModel::Virtio,
        "e1000" | "e1000-82540em" => NicModel::E1000,
        "e1000e" => NicModel::E1000e,
        "rtl8139" => NicModel::Rtl8139,
        "vmxnet3" => NicModel::Vmxnet3,
        _ => return None,
    })
}

/// A network card in the definition's words; `None` if it has none for this model.
pub(super) async fn nic(
    tree: &mut Tree<'_>,
    object: &Object,
    networks: &BTreeMap<String, NetworkName>,
) -> Result<Option<Nic>, DeriveError> {
    let Some(model) = nic_model(plain(&object.kind)) else { return Ok(None) };
    let mac = tree.text(&object.path, "mac").await.map_err(asking("its network cards"))?;
    let mac = mac.ok_or(DeriveError::Answer("its network cards"))?.to_ascii_lowercase();
    let netdev = tree.text(&object.path, "netdev").await.map_err(asking("its network cards"))?;
    let network = netdev.as_deref().map(|netdev| network(netdev, networks));
    let boot = boot(tree, object).await?;
    Ok(Some(Nic { model, mac: Mac::try_from(mac)?, network, boot, place: None }))
}

/// What a netdev's network is called: as the caller says, or as the netdev is, in the characters a name may have.
fn network(netdev: &str, networks: &BTreeMap<String, NetworkName>) -> NetworkName {
    let plain = |name: &str| NetworkName::try_from(name).ok();
    // QEMU calls those nobody named "#net" and a number that is another one at each start.
    let named = networks.get(netdev).cloned().or_else(|| plain(netdev));
    named.unwrap_or_else(|| plain("default").expect("letters are allowed"))
}

/// A disk in the definition's words, and what it hangs on.
pub(super) struct FoundDisk {
    pub disk: Disk,
    /// Its turn among the disks of its kind, in the order in which guests find them; 0 where a PCI place decides that.
    pub turn: u64,
    /// The device whose PCI place is the disk's own.
    pub controller: Object,
    pub has_place: bool,
}

/// The path in the object tree of what `query-block` calls a `qdev`.
pub(super) fn path_of(qdev: &str) -> String {
    match qdev.starts_with('/') {
        true => qdev.strip_suffix("/virtio-backend").unwrap_or(qdev).to_owned(),
        false => format!("/machine/peripheral/{qdev}"),
    }
}

/// Looks at the disk `id`, whose entry in `query-block` says `qdev`.
pub(super) async fn disk(tree: &mut Tree<'_>, id: DiskId, qdev: &str) -> Result<FoundDisk, DeriveError> {
    let refuse = |why: String| DeriveError::Disk { disk: id, why };
    let object = tree.object(&path_of(qdev)).await.map_err(asking("its disks"))?;
    let object = object.ok_or_else(|| refuse(format!("the VM has no device {qdev}")))?;
    let parent = tree.parent(&object).await.map_err(asking("its disks"))?;
    let parent_kind = parent.as_ref().map_or("", |p| plain(&p.kind));
    let (bus, controller) = match (plain(&object.kind), parent_kind) {
        ("virtio-blk-pci" | "virtio-blk-device", _) => (Bus::VirtioBlk, object.clone()),
        ("nvme", _) => (Bus::Nvme, object.clone()),
        ("nvme-ns", _) => (Bus::Nvme, only_nvme(tree).await?.ok_or_else(|| refuse(MANY_NVME.to_owned()))?),
        ("scsi-hd", "virtio-scsi-device") => (Bus::VirtioScsi, parent.clone().unwrap_or_else(|| object.clone())),
        ("ide-hd", kind) if kind.contains("ahci") => (Bus::Sata, object.clone()),
        ("ide-hd", kind) if kind.contains("ide") => (Bus::Ide, object.clone()),
        (kind, controller) => {
            return Err(refuse(format!("a {kind} on a {controller} is nothing that a replica could be given")));
        }
    };
    let mut disk = Disk::new(id, bus);
    read_identity(tree, &object, &controller, &mut disk).await?;
    disk.boot = match boot(tree, &object).await? {
        None => boot(tree, &controller).await?,
        turn => turn,
    };
    disk.iothread = has_iothread(tree, &controller).await?;
    let has_place = matches!(bus, Bus::VirtioBlk | Bus::Nvme);
    let turn = turn(tree, &object, &controller, bus).await?;
    Ok(FoundDisk { disk, turn, controller, has_place })
}

/// See [`FoundDisk::turn`].
async fn turn(tree: &mut Tree<'_>, object: &Object, controller: &Object, bus: Bus) -> Result<u64, DeriveError> {
    Ok(match bus {
        Bus::VirtioBlk => mmio_turn(tree, object).await?,
        Bus::Nvme => 0,
        Bus::Ide | Bus::Sata => {
            let unit = tree.number(&object.path, "unit").await.map_err(asking("its disks"))?;
            bus_number(tree, object).await? * 2 + unit.unwrap_or(0).min(1)
        }
        Bus::VirtioScsi => {
            let target = tree.number(&object.path, "scsi-id").await.map_err(asking("its disks"))?.unwrap_or(0);
            let lun = tree.number(&object.path, "lun").await.map_err(asking("its disks"))?.unwrap_or(0);
            // The controller's PCI place is its proxy's.
            let proxy = controller.path.strip_suffix("/virtio-backend").unwrap_or(&controller.path);
            let place = tree.number(proxy, "addr").await.map_err(asking("its disks"))?.unwrap_or(0);
            (place.min(0xffff) << 32) | (target.min(0xffff) << 16) | lun.min(0xffff)
        }
    })
}

/// The order in which devices were put on the MMIO buses of a `microvm`, which fill from the last to the first. 0 on PCI.
pub(super) async fn mmio_turn(tree: &mut Tree<'_>, object: &Object) -> Result<u64, DeriveError> {
    let bus = tree.text(&object.path, "parent_bus").await.map_err(asking("its devices"))?;
    let is_mmio = bus.is_some_and(|bus| bus.contains("/virtio-mmio-bus."));
    Ok(if is_mmio { 1000 - bus_number(tree, object).await?.min(1000) } else { 0 })
}

/// The number at the end of the name of the bus that a device is on.
async fn bus_number(tree: &mut Tree<'_>, object: &Object) -> Result<u64, DeriveError> {
    let bus = tree.text(&object.path, "parent_bus").await.map_err(asking("its devices"))?;
    let number = bus.as_deref().and_then(|bus| bus.rsplit_once('.')).and_then(|(_, n)| n.parse::<u32>().ok());
    Ok(number.unwrap_or(0).into())
}

const MANY_NVME: &str = "an NVMe namespace of one among several controllers";

/// The VM's NVMe controller, if it has exactly one.
async fn only_nvme(tree: &mut Tree<'_>) -> Result<Option<Object>, DeriveError> {
    let mut all = Vec::new();
    for place in &PLACES[..2] {
        let children = tree.children(place).await.map_err(asking("its disks"))?;
        all.extend(children.into_iter().filter(|object| object.kind == "nvme"));
    }
    Ok(if all.len() == 1 { all.pop() } else { None })
}

async fn read_identity(
    tree: &mut Tree<'_>,
    object: &Object,
    controller: &Object,
    disk: &mut Disk,
) -> Result<(), DeriveError> {
    let serial_of = if disk.bus == Bus::Nvme { controller } else { object };
    disk.serial = serial(tree, serial_of, "serial").await?;
    if disk.bus == Bus::VirtioScsi {
        // QEMU shows the serial number here when nothing else was said.
        disk.device_id = serial(tree, object, "device_id").await?.filter(|id| Some(id) != disk.serial.as_ref());
    }
    if matches!(disk.bus, Bus::VirtioScsi | Bus::Sata | Bus::Ide) {
        let wwn = tree.number(&object.path, "wwn").await.map_err(asking("its disks"))?;
        disk.wwn = wwn.filter(|wwn| *wwn != 0);
    }
    disk.logical_block = sector(tree, object, "logical_block_size").await?;
    disk.physical_block = sector(tree, object, "physical_block_size").await?;
    Ok(())
}

async fn serial(tree: &mut Tree<'_>, object: &Object, property: &str) -> Result<Option<Serial>, DeriveError> {
    let text = tree.text(&object.path, property).await.map_err(asking("its disks"))?;
    Ok(text.map(Serial::try_from).transpose()?)
}

async fn sector(tree: &mut Tree<'_>, object: &Object, property: &str) -> Result<u32, DeriveError> {
    let size = tree.number(&object.path, property).await.map_err(asking("its disks"))?;
    // Zero is what a controller says that leaves it to its namespace.
    let size = size.filter(|size| *size != 0).unwrap_or(512);
    u32::try_from(size).map_err(|_| DeriveError::Answer("its disks"))
}

async fn boot(tree: &mut Tree<'_>, object: &Object) -> Result<Option<u16>, DeriveError> {
    // -1, for none, is no number here.
    let turn = tree.number(&object.path, "bootindex").await.map_err(asking("its boot order"))?;
    Ok(turn.and_then(|turn| u16::try_from(turn).ok()))
}

async fn has_iothread(tree: &mut Tree<'_>, controller: &Object) -> Result<bool, DeriveError> {
    let one = tree.text(&controller.path, "iothread").await.map_err(asking("its disks"))?;
    let many = tree.property(&controller.path, "iothread-vq-mapping").await.map_err(asking("its disks"))?;
    Ok(one.is_some() || many.as_ref().and_then(Value::as_array).is_some_and(|list| !list.is_empty()))
}
