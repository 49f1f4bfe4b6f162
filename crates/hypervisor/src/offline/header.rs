//! Reads the head of a qcow2 image: what it refers to, and which bitmaps are stored in it.
//!
//! Our own reader and not `qemu-img info`, because it opens nothing but the image itself: whatever a header names (a data
//! file, a backing file, a network address, a `json:` description) is a text here, to be judged before anything is
//! opened. It also takes no lock and starts no process.
//!
//! ```text
//!   0 magic | 4 version | 8 backing name offset, 16 length | 20 cluster bits | 24 size | 32 encryption
//!  72 incompatible | 80 compatible | 88 autoclear features (version 3) | 100 header length
//!     extensions: type u32, length u32, content padded to 8 bytes, until type 0
//! ```
//!
//! Invariant: everything read is within the file's first 64 KiB or within the bitmap directory, both bounded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of the first cluster is looked at. `qemu-img` writes the header, its extensions and the backing file's name
/// (at most 1023 bytes) into the first few hundred.
const HEAD_MAX: usize = 64 << 10;
/// Most bitmaps: as many as QEMU allows.
const BITMAPS_MAX: u32 = 65_535;
/// Largest directory of bitmaps that is read: ten thousand bitmaps with names like ours.
const DIRECTORY_MAX: u64 = 1 << 20;
/// Longest name of a bitmap, as QEMU has it.
const BITMAP_NAME_MAX: usize = 1023;

const DATA_FILE: u64 = 1 << 2;
/// Incompatible features that leave a reader nothing to heed beyond QEMU's own business: not closed cleanly, compression
/// type, extended L2 entries.
const HARMLESS: u64 = 1 << 0 | 1 << 3 | 1 << 4;
const CORRUPT: u64 = 1 << 1;
/// Autoclear feature: the bitmaps are of this version of the image.
const BITMAPS_ARE_CURRENT: u64 = 1 << 0;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What the head of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Size in bytes as the guest sees it.
    pub size: u64,
    /// The backing file as it is named, and its format, if that is said.
    pub backing: Option<(String, Option<String>)>,
    /// The bitmaps stored in it.
    pub bitmaps: Vec<StoredBitmap>,
}

/// A bitmap stored in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBitmap {
    /// Its name.
    pub name: String,
    /// Bytes per bit.
    pub granularity: u64,
    /// Whether it takes in writes when the image is opened for writing.
    pub recording: bool,
    /// Whether the image was not closed in good order, so that it may lack writes.
    pub inconsistent: bool,
}

/// Why an image is not one that is read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It is something else, or damaged, or uses what is not supported.
    #[error("{0}")]
    Unfit(&'static str),
}

fn unfit<T>(why: &'static str) -> Result<T, HeaderError> {
    Err(HeaderError::Unfit(why))
}

impl Header {
    /// Reads the head of an open image. Blocking.
    pub fn read(file: &File) -> Result<Self, HeaderError> {
        let head = Head::read(file)?;
        let extensions = head.extensions()?;
        let backing = match head.backing()? {
            Some(name) => Some((name, extensions.backing_format)),
            None => None,
        };
        let bitmaps = match extensions.bitmaps {
            Some(place) if head.autoclear & BITMAPS_ARE_CURRENT != 0 => place.read(file)?,
            _ => Vec::new(),
        };
        Ok(Self { size: head.u64(24), backing, bitmaps })
    }
}

/// The first bytes of an image, known to be one's.
struct Head {
    bytes: Vec<u8>,
    autoclear: u64,
    len: usize,
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    bitmaps: Option<Directory>,
}

impl Head {
    fn read(file: &File) -> Result<Self, HeaderError> {
        let mut bytes = vec![0; HEAD_MAX];
        let len = read_up_to(file, &mut bytes)?;
        bytes.truncate(len);
        if len < 72 || bytes[..4] != *b"QFI\xfb" {
            return unfit("it is no qcow2 image");
        }
        let mut head = Self { bytes, autoclear: 0, len: 72 };
        if !(9..=21).contains(&head.u32(20)) {
            return unfit("its header makes no sense");
        }
        head.bytes.truncate(1 << head.u32(20));
        if head.u32(32) != 0 {
            return unfit("it is encrypted");
        }
        match head.u32(4) {
            2 => Ok(head),
            3 if head.bytes.len() >= 104 => head.version_3(),
            3 => unfit("its header is cut short"),
            _ => unfit("it is a qcow2 image of an unknown version"),
        }
    }

