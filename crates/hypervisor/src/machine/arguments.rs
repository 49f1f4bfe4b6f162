//! Builds QEMU's command line from a definition and this host's part. Does no I/O but a look at what the images are.
//!
//! Every device gets an id and every disk a node name, so that the VM is found again as what it was: `disk-N` for disk N
//! in the monitor as in the store. Devices with a place of their own come first, so that none of the others takes it.
//! Values that may hold a comma are given as JSON.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use understudy_model::DiskId;

use super::definition::{Bus, Clock, Definition, Disk, Family, Firmware, NicModel, PciPlace, Video};
use super::devices::AGENT_CHANNEL;
use super::launch::{
    Attachment, Console, DiskImage, Emulator, InterfaceName, Launch, LaunchError, Networks, RuntimeFiles,
};
use crate::driver::ImageFormat;

/// The whole command line, without the program.
pub(super) fn arguments(launch: &Launch, emulator: &Emulator) -> Result<Vec<String>, LaunchError> {
    let family = Family::of(&launch.definition.machine)
        .ok_or_else(|| LaunchError::Misuse(format!("machine type {} is unknown", launch.definition.machine)))?;
    let files = RuntimeFiles::of(&launch.runtime);
    let mut builder = Builder { launch, definition: &launch.definition, family, files, list: Vec::new() };
    builder.process(emulator)?;
    builder.machine(emulator)?;
    builder.kernel()?;
    let devices = builder.devices()?;
    builder.attach(devices);
    builder.console()?;
    builder.screen()?;
    Ok(builder.list)
}

struct Builder<'a> {
    launch: &'a Launch,
    definition: &'a Definition,
    family: Family,
    files: RuntimeFiles,
    list: Vec<String>,
}

/// A `-device`, and where it is to be.
struct Device {
    fields: Map<String, Value>,
    place: Option<PciPlace>,
}

