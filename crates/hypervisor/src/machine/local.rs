//! What this host's QEMU can do, and whether that is enough for a definition.
//!
//! Asked once of a QEMU without a machine, over its standard input and output.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;
use understudy_model::ErrorKind;

use super::definition::{Accelerator, Bus, Definition, Family, Firmware, NicModel, Video};
use super::launch::Emulator;

/// Most bytes of answers: QEMU 10.0 sends some 250 KiB.
const ANSWERS_MAX: u64 = 8 << 20;

/// What is asked, by the id its answer bears.
const QUESTIONS: &str = concat!(
    r#"{"execute":"qmp_capabilities"}"#,
    "\n",
    r#"{"execute":"query-version","id":"version"}"#,
    "\n",
    r#"{"execute":"query-machines","id":"machines"}"#,
    "\n",
    r#"{"execute":"query-cpu-definitions","id":"cpus"}"#,
    "\n",
    r#"{"execute":"query-kvm","id":"kvm"}"#,
    "\n",
    r#"{"execute":"qom-list-types","arguments":{"implements":"device"},"id":"devices"}"#,
    "\n",
    r#"{"execute":"quit"}"#,
    "\n",
);

/// Why this host's QEMU could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// It did not finish in time.
    #[error("{program} did not answer within {waited:?}")]
    Late {
        /// The program.
        program: String,
        /// How long was waited.
        waited: Duration,
    },
    /// It answered something else.
    #[error("{program} is no QEMU that this program knows: it says nothing of its {missing}")]
    Strange {
        /// The program.
        program: String,
        /// What is not there.
        missing: &'static str,
    },
}

impl ProbeError {
    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Operator
    }
}

/// What this host's QEMU can do.
#[derive(Debug, Clone)]
pub struct LocalQemu {
    /// Its version: major, minor, patch.
    pub version: (u32, u32, u32),
    /// Machine types, by name and by alias, with the most processors each takes.
    machines: BTreeMap<String, u32>,
    cpus: BTreeSet<String>,
    devices: BTreeSet<String>,
    has_kvm: bool,
    has_uefi: bool,
}

impl LocalQemu {
    /// Asks the emulator.
    pub async fn probe(emulator: &Emulator, patience: Duration) -> Result<Self, ProbeError> {
        let program = emulator.program.display().to_string();
        let answers = match timeout(patience, ask(&emulator.program)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(err)) => return Err(ProbeError::Run { program, err }),
            Err(_) => return Err(ProbeError::Late { program, waited: patience }),
        };
        let mut local = read(&answers).map_err(|missing| ProbeError::Strange { program, missing })?;
        local.has_kvm &= OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        local.has_uefi = emulator.uefi.as_ref().is_some_and(|uefi| uefi.code.is_file() && uefi.variables.is_file());
        Ok(local)
    }

    /// Everything this host lacks for `definition`; nothing if the VM can be started here. That the processor under
    /// KVM has each feature asked for shows only at the start.
    pub fn lacks(&self, definition: &Definition) -> Vec<String> {
        let mut missing = Vec::new();
        match self.machines.get(definition.machine.as_str()) {
            None => missing.push(format!("machine type {}", definition.machine)),
            Some(most) => {
                let count = definition.cpu.count().unwrap_or(u32::MAX);
                if count > *most {
                    missing.push(format!("{count} processors on {} (at most {most})", definition.machine));
                }
            }
        }
        if !self.cpus.contains(definition.cpu.model.as_str()) {
            missing.push(format!("processor model {}", definition.cpu.model));
        }
        match definition.accelerator {
            Accelerator::Kvm if !self.has_kvm => missing.push("KVM (/dev/kvm cannot be opened)".to_owned()),
            Accelerator::Tcg if definition.cpu.model.as_str() == "host" => {
                missing.push("processor model host without KVM".to_owned());
            }
            _ => {}
        }
        if definition.firmware == Firmware::Uefi && !self.has_uefi {
            missing.push("UEFI firmware (none is configured, or its files are not there)".to_owned());
        }
        let devices = needed_devices(definition);
        missing.extend(devices.into_iter().filter(|d| !self.devices.contains(d)).map(|d| format!("device {d}")));
        missing
    }
}

