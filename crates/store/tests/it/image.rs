//! Reads a qcow2 file and all below it, by the names in their headers and the tables that QEMU reads. Shares no code
//! with the store or the run crate, so that it can judge both.

use std::cell::RefCell;

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

type ReadFile<'a> = dyn Fn(&str) -> Vec<u8> + 'a;

fn be32(bytes: &[u8], at: usize) -> u64 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The whole disk that the file shows.
pub fn read_qcow2(read: &ReadFile<'_>, path: &str) -> Vec<u8> {
    let file = read(path);
    assert_eq!(&file[..4], b"QFI\xfb", "{path} is a qcow2 file");
    assert_eq!(be32(&file, 4), 3);
    let (bits, size) = (be32(&file, 20), be64(&file, 24) as usize);
    let mut disk = below(read, path, &file);
    disk.resize(size, 0);
    let cluster = 1usize << bits;
    for (i, out) in disk.chunks_mut(cluster).enumerate() {
        if let Some(bytes) = read_cluster(&file, bits, i) {
            out.copy_from_slice(&bytes[..out.len()]);
        }
    }
    disk
}

fn read_cluster(file: &[u8], bits: u64, index: usize) -> Option<Vec<u8>> {
    let (cluster, per_table) = (1usize << bits, 1usize << (bits - 3));
    let l1 = be64(file, 40) as usize + index / per_table * 8;
    assert!(index / per_table < be32(file, 36) as usize);
    let l2 = (entry(file, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    if l2 == 0 {
        return None;
    }
    let entry = entry(file, l2 + index % per_table * 8);
    if entry >> 62 & 1 == 1 {
        return Some(inflate(file, entry, bits));
    }
    if entry & 1 == 1 {
        return Some(vec![0; cluster]);
    }
    let at = (entry & 0x00ff_ffff_ffff_fe00) as usize;
    (at != 0).then(|| file[at..at + cluster].to_vec())
}

/// Tables may be holes at the end of a sparse file.
fn entry(file: &[u8], at: usize) -> u64 {
    if at + 8 <= file.len() { be64(file, at) } else { 0 }
}

fn inflate(file: &[u8], entry: u64, bits: u64) -> Vec<u8> {
    let offset_bits = 62 - (bits - 8);
    let at = (entry & ((1 << offset_bits) - 1)) as usize;
    let sectors = (entry >> offset_bits & ((1 << (bits - 8)) - 1)) as usize + 1;
    let end = ((at & !511) + sectors * 512).min(file.len());
    let mut out = vec![0; 1 << bits];
    DECODER.with_borrow_mut(|decoder| {
        decoder.reinit().unwrap();
        let (mut from, mut to) = (InBuffer::around(&file[at..end]), OutBuffer::around(&mut out[..]));
        assert_eq!(decoder.run(&mut from, &mut to).unwrap(), 0, "one whole frame");
        assert_eq!(to.pos(), 1 << bits);
    });
    out
}

thread_local! {
    /// Making one for each cluster would take longer than decompressing it.
    static DECODER: RefCell<Decoder<'static>> = RefCell::new(Decoder::new().unwrap());
}

fn below(read: &ReadFile<'_>, path: &str, file: &[u8]) -> Vec<u8> {
    let (at, len) = (be64(file, 8) as usize, be32(file, 16) as usize);
    if at == 0 {
        return Vec::new();
    }
    let name = std::str::from_utf8(&file[at..at + len]).unwrap();
    let mut dir: Vec<&str> = path.split('/').collect();
    dir.pop();
    for part in name.split('/') {
        match part {
            ".." => drop(dir.pop()),
            part => dir.push(part),
        }
    }
    let path = dir.join("/");
    match backing_format(file).as_str() {
        "raw" => read(&path),
        "qcow2" => read_qcow2(read, &path),
        other => panic!("{path} below is said to be {other}"),
    }
}

fn backing_format(file: &[u8]) -> String {
    let mut at = be32(file, 100) as usize;
    loop {
        let (kind, len) = (be32(file, at), be32(file, at + 4) as usize);
        match kind {
            0 => panic!("a backing file without a format"),
            0xe279_2aca => return String::from_utf8(file[at + 8..at + 8 + len].to_vec()).unwrap(),
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
}