    fn version_3(mut self) -> Result<Self, HeaderError> {
        let incompatible = self.u64(72);
        if incompatible & CORRUPT != 0 {
            return unfit("it is marked as corrupt");
        }
        if incompatible & DATA_FILE != 0 {
            return unfit("its data is in another file");
        }
        if incompatible & !HARMLESS != 0 {
            return unfit("it uses features of qcow2 that are not known");
        }
        self.autoclear = self.u64(88);
        self.len = self.u32(100) as usize;
        match (104..=self.bytes.len()).contains(&self.len) && self.len.is_multiple_of(8) {
            true => Ok(self),
            false => unfit("its header makes no sense"),
        }
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn backing(&self) -> Result<Option<String>, HeaderError> {
        let (offset, len) = (self.u64(8), self.u32(16) as usize);
        if offset == 0 {
            return Ok(None);
        }
        let name = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..at.checked_add(len)?));
        match name.map(|name| String::from_utf8(name.to_vec())) {
            Some(Ok(name)) if (1..=1023).contains(&len) => Ok(Some(name)),
            _ => unfit("the name of its backing file makes no sense"),
        }
    }

    fn extensions(&self) -> Result<Extensions, HeaderError> {
        let mut found = Extensions::default();
        let mut at = self.len;
        // Each turn goes on by eight bytes at least.
        while let Some(head) = self.bytes.get(at..at + 8) {
            let kind = u32::from_be_bytes(head[..4].try_into().expect("four bytes"));
            let len = u32::from_be_bytes(head[4..].try_into().expect("four bytes")) as usize;
            if kind == EXTENSION_END {
                return Ok(found);
            }
            let Some(content) = self.bytes.get(at + 8..).and_then(|rest| rest.get(..len)) else { break };
            match kind {
                EXTENSION_BACKING_FORMAT => found.backing_format = String::from_utf8(content.to_vec()).ok(),
                EXTENSION_BITMAPS => found.bitmaps = Some(Directory::parse(content)?),
                EXTENSION_DATA_FILE => return unfit("its data is in another file"),
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        unfit("the extensions of its header have no end")
    }
}

/// Where the bitmaps are listed.
struct Directory {
    count: u32,
    offset: u64,
    len: u64,
}

impl Directory {
    fn parse(content: &[u8]) -> Result<Self, HeaderError> {
        let Ok(content) = <[u8; 24]>::try_from(content) else {
            return unfit("its list of bitmaps makes no sense");
        };
        let u64_at = |at: usize| u64::from_be_bytes(content[at..at + 8].try_into().expect("eight bytes"));
        let count = u32::from_be_bytes(content[..4].try_into().expect("four bytes"));
        let directory = Self { count, len: u64_at(8), offset: u64_at(16) };
        match directory.count <= BITMAPS_MAX && directory.len <= DIRECTORY_MAX {
            true => Ok(directory),
            false => unfit("it has too many bitmaps"),
        }
    }

    fn read(&self, file: &File) -> Result<Vec<StoredBitmap>, HeaderError> {
        let mut bytes = vec![0; self.len as usize];
        file.read_exact_at(&mut bytes, self.offset)?;
        let mut rest = bytes.as_slice();
        let mut bitmaps = Vec::new();
        for _ in 0..self.count {
            let Some((bitmap, after)) = entry(rest) else {
                return unfit("its list of bitmaps makes no sense");
            };
            bitmaps.push(bitmap);
            rest = after;
        }
        Ok(bitmaps)
    }
}

/// One entry of the directory, and what follows it:
/// `table offset u64 | table size u32 | flags u32 | type u8 | granularity bits u8 | name length u16 | extra length u32`,
/// then extra data, then the name, padded to 8 bytes.
fn entry(bytes: &[u8]) -> Option<(StoredBitmap, &[u8])> {
    let (head, rest) = bytes.split_at_checked(24)?;
    let flags = u32::from_be_bytes(head[12..16].try_into().ok()?);
    let granularity = 1u64.checked_shl(head[17].into()).filter(|_| head[17] <= 31)?;
    let name_len = usize::from(u16::from_be_bytes(head[18..20].try_into().ok()?));
    let extra_len = u32::from_be_bytes(head[20..24].try_into().ok()?) as usize;
    let name = rest.get(extra_len..)?.get(..name_len).filter(|name| name.len() <= BITMAP_NAME_MAX)?;
    let after = bytes.get((24 + extra_len + name_len).next_multiple_of(8)..)?;
    let bitmap = StoredBitmap {
        name: String::from_utf8(name.to_vec()).ok()?,
        granularity,
        recording: flags & 2 != 0,
        inconsistent: flags & 1 != 0,
    };
    Some((bitmap, after))
}

/// Reads from the start as much as there is.
fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> Result<Header, HeaderError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Header::read(&file)
    }

    /// A version 3 header with extensions and a backing name.
    fn image(extensions: &[(u32, Vec<u8>)], backing: &str) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 3;
        bytes[23] = 16;
        bytes[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        bytes[103] = 104;
        for (kind, content) in extensions.iter().chain([&(0, Vec::new())]) {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((content.len() as u32).to_be_bytes());
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        if !backing.is_empty() {
            let at = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
            bytes.extend(backing.as_bytes());
        }
        bytes.resize(1 << 16, 0);
        bytes
    }

    fn with_feature(bit: u64) -> Vec<u8> {
        let mut bytes = image(&[], "");
        bytes[72..80].copy_from_slice(&(1u64 << bit).to_be_bytes());
        bytes
    }

    #[test]
    fn backing_files_are_texts_and_their_format_is_said() {
        let plain = read(&image(&[], "")).unwrap();
        assert_eq!(plain, Header { size: 1 << 30, backing: None, bitmaps: vec![] });
        let backed = read(&image(&[(EXTENSION_BACKING_FORMAT, b"raw".to_vec())], "base.img")).unwrap();
        assert_eq!(backed.backing, Some(("base.img".to_owned(), Some("raw".to_owned()))));
        let unsaid = read(&image(&[], "json:{}")).unwrap();
        assert_eq!(unsaid.backing, Some(("json:{}".to_owned(), None)));
    }

    #[test]
    fn images_that_are_not_wholly_themselves_are_refused() {
        let why = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert_eq!(why(b"KDMV"), "it is no qcow2 image");
        assert_eq!(why(&[0; 4096]), "it is no qcow2 image");
        assert_eq!(why(&with_feature(1)), "it is marked as corrupt");
        assert_eq!(why(&with_feature(2)), "its data is in another file");
        assert_eq!(why(&with_feature(9)), "it uses features of qcow2 that are not known");
        assert!([0, 3, 4].into_iter().all(|bit| read(&with_feature(bit)).is_ok()));
        let data_file = image(&[(EXTENSION_DATA_FILE, b"/etc/shadow".to_vec())], "");
        assert_eq!(why(&data_file), "its data is in another file");
        let mut encrypted = image(&[], "");
        encrypted[35] = 2;
        assert_eq!(why(&encrypted), "it is encrypted");
        let mut newer = image(&[], "");
        newer[7] = 4;
        assert_eq!(why(&newer), "it is a qcow2 image of an unknown version");
        assert_eq!(why(&image(&[], "")[..100]), "its header is cut short");
        let mut endless = image(&[], "");
        endless[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
        endless[104] = 9;
        assert_eq!(why(&endless), "the extensions of its header have no end");
        let mut far = image(&[], "base");
        far[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(why(&far), "the name of its backing file makes no sense");
    }

    #[test]
    fn bitmaps_of_another_version_of_the_image_do_not_count() {
        let mut directory = vec![0; 24];
        directory[15] = 2 | 1;
        directory[17] = 12;
        directory[19] = 1;
        directory.extend(b"x\0\0\0\0\0\0\0");
        let place = [&[0, 0, 0, 1, 0, 0, 0, 0][..], &32u64.to_be_bytes(), &(1u64 << 16).to_be_bytes()].concat();
        let mut bytes = image(&[(EXTENSION_BITMAPS, place)], "");
        bytes.extend(&directory);
        assert_eq!(read(&bytes).unwrap().bitmaps, []);
        bytes[95] = 1;
        let bitmap = StoredBitmap { name: "x".to_owned(), granularity: 4096, recording: true, inconsistent: true };
        assert_eq!(read(&bytes).unwrap().bitmaps, [bitmap]);
        // A name that is longer than the directory.
        let at = bytes.len() - directory.len() + 18;
        bytes[at] = 1;
        assert_eq!(read(&bytes).unwrap_err().to_string(), "its list of bitmaps makes no sense");
    }

    #[test]
    fn a_directory_that_claims_to_be_huge_is_not_read() {
        let place = [&[0, 0, 0, 1, 0, 0, 0, 0][..], &(1u64 << 40).to_be_bytes(), &0u64.to_be_bytes()].concat();
        let err = read(&image(&[(EXTENSION_BITMAPS, place)], "")).unwrap_err();
        assert_eq!(err.to_string(), "it has too many bitmaps");
    }

    proptest! {
        #[test]
        fn a_damaged_head_is_read_or_refused(
            damage in proptest::collection::vec((0usize..300, any::<u8>()), 0..6),
            cut in 0usize..70_000,
        ) {
            let place = [&[0, 0, 0, 1, 0, 0, 0, 0][..], &32u64.to_be_bytes(), &240u64.to_be_bytes()].concat();
            let mut bytes = image(&[(EXTENSION_BITMAPS, place), (EXTENSION_BACKING_FORMAT, b"raw".to_vec())], "base");
            bytes[95] = 1;
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            let _ = read(&bytes);
        }
    }
}
