//! The definition of a VM: everything its replica needs to start it, disks apart.
//!
//! It is made on the primary and used on the replica, which may have nothing but the definition's word for it. So it
//! names no file, no program, no socket and no device of a host; every field is one of a few words, a bounded number or
//! a bounded text of harmless characters; what it does not know it refuses. Where disks, kernels and networks are found
//! is for each host to say (see [`super::Launch`]).
//!
//! The reference for people is `docs/reference/definition.md`; its example is a test's input.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use understudy_model::{DiskId, DiskSpec};
use uuid::Uuid;

use super::text::{
    BlobName, CommandLine, CpuModel, FeatureName, FeatureValue, Mac, MachineType, NetworkName, Serial, VmName,
};

/// What a definition calls itself.
pub(super) const FORMAT: &str = "understudy-machine";
/// The version written, and the only one read.
pub(super) const VERSION: u32 = 1;
/// Most network cards.
pub const NICS_MAX: usize = 32;
/// Most processors: what QEMU's `pc` machines of the last years take with KVM on common hosts.
pub const CPUS_MAX: u32 = 1024;
/// Most memory, in MiB: 16 TiB.
pub const MEMORY_MIB_MAX: u64 = 16 << 20;
/// Most PCI Express root ports: one for each slot of the root bus.
const ROOT_PORTS_MAX: usize = 32;
/// Most processor features.
const FEATURES_MAX: usize = 256;

/// A VM, without its disks' contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    pub(super) format: String,
    pub(super) version: u32,
    /// Its name as people know it.
    pub name: VmName,
    /// Its identity, which the guest sees as its hardware's.
    pub uuid: Uuid,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// QEMU's machine type, best with its version.
    pub machine: MachineType,
    /// Parts of the machine that are not as its type has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_options: BTreeMap<MachineOption, Switch>,
    /// What runs first.
    #[serde(default)]
    pub firmware: Firmware,
    /// Its processors.
    pub cpu: Cpu,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// What its clock shows.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clock: Clock,
    /// Its PCI Express root ports, by their places on the root bus. Devices behind them refer to their order here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_ports: Vec<RootPort>,
    /// Its replicated disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Its network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Whether it has a serial console.
    #[serde(default)]
    pub console: bool,
    /// Whether it has a virtio random number generator.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rng: bool,
    /// Whether it has a channel for the QEMU guest agent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agent: bool,
    /// Its graphics card.
    #[serde(default, skip_serializing_if = "is_default")]
    pub video: Video,
    /// The kernel that is loaded directly, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)* }

        impl $name {
            /// The word in the document.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

words!(
    /// What runs the guest's instructions.
    Accelerator {
        /// The host's processor.
        Kvm = "kvm",
        /// QEMU's translator.
        Tcg = "tcg",
    }
);

words!(
    /// What runs first.
    #[derive(Default)]
    Firmware {
        #[default]
        /// SeaBIOS, or the machine type's own.
        Bios = "bios",
        /// UEFI (OVMF). Its variables are not replicated: it boots by the disk's fallback path.
        Uefi = "uefi",
    }
);

words!(
    /// A part of a machine that can be there or not. A guest may not even start where one is other than it expects.
    MachineOption {
        /// ACPI.
        Acpi = "acpi",
        /// The high precision event timer (`pc`, `q35`).
        Hpet = "hpet",
        /// The keyboard controller (`pc`, `q35`).
        I8042 = "i8042",
        /// The legacy interrupt controller.
        Pic = "pic",
        /// The legacy interval timer.
        Pit = "pit",
        /// The hardware clock (`microvm`).
        Rtc = "rtc",
        /// System management mode (`pc`, `q35`).
        Smm = "smm",
        /// VMware's port (`pc`, `q35`).
        Vmport = "vmport",
    }
);

impl MachineOption {
    /// Every option.
    pub const ALL: [Self; 8] =
        [Self::Acpi, Self::Hpet, Self::I8042, Self::Pic, Self::Pit, Self::Rtc, Self::Smm, Self::Vmport];

    /// Whether machines of this family have it.
    fn is_of(self, family: Family) -> bool {
        match self {
            Self::Acpi | Self::Pic | Self::Pit => true,
            Self::Rtc => family == Family::Microvm,
            Self::Hpet | Self::I8042 | Self::Smm | Self::Vmport => family != Family::Microvm,
        }
    }
}

words!(
    /// Whether something is there.
    Switch {
        /// It is.
        On = "on",
        /// It is not.
        Off = "off",
    }
);

words!(
    /// What the guest's hardware clock shows.
    #[derive(Default)]
    Clock {
        #[default]
        /// Universal time.
        Utc = "utc",
        /// The host's local time, as Windows expects.
        Local = "local",
    }
);

words!(
    /// How a disk is attached.
    Bus {
        /// virtio-blk, on PCI or, for microvm, on MMIO.
        VirtioBlk = "virtio-blk",
        /// A disk on a virtio-scsi controller.
        VirtioScsi = "virtio-scsi",
        /// The `pc` machine's IDE.
        Ide = "ide",
        /// AHCI.
        Sata = "sata",
        /// An NVMe controller of its own.
        Nvme = "nvme",
    }
);

words!(
    /// A network card.
    NicModel {
        /// virtio-net, on PCI or, for microvm, on MMIO.
        Virtio = "virtio-net",
        /// Intel 82540EM.
        E1000 = "e1000",
        /// Intel 82574L.
        E1000e = "e1000e",
        /// Realtek 8139.
        Rtl8139 = "rtl8139",
        /// VMware's.
        Vmxnet3 = "vmxnet3",
    }
);

words!(
    /// A graphics card.
    #[derive(Default)]
    Video {
        #[default]
        /// None.
        None = "none",
        /// The standard VGA card.
        Vga = "vga",
        /// virtio with VGA compatibility.
        Virtio = "virtio",
    }
);

/// Processors: `sockets` x `cores` x `threads` of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// QEMU's model.
    pub model: CpuModel,
    /// Features set otherwise than the model has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<FeatureName, FeatureValue>,
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

impl Cpu {
    /// Number of processors as the guest counts them; `None` if that overflows.
    pub fn count(&self) -> Option<u32> {
        self.sockets.checked_mul(self.cores)?.checked_mul(self.threads)
    }
}

/// A place on the root bus, or behind a root port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciPlace {
    /// The root port it is behind, by its position in [`Definition::root_ports`]; on the root bus if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u8>,
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    #[serde(default, skip_serializing_if = "is_default")]
    pub function: u8,
}

