//! virtnbdbackup, with a libvirtd and a guest of its own, sending its stream through ssh to a file on the other host.
//!
//! libvirtd wants its directories under `/etc` and `/var`, and users of its own; it gets them in namespaces that nobody else sees: mounts,
//! so that nothing is left on the machine, and processes, so that the QEMU it starts ends with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_testkit::disk::{self, Difference, Format};
use understudy_testkit::guest::{Console, Guest};
use understudy_testkit::image::{Image, KERNEL_WORDS};
use understudy_testkit::process::{self, Owned};
use understudy_testkit::wait::wait_for;

use super::rsync::Ssh;
use super::{Contender, sync};
use crate::lab::Lab;

const DOMAIN: &str = "bench";
/// libvirtd asks every emulator what it can do before it answers.
const START_BOUND: Duration = Duration::from_secs(60);
/// A boot under emulation, on a busy machine.
const BOOT_BOUND: Duration = Duration::from_secs(120);
const COMMAND_BOUND: Duration = Duration::from_secs(300);
/// A server closes an image within tenths of a second.
const RESTORE_BOUND: Duration = Duration::from_secs(20);
/// Beside the one of rsync.
const SSH_PORT: u16 = 2223;

/// What it is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A copy that no other builds on.
    Copy { compressed: bool },
    /// What was written since the last.
    Incremental,
}

/// Copies by virtnbdbackup.
#[derive(Debug)]
pub struct VirtNbdBackup<'a> {
    lab: &'a Lab,
    way: Way,
    original: PathBuf,
    directory: PathBuf,
    running: Option<Running>,
    /// Streams received, in order.
    received: Vec<PathBuf>,
}

#[derive(Debug)]
struct Running {
    /// The process whose end is that of all others in its namespace.
    root: Owned,
    /// The first process in it: whose namespaces tools enter.
    first: u32,
    console: Console,
    ssh: Ssh,
}

impl<'a> VirtNbdBackup<'a> {
    /// A full copy.
    pub fn new(lab: &'a Lab, original: &Path, compressed: bool) -> Self {
        Self::with(lab, original, Way::Copy { compressed }, if compressed { "libvirt-z" } else { "libvirt" })
    }

    /// What was written since a first copy that is not measured.
    pub fn incremental(lab: &'a Lab, original: &Path) -> Self {
        Self::with(lab, original, Way::Incremental, "libvirt-inc")
    }

