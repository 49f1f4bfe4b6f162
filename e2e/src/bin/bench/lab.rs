//! Where everything happens: two hosts with a wire between them, a directory for all files, and an image everyone copies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use understudy_testkit::daemon;
use understudy_testkit::disk::Format;
use understudy_testkit::emulator::{Emulator, accelerator};
use understudy_testkit::guest::{Guest, GuestConfig, GuestDisk};
use understudy_testkit::net::Net;

use crate::Options;

/// The hosts and what is on them.
#[derive(Debug)]
pub struct Lab {
    /// What was asked for.
    pub options: Options,
    /// Host `a` has the guests, host `b` gets the copies.
    pub net: Net,
    emulator: Emulator,
    directory: TempDir,
}

impl Lab {
    /// Two hosts, and nothing on them yet.
    pub fn new(options: &Options) -> Result<Self> {
        daemon::program()?; // built, should it not be, before anything runs that would be in the way
        let net = Net::start()?;
        let directory = tempfile::Builder::new().prefix("bench-").tempdir().context("cannot create a directory")?;
        let emulator = emulator_on_host(&net, &directory.path().join("qemu"))?;
        Ok(Lab { options: options.clone(), net, emulator, directory })
    }

    /// Room for files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An image with mixed content; made when it is asked for the first time.
    pub fn image(&self) -> Result<PathBuf> {
        let path = self.path("image.raw");
        if !path.exists() {
            let mix = crate::content::write(&path, self.options.image_bytes(), self.options.seed)?;
            let percent = |share: u64| share * 100 / self.options.image_bytes();
            println!(
                "\nimage: {} MiB, seed {}: text {} %, noise {} %, written zeros {} %, holes {} %",
                self.options.size,
                self.options.seed,
                percent(mix.text),
                percent(mix.noise),
                percent(mix.zeros),
                percent(mix.holes)
            );
        }
        Ok(path)
    }

    /// A running guest on host `a` with these raw disks.
    pub fn guest(&self, name: &str, disks: &[(&str, &Path)]) -> Result<Guest> {
        let config = GuestConfig::new()?.name(name).booted().emulator(self.emulator.clone());
        let attach = |config: GuestConfig, (serial, path): &(&str, &Path)| {
            config.disk(GuestDisk::new(serial, path, Format::Raw))
        };
        disks.iter().fold(config, attach).start()
    }

    /// What the figures were taken on.
    pub fn describe(&self) -> Result<String> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read about the processors")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        let count = std::thread::available_parallelism().map_or(0, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let (major, minor) = self.emulator.version();
        Ok(format!(
            "{count} processors ({}), shared by both hosts; QEMU {major}.{minor} with {}; load before the start: {}",
            model.unwrap_or("of unknown kind").trim(),
            accelerator(),
            load.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
        ))
    }
}

/// The installed emulator, started inside the namespace of host `a`: its own jobs have to reach the other host.
fn emulator_on_host(net: &Net, root: &Path) -> Result<Emulator> {
    let installed = Emulator::get()?;
    let (program, _) = installed.command(&[]);
    let words = net.a.prefix().join(" ");
    let script = root.join("usr/bin/qemu-system-x86_64");
    fs::create_dir_all(script.parent().unwrap_or(root)).context("cannot create a directory for the emulator")?;
    fs::write(&script, format!("#!/bin/sh\nexec {words} {} \"$@\"\n", program.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Emulator::unpacked(root)
}
