//! Makes a definition of a running VM by asking its QEMU.
//!
//! What the definition has no word for is left out and said ([`Derived::left_out`]); what would make the replica another
//! machine (an unknown controller under a replicated disk, another processor family) is an error. The disks are those
//! the caller names: which of a VM's disks are replicated is not decided here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use understudy_model::{DiskId, ErrorKind};
use uuid::Uuid;

use crate::process::Arguments;

use super::ask::{Ask, AskError, Object, Tree};
use super::blob::{Blob, BlobError, Role, measure};
use super::definition::{
    Accelerator, Clock, Cpu, Definition, Disk, Firmware, Kernel, MEMORY_MIB_MAX, MachineOption, Nic, PciPlace,
    RootPort, Switch, Video,
};
use super::devices::{self, Found};
use super::document::DocumentError;
use super::text::{CommandLine, CpuModel, FeatureName, FeatureValue, MachineType, NetworkName, TextError, VmName};

/// Most remarks about what was left out.
const REMARKS_MAX: usize = 64;

/// What to derive a definition of.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The replicated disks, each with the `qdev` of its entry in `query-block`: a device id or a path.
    pub disks: Vec<(DiskId, String)>,
    /// The QEMU's process, where it can be seen (`SO_PEERCRED` of its monitor's socket): knows what the monitor does not.
    pub pid: Option<u32>,
    /// What to call the networks, by the id of QEMU's netdev. Others are called by that id.
    pub networks: BTreeMap<String, NetworkName>,
}

/// A definition and what comes with it.
#[derive(Debug)]
pub struct Derived {
    /// The definition.
    pub definition: Definition,
    /// The files it needs besides disks.
    pub blobs: Vec<Blob>,
    /// What the VM has and the definition does not, for people.
    pub left_out: Vec<String>,
}

/// Why no definition could be derived.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// The monitor failed, or refused what every QEMU answers.
    #[error("cannot ask the VM about {what}")]
    Ask {
        /// What was to be known.
        what: &'static str,
        /// Why it is not.
        #[source]
        err: AskError,
    },
    /// An answer lacks what every QEMU says.
    #[error("the VM's answer about {0} makes no sense")]
    Answer(&'static str),
    /// A disk sits where no replica could have it.
    #[error("{disk}: {why}")]
    Disk {
        /// Which disk.
        disk: DiskId,
        /// What is in the way.
        why: String,
    },
    /// The VM is of a kind that cannot be defined.
    #[error("{0}")]
    Unsupported(String),
    /// One of its texts does not fit a definition.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Its kernel cannot be had.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The parts do not go together.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

impl DeriveError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DeriveError::Ask { .. } => ErrorKind::Retry,
            _ => ErrorKind::Operator,
        }
    }
}

pub(super) fn asking(what: &'static str) -> impl FnOnce(AskError) -> DeriveError {
    move |err| DeriveError::Ask { what, err }
}

/// Derives the definition of the VM behind `ask`. Changes nothing in it.
pub async fn derive(ask: &mut dyn Ask, source: &Source) -> Result<Derived, DeriveError> {
    let mut work = Work { tree: Tree { ask }, source, arguments: Arguments::default(), left_out: Vec::new() };
    work.read_arguments();
    let mut definition = work.frame().await?;
    let found = devices::Devices::find(&mut work.tree).await?;
    work.add_devices(&mut definition, &found).await?;
    let (kernel, blobs) = work.kernel().await?;
    definition.kernel = kernel;
    Ok(Derived { definition: definition.checked()?, blobs, left_out: work.left_out })
}

struct Work<'a> {
    tree: Tree<'a>,
    source: &'a Source,
    arguments: Arguments,
    left_out: Vec<String>,
}