    fn with(lab: &'a Lab, original: &Path, way: Way, name: &str) -> Self {
        let directory = lab.path(name);
        VirtNbdBackup { lab, way, original: original.into(), directory, running: None, received: Vec::new() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn disk(&self) -> PathBuf {
        self.file("disk.qcow2")
    }

    /// A place of its own for libvirtd, the guest in it, and an sshd for what comes out.
    fn start(&self) -> Result<Running> {
        fs::create_dir_all(self.file("work")).context("cannot create a directory for libvirt")?;
        disk::convert(&self.original, Format::Raw, &self.disk(), Format::Qcow2)?;
        fs::write(self.file("domain.xml"), self.domain()?)?;
        fs::write(self.file("start.sh"), self.start_script())?;
        let log = File::create(self.file("log")).context("cannot create libvirt's log")?;
        let script = self.file("start.sh");
        let words = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", super::word(&script)?];
        let root = self.lab.net.a.start("unshare", &words, |command| {
            command.stdout(log.try_clone().expect("a file can be held twice")).stderr(log);
        })?;
        let first = wait_for("a first process", START_BOUND, || child_of(root.id()))?;
        let virsh = |words: &[&str]| process::run_command(enter(first, "virsh", words));
        wait_for("libvirtd to answer", START_BOUND, || Ok(virsh(&["version"]).ok()))
            .with_context(|| fs::read_to_string(self.file("log")).unwrap_or_default())?;
        virsh(&["define", super::word(&self.file("domain.xml"))?])?;
        virsh(&["start", DOMAIN])?;
        let console = Console::connect(&self.file("console.sock"), BOOT_BOUND)?;
        console.wait_for("GUEST-READY", BOOT_BOUND)?;
        let ssh = Ssh::start(self.lab, "libvirt-ssh", SSH_PORT)?;
        Ok(Running { root, first, console, ssh })
    }

    /// Everything that must be there before libvirtd starts. The shell stays: the first process of a namespace has to bury the dead, and
    /// libvirtd waits for ever for emulators that nobody buries.
    fn start_script(&self) -> String {
        let at = self.directory.display();
        format!(
            "set -e\n\
             for d in /etc/libvirt /var/lib/libvirt /run/libvirt /var/log/libvirt /var/cache/libvirt; do\n\
             mkdir -p $d; mount -t tmpfs tmpfs $d; done\n\
             for f in passwd group; do grep -v '^libvirt-qemu:' /etc/$f > {at}/$f; done\n\
             echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >> {at}/passwd\n\
             echo 'libvirt-qemu:x:64055:' >> {at}/group\n\
             grep -q '^kvm:' {at}/group || echo 'kvm:x:64056:' >> {at}/group\n\
             for f in passwd group; do mount --bind {at}/$f /etc/$f; done\n\
             cat > /etc/libvirt/qemu.conf <<END\n\
             user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
             cgroup_controllers = []\nremember_owner = 0\nstdio_handler = \"file\"\nEND\n\
             echo 'auth_unix_rw = \"none\"' > {at}/libvirtd.conf\n\
             PATH=$PATH:/usr/sbin\n\
             libvirtd -f {at}/libvirtd.conf -p {at}/libvirtd.pid &\n\
             wait $!\n"
        )
    }

    /// The kernel is given past libvirt: with every copy virtnbdbackup would send it along.
    fn domain(&self) -> Result<String> {
        let image = Image::plain()?;
        let kernel_words = format!("{KERNEL_WORDS} guest.disks=1");
        let (kernel, initramfs) = (image.kernel.display().to_string(), image.initramfs.display().to_string());
        let words = ["-kernel", &kernel, "-initrd", &initramfs, "-append", &kernel_words];
        let words: String = words.iter().map(|word| format!("<qemu:arg value='{word}'/>")).collect();
        let emulator = process::run("sh", ["-c", "command -v qemu-system-x86_64"])?;
        Ok(format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n\
             <name>{DOMAIN}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>\n\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>\n\
             <devices><emulator>{}</emulator>\n\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\n\
             <source file='{}'/><target dev='vda' bus='virtio'/><serial>a</serial></disk>\n\
             <serial type='unix'><source mode='bind' path='{}'/><target port='0'/></serial>\n\
             <controller type='usb' model='none'/><memballoon model='none'/></devices>\n\
             <qemu:commandline>{words}</qemu:commandline></domain>\n",
            emulator.trim(),
            self.disk().display(),
            self.file("console.sock").display()
        ))
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("libvirt does not run")
    }

    /// Runs virtnbdbackup and puts its stream into a new file on the other host, synced.
    fn backup(&mut self, level: &str) -> Result<()> {
        let file = self.file(&format!("{}.zip", self.received.len()));
        let running = self.running()?;
        let compress = if self.way == (Way::Copy { compressed: true }) { "-z" } else { "" };
        let at = self.directory.display();
        let script = format!(
            "set -o pipefail; cd {at}/work && virtnbdbackup -n -d {DOMAIN} -l {level} {compress} -C {at}/checkpoints -S {at}/work \
             -o - 2>{at}/backup.log | {} root@{} 'cat > {file} && sync {file}'",
            running.ssh.client(),
            self.lab.net.b.address(),
            file = file.display()
        );
        let ran = process::run_command(enter(running.first, "bash", &["-c", &script]));
        ran.with_context(|| last_lines(&self.file("backup.log")))?;
        sync(&file)?;
        self.received.push(file);
        Ok(())
    }

    fn virsh(&self, words: &[&str]) -> Result<()> {
        process::run_command(enter(self.running()?.first, "virsh", words)).map(drop)
    }

    /// Brings all streams received into one disk, as after a disaster.
    fn restore(&self) -> Result<PathBuf> {
        let (streams, restored) = (self.file("streams"), self.file("restored"));
        for directory in [&streams, &restored] {
            let _ = fs::remove_dir_all(directory); // of an earlier check, if there was one
            fs::create_dir(directory).context("cannot create a directory for the restored disk")?;
        }
        for file in &self.received {
            let mut command = Command::new("python3");
            command.args(["-m", "zipfile", "-e", super::word(file)?, super::word(&streams)?]);
            process::run_command(command)?;
        }
        let words = ["-n", "-i", super::word(&streams)?, "-o", super::word(&restored)?];
        process::run_command(enter(self.running()?.first, "virtnbdrestore", &words))?;
        Ok(restored.join("disk.qcow2"))
    }
}

impl Contender for VirtNbdBackup<'_> {
    fn name(&self) -> String {
        match self.way {
            Way::Copy { compressed: false } => "virtnbdbackup, ssh".into(),
            Way::Copy { compressed: true } => "virtnbdbackup -z, ssh".into(),
            Way::Incremental => "virtnbdbackup inc, ssh".into(),
        }
    }

    fn prepare(&mut self, _guest: &mut Guest) -> Result<()> {
        self.running = Some(self.start()?);
        self.received.clear();
        if self.way == Way::Incremental { self.backup("full") } else { Ok(()) }
    }

    fn servers(&self) -> Vec<u32> {
        self.running.iter().flat_map(|running| [running.root.id(), running.ssh.id()]).collect()
    }

    fn run(&mut self, _guest: &mut Guest) -> Result<()> {
        self.backup(if self.way == Way::Incremental { "inc" } else { "copy" })
    }

    fn follow(&mut self, command: &str) -> Result<()> {
        let running = self.running.as_mut().context("libvirt does not run")?;
        let answer = running.console.run(command, COMMAND_BOUND)?;
        anyhow::ensure!(answer.status == 0, "{command:?} ended with {} in its guest: {}", answer.status, answer.text);
        Ok(())
    }

    fn check(&mut self, original: &Path) -> Result<()> {
        let restored = self.restore()?;
        // The server it restored through writes its last when virtnbdrestore has gone already.
        wait_for("the restored disk to read as the original", RESTORE_BOUND, || {
            let difference = disk::compare((&restored, Format::Qcow2), (original, Format::Raw))?;
            Ok((difference == Difference::None).then_some(()))
        })
    }

    fn finish(&mut self, _guest: &mut Guest) -> Result<()> {
        if self.running.is_some() {
            self.virsh(&["destroy", DOMAIN])?;
        }
        self.running = None;
        fs::remove_dir_all(&self.directory).context("cannot remove libvirt's files")
    }
}

/// A command in the namespaces of a process.
fn enter(process: u32, program: &str, words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args([
            COMMAND_BOUND.as_secs().to_string().as_str(),
            "nsenter",
            "--target",
            &process.to_string(),
            "--mount",
            "--net",
            "--pid",
            program,
        ])
        .args(words);
    command
}

/// The first child of a process, once there is one.
fn child_of(process: u32) -> Result<Option<u32>> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    Ok(children.split_whitespace().next().and_then(|id| id.parse().ok()))
}

fn last_lines(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}