/// A PCI Express root port on the root bus. Empty ones matter too: the guest numbers its buses by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPort {
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    #[serde(default, skip_serializing_if = "is_default")]
    pub function: u8,
}

/// A replicated disk's place in the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Which disk of the relationship.
    #[serde(with = "disk_number")]
    pub disk: DiskId,
    /// How it is attached.
    pub bus: Bus,
    /// Its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Its world wide name (SCSI, SATA and IDE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<u64>,
    /// What a SCSI disk calls itself besides its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<Serial>,
    /// Its turn in the boot order, lowest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<u16>,
    /// Whether it is served by a thread of its own (virtio only).
    #[serde(default, skip_serializing_if = "is_default")]
    pub iothread: bool,
    /// Sector size the guest sees. A guest's partition table is wrong with another one.
    #[serde(default = "sector", skip_serializing_if = "is_sector")]
    pub logical_block: u32,
    /// Physical sector size the guest sees.
    #[serde(default = "sector", skip_serializing_if = "is_sector")]
    pub physical_block: u32,
    /// Its PCI place (virtio-blk and NVMe).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PciPlace>,
}

const fn sector() -> u32 {
    512
}

fn is_sector(size: &u32) -> bool {
    *size == sector()
}

impl Disk {
    /// A disk with nothing but a number and a bus.
    pub fn new(disk: DiskId, bus: Bus) -> Self {
        Self {
            disk,
            bus,
            serial: None,
            wwn: None,
            device_id: None,
            boot: None,
            iothread: false,
            logical_block: sector(),
            physical_block: sector(),
            place: None,
        }
    }
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its model.
    pub model: NicModel,
    /// Its address.
    pub mac: Mac,
    /// The network it is on. Each host says what that is there; unknown ones, and none, are connected to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Its turn in the boot order, lowest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<u16>,
    /// Its PCI place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<PciPlace>,
}