fn needed_devices(definition: &Definition) -> BTreeSet<String> {
    let transport = if Family::of(&definition.machine) == Some(Family::Microvm) { "device" } else { "pci" };
    let virtio = |kind: &str| format!("virtio-{kind}-{transport}");
    let disks = definition.disks.iter().map(|disk| match disk.bus {
        Bus::VirtioBlk => virtio("blk"),
        Bus::VirtioScsi => virtio("scsi"),
        Bus::Ide | Bus::Sata => "ide-hd".to_owned(),
        Bus::Nvme => "nvme".to_owned(),
    });
    let nics = definition.nics.iter().map(|nic| match nic.model {
        NicModel::Virtio => virtio("net"),
        other => other.word().to_owned(),
    });
    let rng = definition.rng.then(|| virtio("rng"));
    let agent = definition.agent.then(|| virtio("serial"));
    let video = match definition.video {
        Video::None => None,
        Video::Vga => Some("VGA".to_owned()),
        Video::Virtio => Some("virtio-vga".to_owned()),
    };
    disks.chain(nics).chain(rng).chain(agent).chain(video).collect()
}

async fn ask(program: &Path) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(["-no-user-config", "-nodefaults", "-machine", "none", "-display", "none", "-S", "-qmp", "stdio"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (mut input, output) = (child.stdin.take(), child.stdout.take());
    if let Some(input) = &mut input {
        input.write_all(QUESTIONS.as_bytes()).await?;
    }
    let mut answers = Vec::new();
    if let Some(output) = output {
        output.take(ANSWERS_MAX).read_to_end(&mut answers).await?;
    }
    // Closed only now: a QEMU whose monitor hangs up before it has quit would be no worse off, but says so in its log.
    drop(input);
    child.wait().await?;
    Ok(answers)
}

fn read(answers: &[u8]) -> Result<LocalQemu, &'static str> {
    let lines = answers.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let by_id: BTreeMap<String, Value> = lines
        .filter_map(|mut line| Some((line.get("id")?.as_str()?.to_owned(), line.get_mut("return")?.take())))
        .collect();
    let list = |id: &'static str| by_id.get(id).and_then(Value::as_array).ok_or(id);
    let name = |entry: &Value| Some(entry.get("name")?.as_str()?.to_owned());
    let names = |id| list(id).map(|entries| entries.iter().filter_map(name).collect());
    let part = |name: &str| {
        let number = by_id.get("version").and_then(|v| v.pointer(&format!("/qemu/{name}"))).and_then(Value::as_u64);
        number.and_then(|n| u32::try_from(n).ok()).ok_or("version")
    };
    Ok(LocalQemu {
        version: (part("major")?, part("minor")?, part("micro")?),
        machines: list("machines")?.iter().flat_map(machine).collect(),
        cpus: names("cpus")?,
        devices: names("devices")?,
        has_kvm: by_id.get("kvm").and_then(|kvm| kvm.get("present")).and_then(Value::as_bool).unwrap_or(false),
        has_uefi: false,
    })
}

fn machine(entry: &Value) -> Vec<(String, u32)> {
    let most = entry.get("cpu-max").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    let name = |key: &str| entry.get(key).and_then(Value::as_str).map(|name| (name.to_owned(), most));
    [name("name"), name("alias")].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_no_qemu_is_named_for_what_it_does_not_say() {
        assert_eq!(read(b"hello\n{\"QMP\": {}}\n").unwrap_err(), "version");
        let version = r#"{"id": "version", "return": {"qemu": {"major": 9, "minor": 1, "micro": 0}}}"#;
        assert_eq!(read(version.as_bytes()).unwrap_err(), "machines");
    }
}
