//! Reads a qcow2 file and all below it, as any other program would: by the published format alone.
//!
//! Shares no code with the run and store crates, so a mistake they share with themselves shows. Follows backing
//! references by their names; takes nothing on trust but that the files are small.

use std::io::Read;

use understudy_store::files::MemFiles;

/// Deepest chain: more than any world makes.
const DEPTH_MAX: usize = 4096;

/// The whole content of a disk, from its uppermost file.
pub fn read(files: &MemFiles, path: &str, is_raw: bool) -> Result<Vec<u8>, String> {
    let path = path.trim_start_matches("/memory/").to_owned();
    if is_raw {
        return files.content(&path).map_err(|e| format!("{path}: {e}"));
    }
    let mut layers = Vec::new();
    let mut next = Some((path, false));
    let mut base = Vec::new();
    while let Some((path, is_raw)) = next.take() {
        let bytes = files.content(&path).map_err(|e| format!("{path}: {e}"))?;
        if is_raw {
            base = bytes;
            break;
        }
        let layer = Layer::open(bytes).map_err(|e| format!("{path}: {e}"))?;
        next = layer.backing(&path)?;
        layers.push((path, layer));
        if layers.len() > DEPTH_MAX {
            return Err("the chain has no end".to_owned());
        }
    }
    let size = layers.first().map_or(0, |(_, l)| l.size) as usize;
    base.resize(size, 0);
    for (path, layer) in layers.iter().rev() {
        layer.apply(&mut base).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(base)
}

struct Layer {
    bytes: Vec<u8>,
    size: u64,
    cluster_bits: u32,
}

impl Layer {
    fn open(bytes: Vec<u8>) -> Result<Self, String> {
        let layer = Self { bytes, size: 0, cluster_bits: 0 };
        if layer.number(0, 4)? != 0x5146_49fb || layer.number(4, 4)? != 3 {
            return Err("not a qcow2 file of version 3".to_owned());
        }
        let (size, cluster_bits) = (layer.number(24, 8)?, layer.number(20, 4)? as u32);
        // Dirty, corrupt, and compression type are the bits that a whole file of ours may or may not have.
        let incompatible = layer.number(72, 8)?;
        if incompatible & !0b1000 != 0 || layer.number(32, 4)? != 0 {
            return Err(format!("incompatible features {incompatible:#x}"));
        }
        if incompatible & 0b1000 != 0 && layer.number(104, 1)? != 1 {
            return Err("compressed by something other than zstd".to_owned());
        }
        Ok(Self { size, cluster_bits, ..layer })
    }

    /// A big-endian number of `len` bytes.
    fn number(&self, at: u64, len: usize) -> Result<u64, String> {
        let at = at as usize;
        let bytes = self.bytes.get(at..at + len).ok_or_else(|| format!("ends before {at}"))?;
        Ok(bytes.iter().fold(0, |all, b| all << 8 | u64::from(*b)))
    }

    /// The file below, and whether it is raw.
    fn backing(&self, path: &str) -> Result<Option<(String, bool)>, String> {
        let (at, len) = (self.number(8, 8)? as usize, self.number(16, 4)? as usize);
        if at == 0 {
            return Ok(None);
        }
        let name = self.bytes.get(at..at + len).ok_or("the backing name lies outside the file")?;
        let name = std::str::from_utf8(name).map_err(|_| "the backing name is no text")?;
        let mut dir: Vec<&str> = path.split('/').collect();
        dir.pop();
        for part in name.split('/') {
            match part {
                ".." => _ = dir.pop(),
                part => dir.push(part),
            }
        }
        Ok(Some((dir.join("/"), self.backing_format()? == b"raw")))
    }

    /// The header extension that names the format of the file below.
    fn backing_format(&self) -> Result<Vec<u8>, String> {
        let mut at = self.number(100, 4)?;
        loop {
            let (kind, len) = (self.number(at, 4)?, self.number(at + 4, 4)?);
            if kind == 0 {
                return Err("does not say of which format the file below is".to_owned());
            }
            let start = at as usize + 8;
            if kind == 0xe279_2aca {
                let name = self.bytes.get(start..start + len as usize);
                return name.map(<[u8]>::to_vec).ok_or_else(|| "an extension is cut short".to_owned());
            }
            at += 8 + len.next_multiple_of(8);
        }
    }

    /// Puts this layer's clusters over what is below.
    fn apply(&self, disk: &mut [u8]) -> Result<(), String> {
        let cluster = 1u64 << self.cluster_bits;
        let (level1, entries) = (self.number(40, 8)?, self.number(36, 4)?);
        for address in (0..self.size).step_by(cluster as usize) {
            let index = address >> self.cluster_bits;
            let per_table = cluster / 8;
            if index / per_table >= entries {
                return Err("the level 1 table is too short".to_owned());
            }
            let table = self.number(level1 + index / per_table * 8, 8)? & 0x00ff_ffff_ffff_fe00;
            if table == 0 {
                continue;
            }
            let entry = self.number(table + index % per_table * 8, 8)?;
            let end = (address + cluster).min(disk.len() as u64);
            if address < end {
                self.cluster(entry, &mut disk[address as usize..end as usize])?;
            }
        }
        Ok(())
    }

    fn cluster(&self, entry: u64, out: &mut [u8]) -> Result<(), String> {
        if entry >> 62 & 1 == 1 {
            let shift = 62 - (self.cluster_bits - 8);
            let at = (entry & ((1 << shift) - 1)) as usize;
            let sectors = (entry >> shift & ((1 << (62 - shift)) - 1)) + 1;
            let end = ((at as u64 & !511) + sectors * 512).min(self.bytes.len() as u64) as usize;
            let frame = self.bytes.get(at..end).ok_or("a compressed cluster lies outside the file")?;
            let decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(|e| e.to_string())?;
            return decoder.single_frame().read_exact(out).map_err(|e| format!("a compressed cluster: {e}"));
        }
        let at = (entry & 0x00ff_ffff_ffff_fe00) as usize;
        if entry & 1 == 1 {
            out.fill(0);
        } else if at != 0 {
            out.copy_from_slice(self.bytes.get(at..at + out.len()).ok_or("a cluster lies outside the file")?);
        }
        Ok(())
    }
}