/// A kernel loaded directly, without a boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// The kernel.
    pub image: BlobName,
    /// Its initial file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<BlobName>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<CommandLine>,
}

mod disk_number {
    use serde::{Deserialize, Deserializer, Serializer};
    use understudy_model::DiskId;

    pub fn serialize<S: Serializer>(disk: &DiskId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(disk.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DiskId, D::Error> {
        u16::deserialize(deserializer).map(DiskId)
    }
}

/// The families of machine types whose buses are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `pc`: PCI, IDE.
    Pc,
    /// `q35`: PCI Express, AHCI.
    Q35,
    /// `microvm`: no PCI.
    Microvm,
}

impl Family {
    pub fn of(machine: &MachineType) -> Option<Self> {
        let is = |name: &str| machine.as_str() == name || machine.as_str().starts_with(&format!("{name}-"));
        if is("q35") || is("pc-q35") {
            Some(Family::Q35)
        } else if machine.as_str() == "pc" || is("pc-i440fx") {
            Some(Family::Pc)
        } else if is("microvm") {
            Some(Family::Microvm)
        } else {
            None
        }
    }
}

impl Definition {
    /// The smallest definition: no disks, no network, nothing special.
    pub fn new(
        name: VmName,
        uuid: Uuid,
        accelerator: Accelerator,
        machine: MachineType,
        cpu: Cpu,
        memory_mib: u64,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            name,
            uuid,
            accelerator,
            machine,
            machine_options: BTreeMap::new(),
            firmware: Firmware::default(),
            cpu,
            memory_mib,
            clock: Clock::default(),
            root_ports: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            console: false,
            rng: false,
            agent: false,
            video: Video::default(),
            kernel: None,
        }
    }

    /// The blobs it needs, each once.
    pub fn blobs(&self) -> BTreeSet<&BlobName> {
        self.kernel.iter().flat_map(|k| [Some(&k.image), k.initrd.as_ref()]).flatten().collect()
    }

    /// What its parts say of each other: the first thing that cannot be.
    pub(super) fn check(&self) -> Result<(), String> {
        let family = Family::of(&self.machine)
            .ok_or_else(|| format!("machine type {} is not supported (pc, q35 and microvm are)", self.machine))?;
        if let Some(option) = self.machine_options.keys().find(|option| !option.is_of(family)) {
            return Err(format!("machine type {} has no option {}", self.machine, option.word()));
        }
        self.check_numbers()?;
        self.check_disks(family)?;
        self.check_nics()?;
        self.check_boot_order()?;
        self.check_places(family)?;
        match family {
            Family::Microvm if self.firmware == Firmware::Uefi => Err("a microvm has no UEFI".to_owned()),
            Family::Microvm if self.video != Video::None => Err("a microvm has no graphics card".to_owned()),
            _ => Ok(()),
        }
    }

    fn check_numbers(&self) -> Result<(), String> {
        if !self.cpu.count().is_some_and(|count| (1..=CPUS_MAX).contains(&count)) {
            return Err(format!("the number of processors must be between 1 and {CPUS_MAX}"));
        }
        if self.cpu.features.len() > FEATURES_MAX {
            return Err(format!("more than {FEATURES_MAX} processor features"));
        }
        if !(1..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(format!("memory_mib must be between 1 and {MEMORY_MIB_MAX}"));
        }
        Ok(())
    }

    fn check_disks(&self, family: Family) -> Result<(), String> {
        if self.disks.len() > DiskSpec::COUNT_MAX {
            return Err(format!("more than {} disks", DiskSpec::COUNT_MAX));
        }
        let ids: BTreeSet<DiskId> = self.disks.iter().map(|d| d.disk).collect();
        if ids.len() < self.disks.len() {
            return Err("the same disk twice".to_owned());
        }
        self.disks
            .iter()
            .try_for_each(|disk| check_disk(disk, family).map_err(|why| format!("{}: {why}", disk.disk)))?;
        for (bus, most) in [(Bus::Ide, 4), (Bus::Sata, 6)] {
            if self.disks.iter().filter(|d| d.bus == bus).count() > most {
                return Err(format!("more than {most} {} disks", bus.word()));
            }
        }
        Ok(())
    }