impl Work<'_> {
    fn read_arguments(&mut self) {
        match self.source.pid.map(Arguments::of) {
            Some(Ok(arguments)) => self.arguments = arguments,
            _ => self.remark("processor features and clock: the VM's process cannot be seen from here"),
        }
    }

    /// Notes something that the definition does not say.
    fn remark(&mut self, text: impl Into<String>) {
        if self.left_out.len() < REMARKS_MAX {
            let text = text.into();
            self.left_out.push(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect());
        }
    }

    /// The machine without its devices.
    async fn frame(&mut self) -> Result<Definition, DeriveError> {
        let uuid = self.field("query-uuid", "UUID").await?;
        let uuid = Uuid::try_parse(&uuid).map_err(|_| DeriveError::Answer("its uuid"))?;
        let name = self.tree.query("query-name").await.map_err(asking("its name"))?;
        let name = match name.get("name").and_then(Value::as_str) {
            Some(name) => VmName::try_from(name)?,
            None => VmName::try_from(uuid.to_string())?,
        };
        let kind = self.tree.text("/machine", "type").await.map_err(asking("its machine type"))?;
        let kind = kind.ok_or(DeriveError::Answer("its machine type"))?;
        let machine = MachineType::try_from(kind.strip_suffix("-machine").unwrap_or(&kind))?;
        let (accelerator, cpu, memory) = (self.accelerator().await?, self.cpu().await?, self.memory_mib().await?);
        let mut definition = Definition::new(name, uuid, accelerator, machine, cpu, memory);
        definition.machine_options = self.machine_options().await?;
        definition.firmware = self.firmware().await?;
        if self.arguments.clock_is_local() {
            definition.clock = Clock::Local;
        }
        let guard = self.tree.text("/machine", "confidential-guest-support").await.map_err(asking("its memory"))?;
        match guard {
            Some(_) => Err(DeriveError::Unsupported("the VM's memory is encrypted by the processor".to_owned())),
            None => Ok(definition),
        }
    }

    /// The parts of the machine that somebody chose otherwise than they are by default.
    async fn machine_options(&mut self) -> Result<BTreeMap<MachineOption, Switch>, DeriveError> {
        let mut options = BTreeMap::new();
        for option in MachineOption::ALL {
            let value = self.tree.property("/machine", option.word()).await.map_err(asking("its machine type"))?;
            let switch = match value {
                Some(Value::Bool(true)) => Switch::On,
                Some(Value::Bool(false)) => Switch::Off,
                Some(Value::String(word)) if word == "on" => Switch::On,
                Some(Value::String(word)) if word == "off" => Switch::Off,
                // Left to QEMU, or unknown to this one.
                _ => continue,
            };
            // These are there unless somebody takes them away, the others as QEMU sees fit.
            let by_default = matches!(option, MachineOption::Hpet | MachineOption::I8042 | MachineOption::Vmport);
            if switch == Switch::Off || !by_default {
                options.insert(option, switch);
            }
        }
        Ok(options)
    }

    async fn accelerator(&mut self) -> Result<Accelerator, DeriveError> {
        let kvm = self.tree.query("query-kvm").await.map_err(asking("its accelerator"))?;
        match kvm.get("enabled").and_then(Value::as_bool) {
            Some(true) => Ok(Accelerator::Kvm),
            Some(false) => Ok(Accelerator::Tcg),
            None => Err(DeriveError::Answer("its accelerator")),
        }
    }

    async fn cpu(&mut self) -> Result<Cpu, DeriveError> {
        let cpus = self.tree.query("query-cpus-fast").await.map_err(asking("its processors"))?;
        let cpus = cpus.as_array().ok_or(DeriveError::Answer("its processors"))?;
        let first = cpus.first().and_then(|cpu| cpu.get("qom-path")).and_then(Value::as_str);
        let first = first.ok_or(DeriveError::Answer("its processors"))?;
        let kind = self.tree.text(first, "type").await.map_err(asking("its processors"))?;
        let kind = kind.ok_or(DeriveError::Answer("its processors"))?;
        let model = kind.strip_suffix("-x86_64-cpu").or_else(|| kind.strip_suffix("-i386-cpu"));
        let model = model
            .ok_or_else(|| DeriveError::Unsupported(format!("its processor is a {kind}, not of the x86 family")))?;
        let model = CpuModel::try_from(model)?;
        let (sockets, cores, threads) = self.topology(cpus.len()).await?;
        Ok(Cpu { model, features: self.features(), sockets, cores, threads })
    }

    fn features(&mut self) -> BTreeMap<FeatureName, FeatureValue> {
        let mut features = BTreeMap::new();
        for (name, value) in self.arguments.cpu_features() {
            match (FeatureName::try_from(name.as_str()), FeatureValue::try_from(value)) {
                (Ok(name), Ok(value)) => drop(features.insert(name, value)),
                _ => self.remark(format!("processor feature {name}")),
            }
        }
        features
    }

    /// Sockets, cores and threads as the VM was started with, or, with processors plugged in or taken away since, as
    /// many sockets as it has processors now.
    async fn topology(&mut self, count: usize) -> Result<(u32, u32, u32), DeriveError> {
        let count = u32::try_from(count).map_err(|_| DeriveError::Answer("its processors"))?;
        let smp = self.tree.property("/machine", "smp").await.map_err(asking("its processors"))?.unwrap_or_default();
        let part = |name: &str| smp.get(name).map_or(Some(1), |n| u32::try_from(n.as_u64()?).ok());
        let [Some(sockets), Some(cores), Some(threads)] = ["sockets", "cores", "threads"].map(part) else {
            return Err(DeriveError::Answer("its processors"));
        };
        // Dies, clusters and modules are told to the guest on few processors; their cores count as the socket's.
        let inner = ["dies", "clusters", "modules"].into_iter().try_fold(cores, |n, name| n.checked_mul(part(name)?));
        let inner = inner.ok_or(DeriveError::Answer("its processors"))?;
        let product = sockets.checked_mul(inner).and_then(|n| n.checked_mul(threads));
        if product == Some(count) {
            return Ok((sockets, inner, threads));
        }
        self.remark("the processors' topology: their number was changed since the VM was started");
        Ok((count, 1, 1))
    }

    async fn memory_mib(&mut self) -> Result<u64, DeriveError> {
        let memory = self.tree.query("query-memory-size-summary").await.map_err(asking("its memory"))?;
        let part = |name: &str| memory.get(name).and_then(Value::as_u64);
        let base = part("base-memory").ok_or(DeriveError::Answer("its memory"))?;
        let bytes = base.checked_add(part("plugged-memory").unwrap_or(0));
        bytes
            .map(|bytes| bytes.div_ceil(1 << 20))
            .filter(|mib| *mib <= MEMORY_MIB_MAX)
            .ok_or(DeriveError::Answer("its memory"))
    }

    async fn firmware(&mut self) -> Result<Firmware, DeriveError> {
        let flash = self.tree.text("/machine", "pflash0").await.map_err(asking("its firmware"))?;
        let file = self.tree.text("/machine", "firmware").await.map_err(asking("its firmware"))?.unwrap_or_default();
        let file = file.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        let is_uefi = flash.is_some() || ["ovmf", "edk2", "uefi"].iter().any(|word| file.contains(word));
        if is_uefi {
            self.remark("the UEFI variables: the replica boots by the disk's fallback path");
        }
        Ok(if is_uefi { Firmware::Uefi } else { Firmware::Bios })
    }

    async fn add_devices(&mut self, definition: &mut Definition, found: &Found) -> Result<(), DeriveError> {
        let ports = self.root_ports(found).await?;
        definition.root_ports = ports.iter().map(|(port, _)| *port).collect();
        let ports: Vec<Object> = ports.into_iter().map(|(_, object)| object).collect();
        definition.disks = self.disks(&ports).await?;
        definition.nics = self.nics(found, &ports).await?;
        definition.console = found.console;
        definition.rng = found.rng;
        definition.agent = found.agent;
        definition.video = self.video(found);
        self.remark_on_the_rest(found).await
    }

    /// The disks in the order in which the guest finds those of a kind: their names in it may depend on that.
    async fn disks(&mut self, ports: &[Object]) -> Result<Vec<Disk>, DeriveError> {
        let mut disks = Vec::new();
        for (id, qdev) in &self.source.disks {
            let found = devices::disk(&mut self.tree, *id, qdev).await?;
            let place = match found.has_place {
                true => self.place(&found.controller, ports).await?,
                false => None,
            };
            disks.push((found.turn, Disk { place, ..found.disk }));
        }
        disks.sort_by_key(|(turn, disk)| (disk.bus, *turn, disk.disk));
        Ok(disks.into_iter().map(|(_, disk)| disk).collect())
    }

    /// The network cards, likewise: QEMU's object tree has no order of its own.
    async fn nics(&mut self, found: &Found, ports: &[Object]) -> Result<Vec<Nic>, DeriveError> {
        let mut nics = Vec::new();
        for object in &found.nics {
            let Some(mut nic) = devices::nic(&mut self.tree, object, &self.source.networks).await? else {
                self.remark(format!("network card {}: there is none like it in a definition", object.kind));
                continue;
            };
            nic.place = self.place(object, ports).await?;
            nics.push((devices::mmio_turn(&mut self.tree, object).await?, nic));
        }
        nics.sort_by(|(turn, nic), (other_turn, other)| {
            (turn, nic.place, &nic.mac).cmp(&(other_turn, other.place, &other.mac))
        });
        Ok(nics.into_iter().map(|(_, nic)| nic).collect())
    }

    fn video(&mut self, found: &Found) -> Video {
        match found.video.as_deref() {
            None => Video::None,
            Some("VGA") => Video::Vga,
            Some("virtio-vga") => Video::Virtio,
            Some(other) => {
                self.remark(format!("graphics card {other}: the replica has a standard VGA card instead"));
                Video::Vga
            }
        }
    }

    /// The root ports by ascending place, which is how the guest numbers the buses behind them.
    async fn root_ports(&mut self, found: &Found) -> Result<Vec<(RootPort, Object)>, DeriveError> {
        let mut ports = Vec::new();
        for object in &found.root_ports {
            if let Some(PciPlace { port: None, slot, function }) = self.place(object, &[]).await? {
                ports.push((RootPort { slot, function }, object.clone()));
            }
        }
        ports.sort_by_key(|(port, _)| *port);
        Ok(ports)
    }

    /// Where a device sits; `None` for one without a PCI place or behind something that is no root port.
    async fn place(&mut self, object: &Object, ports: &[Object]) -> Result<Option<PciPlace>, DeriveError> {
        let address = self.tree.text(&object.path, "legacy-addr").await.map_err(asking("its devices"))?;
        let bus = self.tree.text(&object.path, "parent_bus").await.map_err(asking("its devices"))?;
        let (Some(address), Some(bus)) = (address, bus) else { return Ok(None) };
        let Some((slot, function)) = slot_and_function(&address) else { return Ok(None) };
        let (parent, _) = bus.rsplit_once('/').unwrap_or_default();
        if matches!(parent, "/machine/q35" | "/machine/i440fx") {
            return Ok(Some(PciPlace { port: None, slot, function }));
        }
        let Some(port) = ports.iter().position(|p| p.path == parent) else {
            self.remark(format!("the PCI place of {}: it is behind {parent}", object.kind));
            return Ok(None);
        };
        Ok(u8::try_from(port).ok().map(|port| PciPlace { port: Some(port), slot, function }))
    }

    async fn remark_on_the_rest(&mut self, found: &Found) -> Result<(), DeriveError> {
        for kind in &found.others {
            self.remark(format!("device {kind}"));
        }
        let blocks = self.tree.query("query-block").await.map_err(asking("its disks"))?;
        for block in blocks.as_array().map(Vec::as_slice).unwrap_or_default() {
            let Some(qdev) = block.get("qdev").and_then(Value::as_str) else { continue };
            let has_medium = block.get("inserted").is_some_and(|inserted| !inserted.is_null());
            let is_ours = |(_, ours): &(DiskId, String)| devices::path_of(ours) == devices::path_of(qdev);
            if has_medium && !self.source.disks.iter().any(is_ours) {
                self.remark(format!("drive {qdev}: it is not replicated"));
            }
        }
        Ok(())
    }

    async fn kernel(&mut self) -> Result<(Option<Kernel>, Vec<Blob>), DeriveError> {
        let mut texts = [None, None, None];
        for (text, property) in texts.iter_mut().zip(["kernel", "initrd", "append"]) {
            *text = self.tree.text("/machine", property).await.map_err(asking("its kernel"))?;
        }
        let [Some(kernel), initrd, append] = texts else { return Ok((None, Vec::new())) };
        let image = self.blob(&kernel, Role::Kernel).await?;
        let initrd = match initrd {
            Some(path) => Some(self.blob(&path, Role::Initrd).await?),
            None => None,
        };
        let kernel = Kernel {
            image: image.name.clone(),
            initrd: initrd.as_ref().map(|blob| blob.name.clone()),
            command_line: append.map(CommandLine::try_from).transpose()?,
        };
        Ok((Some(kernel), [Some(image), initrd].into_iter().flatten().collect()))
    }

    async fn blob(&self, path: &str, role: Role) -> Result<Blob, DeriveError> {
        let path = match (Path::new(path).is_absolute(), self.source.pid) {
            (true, _) => PathBuf::from(path),
            (false, Some(pid)) => Path::new("/proc").join(pid.to_string()).join("cwd").join(path),
            (false, None) => {
                let why = "the VM's kernel has a relative path, and its process cannot be seen from here";
                return Err(DeriveError::Unsupported(why.to_owned()));
            }
        };
        let measured = tokio::task::spawn_blocking(move || measure(&path, role)).await;
        Ok(measured.expect("measuring a file does not panic")?)
    }

    async fn field(&mut self, command: &'static str, field: &'static str) -> Result<String, DeriveError> {
        let answer = self.tree.query(command).await.map_err(asking(command))?;
        answer.get(field).and_then(Value::as_str).map(str::to_owned).ok_or(DeriveError::Answer(command))
    }
}

/// Reads QEMU's `SS.F`, both hexadecimal.
fn slot_and_function(address: &str) -> Option<(u8, u8)> {
    let (slot, function) = address.split_once('.')?;
    let (slot, function) = (u8::from_str_radix(slot, 16).ok()?, u8::from_str_radix(function, 16).ok()?);
    (slot < 32 && function < 8).then_some((slot, function))
}
