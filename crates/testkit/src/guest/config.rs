//! What a guest is made of: machine, disks, how it comes up. A configuration can be started again and again with the same disks.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Guest, start};
use crate::disk::{self, Format};
use crate::emulator::{self, Emulator};
use crate::image::Image;

/// Kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Machine {
    /// The one most hosts use: PCI Express.
    Q35,
    /// The smallest: no PCI, virtio over memory-mapped registers.
    Microvm,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bus {
    /// virtio-blk.
    VirtioBlk,
    /// A SCSI disk on a virtio-scsi controller.
    VirtioScsi,
}

/// How a guest comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Start {
    /// From its kernel: some seconds without hardware help.
    Booted,
    /// From a state saved just before the disks are looked at: half a second, once the state is there.
    Restored,
}

/// One disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// The image.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// How it is attached.
    pub bus: Bus,
    /// Its serial number: the guest finds it as `/disk/SERIAL`.
    pub serial: String,
    /// True when a thread of its own serves it.
    pub iothread: bool,
}

impl GuestDisk {
    /// A virtio-blk disk with this serial number.
    pub fn new(serial: &str, path: impl Into<PathBuf>, format: Format) -> Self {
        GuestDisk { path: path.into(), format, bus: Bus::VirtioBlk, serial: serial.into(), iothread: false }
    }

    /// Attached to a virtio-scsi controller instead.
    pub fn on_scsi(self) -> Self {
        GuestDisk { bus: Bus::VirtioScsi, ..self }
    }

    /// Served by a thread of its own.
    pub fn on_iothread(self) -> Self {
        GuestDisk { iothread: true, ..self }
    }

    /// Where the guest finds it.
    pub fn in_guest(&self) -> String {
        format!("/disk/{}", self.serial)
    }
}

/// A guest that is not running. Clones share their directory, which goes when the last of them goes.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) machine: Machine,
    pub(super) memory_mib: u32,
    pub(super) disks: Vec<GuestDisk>,
    pub(super) agent: bool,
    pub(super) start: Start,
    pub(super) emulator: Option<Emulator>,
    pub(super) script: Option<String>,
    pub(super) extra: Vec<String>,
    pub(super) directory: Arc<TempDir>,
}

impl GuestConfig {
    /// A q35 machine with 128 MiB and no disk, restored from a saved state.
    pub fn new() -> Result<Self> {
        // Socket names have at most 107 bytes, so the directory is not put below a deep target directory.
        let directory = tempfile::Builder::new().prefix("guest-").tempdir();
        let directory = Arc::new(directory.context("cannot create a directory for the guest")?);
        Ok(GuestConfig {
            name: directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            uuid: new_uuid(),
            machine: Machine::Q35,
            memory_mib: 128,
            disks: Vec::new(),
            agent: false,
            start: Start::Restored,
            emulator: None,
            script: None,
            extra: Vec::new(),
            directory,
        })
    }

    /// The name its QEMU goes by.
    pub fn name(self, name: &str) -> Self {
        GuestConfig { name: name.into(), ..self }
    }

    /// Another kind of machine.
    pub fn machine(self, machine: Machine) -> Self {
        GuestConfig { machine, ..self }
    }

    /// Another size of memory.
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        GuestConfig { memory_mib, ..self }
    }

    /// One more disk.
    pub fn disk(mut self, disk: GuestDisk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Two new empty disks in the guest's directory, `a` and `b`, for a journal that is to show the order between them.
    pub fn two_disks(self, formats: [Format; 2], bytes: u64) -> Result<Self> {
        let mut config = self;
        for (serial, format) in ["a", "b"].into_iter().zip(formats) {
            let path = disk::create(&config.directory().join(serial), format, bytes)?;
            config = config.disk(GuestDisk::new(serial, path, format));
        }
        Ok(config)
    }

    /// With the QEMU guest agent inside, for file systems that are to be frozen.
    pub fn with_agent(self) -> Self {
        GuestConfig { agent: true, ..self }
    }

    /// Booted from its kernel each time, as a failed-over replica is.
    pub fn booted(self) -> Self {
        GuestConfig { start: Start::Booted, ..self }
    }

    /// Under another QEMU than the environment's.
    pub fn emulator(self, emulator: Emulator) -> Self {
        GuestConfig { emulator: Some(emulator), ..self }
    }

    /// Runs this script once booted and powers off, instead of taking commands.
    pub fn script(self, script: &str) -> Self {
        GuestConfig { script: Some(script.into()), start: Start::Booted, ..self }
    }

    /// More arguments for QEMU.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(|&word| word.to_string()));
        self
    }

    /// Starts it and waits until it takes commands; with a script, only until the console is connected.
    pub fn start(&self) -> Result<Guest> {
        start::start(self)
    }

    /// The machine's identity, made at random.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The disks, in order.
    pub fn disks(&self) -> &[GuestDisk] {
        &self.disks
    }

    /// The guest's own directory: sockets, logs, and room for its images.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The monitor that is left to the program under test.
    pub fn product_socket(&self) -> PathBuf {
        self.directory().join("product.qmp")
    }

    /// The guest agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.directory().join("agent.sock")
    }

    /// Everything the guest said on its serial port, over all its starts.
    pub fn serial_log(&self) -> PathBuf {
        self.directory().join("serial.log")
    }

    pub(super) fn test_socket(&self) -> PathBuf {
        self.directory().join("test.qmp")
    }

    pub(super) fn console_socket(&self) -> PathBuf {
        self.directory().join("console.sock")
    }

    pub(super) fn error_log(&self) -> PathBuf {
        self.directory().join("qemu.err")
    }

    /// The kernel and initramfs it boots: what a replica of it needs as well.
    pub fn image(&self) -> Result<Image> {
        if self.agent { Image::with_agent() } else { Image::plain() }
    }

    /// The kernel's command line.
    pub fn kernel_words(&self) -> String {
        let mut words = format!("{} guest.disks={}", crate::image::KERNEL_WORDS, self.disks.len());
        if let (Machine::Microvm, Some(khz)) = (self.machine, emulator::host_clock_khz()) {
            words += &format!(" tsc_early_khz={khz}"); // the machine has no clock to measure it by
        }
        if let Some(script) = &self.script {
            words += &format!(" guest.run={}", super::base64(script.as_bytes()));
        }
        words
    }

    pub(super) fn chosen_emulator(&self) -> Result<Emulator> {
        self.emulator.clone().map_or_else(Emulator::get, Ok)
    }
}

/// A random identity (RFC 9562, version 4). The standard library's hash maps are seeded by the system, which is random enough here.
fn new_uuid() -> String {
    let random = || RandomState::new().hash_one(std::process::id());
    let (high, low) = (random() & !0xf000 | 0x4000, random() & !(3 << 62) | 2 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low << 16 >> 16
    )
}