    fn check_nics(&self) -> Result<(), String> {
        if self.nics.len() > NICS_MAX {
            return Err(format!("more than {NICS_MAX} network cards"));
        }
        let macs: BTreeSet<&Mac> = self.nics.iter().map(|n| &n.mac).collect();
        if macs.len() < self.nics.len() {
            return Err("the same MAC address twice".to_owned());
        }
        Ok(())
    }

    fn check_boot_order(&self) -> Result<(), String> {
        let turns: Vec<u16> =
            self.disks.iter().filter_map(|d| d.boot).chain(self.nics.iter().filter_map(|n| n.boot)).collect();
        match turns.iter().collect::<BTreeSet<_>>().len() < turns.len() {
            true => Err("the same turn in the boot order twice".to_owned()),
            false => Ok(()),
        }
    }

    fn check_places(&self, family: Family) -> Result<(), String> {
        if self.root_ports.len() > ROOT_PORTS_MAX {
            return Err(format!("more than {ROOT_PORTS_MAX} root ports"));
        }
        if family != Family::Q35 && !self.root_ports.is_empty() {
            return Err(format!("machine type {} has no PCI Express root ports", self.machine));
        }
        let ports = self.root_ports.iter().map(|p| PciPlace { port: None, slot: p.slot, function: p.function });
        let disks = self.disks.iter().filter_map(|d| d.place);
        let nics = self.nics.iter().filter_map(|n| n.place);
        let mut taken = BTreeSet::new();
        for place in ports.chain(disks).chain(nics) {
            if family == Family::Microvm {
                return Err("a microvm has no PCI".to_owned());
            }
            if place.slot > 31 || place.function > 7 {
                return Err(format!("there is no PCI place {:x}.{:x}", place.slot, place.function));
            }
            if place.port.is_some_and(|port| usize::from(port) >= self.root_ports.len()) {
                return Err("a PCI place behind a root port that is not there".to_owned());
            }
            if !taken.insert(place) {
                return Err(format!("PCI place {:x}.{:x} is taken twice", place.slot, place.function));
            }
        }
        Ok(())
    }
}

fn check_disk(disk: &Disk, family: Family) -> Result<(), String> {
    let bus = disk.bus;
    let has_bus = match family {
        Family::Pc => true,
        Family::Q35 => bus != Bus::Ide,
        Family::Microvm => matches!(bus, Bus::VirtioBlk | Bus::VirtioScsi),
    };
    if !has_bus {
        return Err(format!("this machine type has no {}", bus.word()));
    }
    if disk.iothread && !matches!(bus, Bus::VirtioBlk | Bus::VirtioScsi) {
        return Err(format!("a {} disk has no iothread", bus.word()));
    }
    if disk.place.is_some() && !matches!(bus, Bus::VirtioBlk | Bus::Nvme) {
        return Err(format!("a {} disk has no PCI place of its own", bus.word()));
    }
    if disk.wwn.is_some() && !matches!(bus, Bus::VirtioScsi | Bus::Sata | Bus::Ide) {
        return Err(format!("a {} disk has no world wide name", bus.word()));
    }
    if disk.device_id.is_some() && bus != Bus::VirtioScsi {
        return Err("only SCSI disks have a device id".to_owned());
    }
    if bus == Bus::Nvme && disk.serial.is_none() {
        return Err("an NVMe disk needs a serial number".to_owned());
    }
    let block = |size: u32| size.is_power_of_two() && (512..=2 << 20).contains(&size);
    if !block(disk.logical_block) || !block(disk.physical_block) || disk.physical_block < disk.logical_block {
        return Err("sector sizes must be powers of two from 512 on, the physical not below the logical".to_owned());
    }
    Ok(())
}