impl Builder<'_> {
    fn push(&mut self, option: &str, value: impl Into<String>) {
        self.list.extend([option.to_owned(), value.into()]);
    }

    fn push_json(&mut self, option: &str, value: Value) {
        self.push(option, value.to_string());
    }

    /// Who it is, and how the process lives.
    fn process(&mut self, emulator: &Emulator) -> Result<(), LaunchError> {
        let (name, uuid) = match &self.launch.identity {
            Some(identity) => (&identity.name, identity.uuid),
            None => (&self.definition.name, self.definition.uuid),
        };
        self.push("-name", format!("guest={},debug-threads=on", escaped(name.as_str())));
        self.push("-uuid", uuid.hyphenated().to_string());
        self.list.extend(["-no-user-config", "-nodefaults"].map(str::to_owned));
        if self.launch.paused {
            self.list.push("-S".to_owned());
        }
        if emulator.sandbox {
            // The bridge helper is a program with the right to plug interfaces together.
            let helper = if self.has_bridge() { "allow" } else { "deny" };
            self.push(
                "-sandbox",
                format!("on,obsolete=deny,elevateprivileges={helper},spawn={helper},resourcecontrol=deny"),
            );
        }
        self.push("-pidfile", text(&self.files.pid())?);
        self.push("-msg", "timestamp=on");
        let monitor = escaped(text(&self.files.monitor())?);
        self.push("-chardev", format!("socket,id=monitor,path={monitor},server=on,wait=off"));
        self.push("-mon", "chardev=monitor,mode=control");
        Ok(())
    }

    fn has_bridge(&self) -> bool {
        self.definition.nics.iter().any(|nic| matches!(self.attachment(nic.network.as_ref()), Attachment::Bridge(_)))
    }

    fn machine(&mut self, emulator: &Emulator) -> Result<(), LaunchError> {
        let definition = self.definition;
        self.push("-accel", definition.accelerator.word());
        let mut machine = definition.machine.to_string();
        for (option, switch) in &definition.machine_options {
            machine.push_str(&format!(",{}={}", option.word(), switch.word()));
        }
        if definition.firmware == Firmware::Uefi {
            machine.push_str(",pflash0=uefi-code,pflash1=uefi-variables");
            let Some(uefi) = &emulator.uefi else {
                return Err(LaunchError::Lacking("no UEFI firmware is configured on this host".to_owned()));
            };
            let flash = |name: &str, file: &str, read_only: bool| {
                let file = json!({ "driver": "file", "filename": file });
                json!({ "driver": "raw", "node-name": name, "read-only": read_only, "file": file })
            };
            self.push_json("-blockdev", flash("uefi-code", text(&uefi.code)?, true));
            self.push_json("-blockdev", flash("uefi-variables", text(&self.files.uefi_variables())?, false));
        }
        self.push("-machine", machine);
        let cpu = &definition.cpu;
        let features: String = cpu.features.iter().map(|(name, value)| format!(",{name}={value}")).collect();
        self.push("-cpu", format!("{}{features}", cpu.model));
        let count = cpu.count().ok_or_else(|| LaunchError::Misuse("too many processors".to_owned()))?;
        self.push("-smp", format!("{count},sockets={},cores={},threads={}", cpu.sockets, cpu.cores, cpu.threads));
        self.push("-m", format!("{}M", definition.memory_mib));
        self.push("-rtc", if definition.clock == Clock::Local { "base=localtime" } else { "base=utc" });
        Ok(())
    }

    fn kernel(&mut self) -> Result<(), LaunchError> {
        let Some(kernel) = &self.definition.kernel else { return Ok(()) };
        let blob = |name| match self.launch.blobs.get(name) {
            Some(path) => text(path),
            None => Err(LaunchError::Misuse(format!("blob {name} is not at hand"))),
        };
        let (image, initrd) = (blob(&kernel.image)?, kernel.initrd.as_ref().map(blob).transpose()?);
        self.push("-kernel", image);
        if let Some(initrd) = initrd {
            self.push("-initrd", initrd);
        }
        if let Some(line) = &kernel.command_line {
            self.push("-append", line.as_str());
        }
        Ok(())
    }

    /// Everything with a back end: the back ends are pushed at once, the devices returned.
    fn devices(&mut self) -> Result<Vec<Device>, LaunchError> {
        let mut devices = self.root_ports();
        devices.extend(self.disks()?);
        devices.extend(self.nics()?);
        if self.definition.rng {
            self.push_json("-object", json!({ "qom-type": "rng-builtin", "id": "rng" }));
            devices.push(self.virtio("rng", json!({ "id": "rng-device", "rng": "rng" })));
        }
        if self.definition.agent {
            let path = escaped(text(&self.files.agent())?);
            self.push("-chardev", format!("socket,id=agent,path={path},server=on,wait=off"));
            devices.push(self.virtio("serial", json!({ "id": "serial" })));
            devices.push(device(
                json!({ "driver": "virtserialport", "bus": "serial.0", "chardev": "agent", "name": AGENT_CHANNEL }),
            ));
        }
        if let Some(driver) = video_driver(self.definition.video) {
            devices.push(device(json!({ "driver": driver, "id": "video" })));
        }
        Ok(devices)
    }

    fn root_ports(&self) -> Vec<Device> {
        let ports = self.definition.root_ports.iter().enumerate();
        ports
            .map(|(n, port)| {
                let fields = json!({ "driver": "pcie-root-port", "id": port_name(n), "port": n, "chassis": n + 1 });
                Device {
                    place: Some(PciPlace { port: None, slot: port.slot, function: port.function }),
                    ..device(fields)
                }
            })
            .collect()
    }

    fn disks(&mut self) -> Result<Vec<Device>, LaunchError> {
        let mut devices = Vec::new();
        let mut counts = Counts::default();
        for disk in &self.definition.disks {
            let image = self.launch.images.get(&disk.disk);
            let image = image.ok_or_else(|| LaunchError::Misuse(format!("{} has no image", disk.disk)))?;
            self.push_json("-blockdev", node(disk.disk, image)?);
            if disk.iothread {
                self.push_json("-object", json!({ "qom-type": "iothread", "id": format!("io-{}", disk.disk) }));
            }
            devices.extend(self.disk(disk, &mut counts));
        }
        if let Some(surplus) =
            self.launch.images.keys().find(|id| !self.definition.disks.iter().any(|d| d.disk == **id))
        {
            return Err(LaunchError::Misuse(format!("{surplus} has an image and no place in the definition")));
        }
        Ok(devices)
    }

    /// A disk, and before it the controller it needs, if that is not there yet.
    fn disk(&self, disk: &Disk, counts: &mut Counts) -> Vec<Device> {
        let name = disk.disk.to_string();
        let mut fields = json!({ "id": name, "drive": name });
        let mut put =
            |key: &str, value: Value| drop(fields.as_object_mut().expect("an object").insert(key.to_owned(), value));
        if let Some(serial) = &disk.serial {
            put("serial", serial.as_str().into());
        }
        if let Some(wwn) = disk.wwn {
            put("wwn", wwn.into());
        }
        if let Some(id) = &disk.device_id {
            put("device_id", id.as_str().into());
        }
        if let Some(turn) = disk.boot {
            put("bootindex", turn.into());
        }
        put("logical_block_size", disk.logical_block.into());
        put("physical_block_size", disk.physical_block.into());
        let mut controllers = Vec::new();
        let device = match disk.bus {
            Bus::VirtioBlk => {
                if disk.iothread {
                    put("iothread", format!("io-{name}").into());
                }
                self.virtio("blk", fields)
            }
            Bus::VirtioScsi => {
                let (controller, target) = self.scsi_controller(disk, counts, &mut controllers);
                put("bus", format!("{controller}.0").into());
                put("scsi-id", target.into());
                driver("scsi-hd", fields)
            }
            Bus::Ide => {
                let n = counts.next(Bus::Ide);
                put("bus", format!("ide.{}", n / 2).into());
                put("unit", (n % 2).into());
                driver("ide-hd", fields)
            }
            Bus::Sata => {
                let n = counts.next(Bus::Sata);
                let controller = if self.family == Family::Q35 { "ide" } else { "sata" };
                if self.family != Family::Q35 && n == 0 {
                    controllers.push(device(json!({ "driver": "ich9-ahci", "id": "sata" })));
                }
                put("bus", format!("{controller}.{n}").into());
                driver("ide-hd", fields)
            }
            Bus::Nvme => driver("nvme", fields),
        };
        controllers.push(Device { place: disk.place, ..device });
        controllers
    }

    /// The controller of a SCSI disk and its target number there. One with an I/O thread has a controller of its own.
    fn scsi_controller(&self, disk: &Disk, counts: &mut Counts, controllers: &mut Vec<Device>) -> (String, u32) {
        if disk.iothread {
            let name = format!("scsi-{}", disk.disk);
            controllers.push(self.virtio("scsi", json!({ "id": name, "iothread": format!("io-{}", disk.disk) })));
            return (name, 0);
        }
        let target = counts.next(Bus::VirtioScsi);
        if target == 0 {
            controllers.push(self.virtio("scsi", json!({ "id": "scsi" })));
        }
        ("scsi".to_owned(), target)
    }

    fn nics(&mut self) -> Result<Vec<Device>, LaunchError> {
        let definition = self.definition;
        let macs = match &self.launch.identity {
            Some(identity) if identity.macs.len() != definition.nics.len() => {
                return Err(LaunchError::Misuse("another number of MAC addresses than network cards".to_owned()));
            }
            Some(identity) => identity.macs.clone(),
            None => definition.nics.iter().map(|nic| nic.mac.clone()).collect(),
        };
        let mut devices = Vec::new();
        for (n, (nic, mac)) in definition.nics.iter().zip(macs).enumerate() {
            let back = format!("net-{n}");
            self.push_json("-netdev", netdev(&back, n, self.attachment(nic.network.as_ref())));
            let mut fields = json!({ "id": format!("nic-{n}"), "netdev": back, "mac": mac.as_str() });
            if let Some(turn) = nic.boot {
                fields["bootindex"] = turn.into();
            }
            let device = match nic.model {
                NicModel::Virtio => self.virtio("net", fields),
                other => driver(other.word(), fields),
            };
            devices.push(Device { place: nic.place, ..device });
        }
        Ok(devices)
    }

    fn attachment(&self, network: Option<&super::NetworkName>) -> Attachment {
        match (&self.launch.networks, network) {
            (Networks::Attached(known), Some(name)) => known.get(name).cloned().unwrap_or(Attachment::Nothing),
            _ => Attachment::Nothing,
        }
    }

    /// A virtio device on this machine's transport.
    fn virtio(&self, kind: &str, fields: Value) -> Device {
        let transport = if self.family == Family::Microvm { "device" } else { "pci" };
        driver(&format!("virtio-{kind}-{transport}"), fields)
    }

    /// Gives devices their places and pushes them, those with a place first.
    fn attach(&mut self, devices: Vec<Device>) {
        let taken: BTreeSet<PciPlace> = devices.iter().filter_map(|d| d.place).collect();
        let (mut placed, others): (Vec<Device>, Vec<Device>) = devices.into_iter().partition(|d| d.place.is_some());
        for device in &mut placed {
            let Some(place) = device.place else { continue };
            let root = if self.family == Family::Q35 { "pcie.0".to_owned() } else { "pci.0".to_owned() };
            let bus = place.port.map_or(root, |port| port_name(port.into()));
            device.fields.insert("bus".to_owned(), bus.into());
            device.fields.insert("addr".to_owned(), format!("{:x}.{:x}", place.slot, place.function).into());
            let shares = |other: &PciPlace| (other.port, other.slot) == (place.port, place.slot) && *other != place;
            if taken.iter().any(shares) {
                device.fields.insert("multifunction".to_owned(), true.into());
            }
        }
        for device in placed.into_iter().chain(others) {
            self.push_json("-device", Value::Object(device.fields));
        }
    }

    fn console(&mut self) -> Result<(), LaunchError> {
        if !self.definition.console {
            return Ok(());
        }
        let chardev = match self.launch.console {
            Console::Socket => {
                let path = escaped(text(&self.files.console_socket())?);
                format!("socket,id=console,path={path},server=on,wait=off")
            }
            Console::File => format!("file,id=console,path={},append=on", escaped(text(&self.files.console_log())?)),
        };
        self.push("-chardev", chardev);
        self.push("-serial", "chardev:console");
        Ok(())
    }

    fn screen(&mut self) -> Result<(), LaunchError> {
        self.push("-display", "none");
        if self.definition.video != Video::None {
            let path = escaped(text(&self.files.screen())?);
            self.push("-vnc", format!("unix:{path}"));
        }
        Ok(())
    }
}

