//! Reads from an ELF file which libraries it asks the loader for: enough to carry a program along into the guest.

/// Entry type of the dynamic section that names a needed library.
const DT_NEEDED: u64 = 1;
const SHT_DYNAMIC: u32 = 6;
const SECTION_HEADER_BYTES: usize = 64;

/// The names a 64-bit little-endian ELF file needs; none for anything else.
pub fn needed(file: &[u8]) -> Vec<String> {
    names(file).unwrap_or_default()
}

struct Section<'a> {
    kind: u32,
    link: usize,
    contents: &'a [u8],
}

fn names(file: &[u8]) -> Option<Vec<String>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = word(file, 0x28)? as usize;
    let count = usize::from(u16::from_le_bytes(file.get(0x3c..0x3e)?.try_into().ok()?));
    let sections: Vec<_> = (0..count).filter_map(|n| section(file, table + n * SECTION_HEADER_BYTES)).collect();
    let dynamic = sections.iter().find(|section| section.kind == SHT_DYNAMIC)?;
    let strings = sections.get(dynamic.link)?.contents;
    let entries = dynamic.contents.chunks_exact(16);
    let offsets = entries.filter(|entry| word(entry, 0) == Some(DT_NEEDED)).filter_map(|entry| word(entry, 8));
    Some(offsets.filter_map(|offset| text(strings, offset as usize)).collect())
}

fn section(file: &[u8], at: usize) -> Option<Section<'_>> {
    const SHT_NOBITS: u32 = 8; // takes no room in the file
    let header = file.get(at..at + SECTION_HEADER_BYTES)?;
    let (kind, offset, size) = (half(header, 4)?, word(header, 0x18)? as usize, word(header, 0x20)? as usize);
    let contents = if kind == SHT_NOBITS { &[] } else { file.get(offset..offset.checked_add(size)?)? };
    Some(Section { kind, link: half(header, 0x28)? as usize, contents })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(strings: &[u8], at: usize) -> Option<String> {
    let rest = strings.get(at..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_needs_the_c_library() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needed(&program).iter().any(|name| name.starts_with("libc.so")));
        assert!(needed(b"#!/bin/sh").is_empty());
        assert!(needed(&program[..4000]).is_empty());
    }
}
