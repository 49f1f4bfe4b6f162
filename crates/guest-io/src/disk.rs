//! One disk or file of the guest, with positioned reads and writes, and the line-at-a-time output to the console.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A block device, or a file on one.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: String,
    /// Length in bytes when it was opened.
    pub size: u64,
}

impl Disk {
    /// Opens for reading and writing; a path outside /dev that does not exist is created.
    pub fn open(path: &str) -> Result<Self, String> {
        let create = !path.starts_with("/dev/");
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path);
        let mut file = file.map_err(|err| format!("cannot open {path}: {err}"))?;
        let size = file.seek(SeekFrom::End(0)).map_err(|err| format!("cannot size {path}: {err}"))?;
        Ok(Disk { file, path: path.to_string(), size })
    }

    /// Gives a plain file at least this length, so that later writes overwrite and do not extend.
    pub fn grow_file_to(&mut self, size: u64) -> Result<(), String> {
        if self.size < size && !self.path.starts_with("/dev/") {
            self.file.set_len(size).map_err(|err| format!("cannot extend {}: {err}", self.path))?;
            self.size = size;
        }
        Ok(())
    }

    /// Reads exactly one buffer.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), String> {
        self.file.read_exact_at(buffer, offset).map_err(|err| format!("cannot read {} at {offset}: {err}", self.path))
    }

    /// Writes exactly one buffer.
    pub fn write_at(&self, buffer: &[u8], offset: u64) -> Result<(), String> {
        self.file.write_all_at(buffer, offset).map_err(|err| format!("cannot write {} at {offset}: {err}", self.path))
    }

    /// Returns once everything written is durable.
    pub fn sync(&self) -> Result<(), String> {
        self.file.sync_data().map_err(|err| format!("cannot sync {}: {err}", self.path))
    }
}

/// Prints one whole line with a single write, so that lines of concurrent programs do not mix on the console.
pub fn say(line: &str) {
    if cfg!(test) {
        return println!("{line}"); // which the test runner captures
    }
    let mut stdout = std::io::stdout().lock();
    // A console that went away must not stop the load: its evidence is on the disks.
    let _ = stdout.write_all(format!("{line}\n").as_bytes()).and_then(|()| stdout.flush());
}

/// The guest's wall clock in nanoseconds since 1970.
pub fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
