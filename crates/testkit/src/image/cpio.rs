//! Writes a cpio archive in the "newc" form the kernel takes as its initramfs; device nodes need no privilege here.
//!
//! Each entry: magic "070701" and thirteen 8-digit hex fields, name with its zero, padding to 4, contents, padding to 4.
//! The kernel's own description is `Documentation/driver-api/early-userspace/buffer-format.rst`.

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under construction. Directories must be added before what is in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a plain file.
    pub fn file(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, FILE, (0, 0), contents);
    }

    /// Adds a file that can be run.
    pub fn program(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, PROGRAM, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, to: &str) {
        self.entry(name, LINK, (0, 0), to.as_bytes());
    }

    /// Adds a character device node.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Ends the archive. Further archives may follow in the same file.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("files of the guest are small");
        let name_size = name.len() as u32 + 1;
        let links = 1;
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.device("dev/console", 5, 1);
        archive.program("init", b"#!x");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let header = |at: usize, field: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + field * 8..at + 14 + field * 8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!((header(0, 1), header(0, 11)), (0o040_755, 4));
        let second = 110usize.next_multiple_of(4) + 4; // 110 + "dev\0" = 114, padded to 116
        assert_eq!(second, 116);
        assert_eq!(&bytes[second..second + 6], b"070701");
        assert_eq!((header(second, 9), header(second, 10)), (5, 1));
        let third = second + 110 + 12 + 2;
        assert_eq!((header(third, 6), &bytes[third + 110..third + 114]), (3, &b"init"[..]));
    }
}