/// How many disks each bus has so far.
#[derive(Default)]
struct Counts {
    ide: u32,
    sata: u32,
    scsi: u32,
}

impl Counts {
    fn next(&mut self, bus: Bus) -> u32 {
        let count = match bus {
            Bus::Ide => &mut self.ide,
            Bus::Sata => &mut self.sata,
            _ => &mut self.scsi,
        };
        *count += 1;
        *count - 1
    }
}

fn port_name(n: usize) -> String {
    format!("port-{n}")
}

fn video_driver(video: Video) -> Option<&'static str> {
    match video {
        Video::None => None,
        Video::Vga => Some("VGA"),
        Video::Virtio => Some("virtio-vga"),
    }
}

fn driver(name: &str, mut fields: Value) -> Device {
    fields["driver"] = name.into();
    device(fields)
}

fn device(fields: Value) -> Device {
    match fields {
        Value::Object(fields) => Device { fields, place: None },
        other => unreachable!("a device is an object, not {other}"),
    }
}

/// A disk's image as a node: its format said, never guessed; the guest's discards passed on to the file.
fn node(disk: DiskId, image: &DiskImage) -> Result<Value, LaunchError> {
    let format = match image.format {
        ImageFormat::Raw | ImageFormat::Qcow2 => image.format.name(),
        ImageFormat::Other => None,
    };
    let format =
        format.ok_or_else(|| LaunchError::Misuse(format!("the image of {disk} has a format that is not opened")))?;
    let what = || format!("look at the image of {disk}");
    let kind = std::fs::metadata(&image.path).map_err(|err| LaunchError::Host { what: what(), err })?.file_type();
    let protocol = match (kind.is_file(), kind.is_block_device()) {
        (true, _) => "file",
        (_, true) => "host_device",
        _ => return Err(LaunchError::Misuse(format!("the image of {disk} is neither a file nor a block device"))),
    };
    let filename = text(&image.path)?;
    Ok(json!({
        "driver": format,
        "node-name": disk.to_string(),
        "discard": "unmap",
        "file": { "driver": protocol, "filename": filename, "discard": "unmap" },
    }))
}

/// What is behind a network card. A hub of its own keeps a link up that leads nowhere.
fn netdev(id: &str, n: usize, attachment: Attachment) -> Value {
    let interface = |name: &InterfaceName| name.as_str().to_owned();
    match &attachment {
        Attachment::Nothing => json!({ "type": "hubport", "id": id, "hubid": n }),
        Attachment::User => json!({ "type": "user", "id": id }),
        Attachment::Bridge(name) => json!({ "type": "bridge", "id": id, "br": interface(name) }),
        Attachment::Tap(name) => {
            json!({ "type": "tap", "id": id, "ifname": interface(name), "script": "no", "downscript": "no" })
        }
    }
}

/// A path for a command line, where it is absolute and text.
fn text(path: &Path) -> Result<&str, LaunchError> {
    let sound = path.is_absolute().then(|| path.to_str()).flatten().filter(|path| !path.contains('\n'));
    sound.ok_or_else(|| LaunchError::Misuse(format!("{} is not an absolute path in UTF-8", path.display())))
}

/// A value among others joined by commas.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}
