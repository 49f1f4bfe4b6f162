//! QEMU's arguments for a guest. Disks are named `disk0`, `disk1`, … and their devices `disk0-device`, …

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::config::{Bus, GuestConfig, GuestDisk, Machine};
use crate::emulator::accelerator;

/// What stands behind the disk devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// The configured images.
    Images,
    /// Nothing at all, for saving a state that has seen no disk.
    Nothing,
}

/// Everything but how the guest comes up.
pub fn arguments(config: &GuestConfig, kernel_words: &str, backing: Backing) -> Result<Vec<String>> {
    let mut list = List::default();
    machine(&mut list, config);
    let image = config.image()?;
    list.pair("-kernel", image.kernel.display());
    list.pair("-initrd", image.initramfs.display());
    list.pair("-append", kernel_words);
    sockets(&mut list, config);
    disks(&mut list, config, backing);
    if config.agent {
        agent(&mut list, config);
    }
    list.0.extend(config.extra.iter().cloned());
    Ok(list.0)
}

#[derive(Default)]
struct List(Vec<String>);

impl List {
    fn pair(&mut self, option: &str, value: impl ToString) {
        self.0.extend([option.to_string(), value.to_string()]);
    }
}

fn machine(list: &mut List, config: &GuestConfig) {
    // Without reboot: a guest whose kernel panics ends, and is not mistaken for one that came up by itself.
    list.0.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
    list.pair("-name", format!("guest={}", config.name));
    list.pair("-uuid", &config.uuid);
    list.pair("-display", "none");
    list.pair("-accel", accelerator());
    list.pair("-m", config.memory_mib);
    list.pair("-smp", 1);
    list.pair(
        "-machine",
        match config.machine {
            Machine::Q35 => "q35,usb=off,vmport=off",
            // Its interval timer is of no use to the kernel for calibrating: on a busy host that goes wrong, and the boot hangs.
            Machine::Microvm => "microvm,rtc=on,pit=off,pic=off",
        },
    );
}

fn sockets(list: &mut List, config: &GuestConfig) {
    let log = config.serial_log();
    list.pair(
        "-chardev",
        format!("{},logfile={},logappend=on", listening("console", &config.console_socket()), log.display()),
    );
    list.pair("-serial", "chardev:console");
    for (id, path) in [("product", config.product_socket()), ("test", config.test_socket())] {
        list.pair("-chardev", listening(id, &path));
        list.pair("-mon", format!("chardev={id},mode=control"));
    }
}

fn listening(id: &str, path: &Path) -> String {
    format!("socket,id={id},path={},server=on,wait=off", path.display())
}

fn disks(list: &mut List, config: &GuestConfig, backing: Backing) {
    if config.disks.iter().any(|disk| disk.bus == Bus::VirtioScsi) {
        if config.disks.iter().any(|disk| disk.bus == Bus::VirtioScsi && disk.iothread) {
            list.pair("-object", "iothread,id=scsi-thread");
            list.pair("-device", format!("{},id=scsi,iothread=scsi-thread", device(config.machine, "virtio-scsi")));
        } else {
            list.pair("-device", format!("{},id=scsi", device(config.machine, "virtio-scsi")));
        }
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let node = format!("disk{index}");
        match backing {
            Backing::Images => image(list, &node, disk),
            Backing::Nothing => {
                list.pair("-blockdev", json!({"driver": "null-co", "node-name": node, "read-zeroes": true}))
            }
        }
        attach(list, config.machine, &node, disk);
    }
}

fn image(list: &mut List, node: &str, disk: &GuestDisk) {
    let file = format!("{node}-file");
    list.pair("-blockdev", json!({"driver": "file", "node-name": file, "filename": disk.path, "discard": "unmap"}));
    list.pair("-blockdev", json!({"driver": disk.format.name(), "node-name": node, "file": file, "discard": "unmap"}));
}

fn attach(list: &mut List, machine: Machine, node: &str, disk: &GuestDisk) {
    let serial = &disk.serial;
    let mut words = match disk.bus {
        Bus::VirtioBlk => format!("{},id={node}-device,drive={node},serial={serial}", device(machine, "virtio-blk")),
        Bus::VirtioScsi => format!("scsi-hd,bus=scsi.0,id={node}-device,drive={node},serial={serial}"),
    };
    if disk.iothread && disk.bus == Bus::VirtioBlk {
        list.pair("-object", format!("iothread,id={node}-thread"));
        words += &format!(",iothread={node}-thread");
    }
    list.pair("-device", words);
}

fn agent(list: &mut List, config: &GuestConfig) {
    list.pair("-device", device(config.machine, "virtio-serial"));
    list.pair("-chardev", listening("agent", &config.agent_socket()));
    list.pair("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0");
}

fn device(machine: Machine, name: &str) -> String {
    match machine {
        Machine::Q35 => format!("{name}-pci"),
        Machine::Microvm => format!("{name}-device"),
    }
}
