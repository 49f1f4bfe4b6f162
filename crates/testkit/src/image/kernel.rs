//! The guest's kernel: Debian's cloud kernel, unpacked from its package, made quick to boot, with the few modules a guest needs.
//!
//! The emulator enters an uncompressed kernel directly, which saves the guest the unpacking (a second and more without hardware
//! help). Debian 12 compresses its kernel with LZ4; another kind of compression is left alone, and the guest unpacks it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::packages;

/// The meta package; what it depends on is the kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Modules by the moment at which the guest loads them.
pub const GROUPS: [(&str, &[&str]); 3] = [
    ("bus", &["virtio_pci", "virtio_mmio", "scsi_mod", "sd_mod"]),
    ("devices", &["virtio_blk", "virtio_scsi", "virtio_console", "virtio_net"]),
    ("xfs", &["xfs"]),
];

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What the emulator is given.
    pub image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The cached kernel, downloaded and unpacked the first time.
    pub fn get() -> Result<Self> {
        let dir = cache::get_or_make("kernel", make)?;
        Ok(Kernel { image: dir.join("vmlinux"), modules: dir.join("modules") })
    }

    /// The modules of a group and all they need, each after what it needs: file name and contents.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut chosen = Vec::new();
        for name in wanted {
            self.choose(name, &mut chosen)?;
        }
        Ok(chosen)
    }

    fn choose(&self, name: &str, chosen: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let file = format!("{}.ko", name.replace('-', "_"));
        if chosen.iter().any(|(present, _)| *present == file) {
            return Ok(());
        }
        let path = self.modules.join(&file);
        let contents = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for needed in depends(&contents) {
            self.choose(&needed, chosen)?;
        }
        chosen.push((file, contents));
        Ok(())
    }
}

/// The names after `depends=` in a module's information section.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let at = module.windows(FIELD.len()).position(|window| window == FIELD);
    let value = at.map_or(&[][..], |at| &module[at + FIELD.len()..]);
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&value[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(String::from).collect()
}

fn make(dir: &Path) -> Result<()> {
    let unpacked = dir.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    packages::unpack(&[&packages::dependency_of(META_PACKAGE)?], &unpacked)?;
    let compressed = fs::read(kernel_file(&unpacked.join("boot"))?)?;
    let image = uncompressed(&compressed)?.unwrap_or(compressed);
    fs::write(dir.join("vmlinux"), image)?;
    fs::create_dir(dir.join("modules"))?;
    keep_modules(&unpacked.join("lib/modules"), &dir.join("modules"))?;
    fs::remove_dir_all(&unpacked).context("cannot remove the unpacked package")
}

fn kernel_file(boot: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(boot).with_context(|| format!("cannot list {}", boot.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    bail!("no kernel in {}", boot.display())
}

/// Moves every module into one directory, under the name it is known by.
fn keep_modules(from: &Path, to: &Path) -> Result<()> {
    let mut left = vec![from.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|end| end == "ko") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
                fs::rename(&path, to.join(name))?;
            }
        }
    }
    Ok(())
}

/// The ELF image inside a bzImage, if it is one compressed with LZ4.
///
/// The x86 boot protocol's header says how many sectors the set-up code has (at 0x1f1), and where behind it the payload begins
/// and how long it is (at 0x248 and 0x24c).
fn uncompressed(image: &[u8]) -> Result<Option<Vec<u8>>> {
    let word =
        |at: usize| image.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")) as usize);
    let (Some(&sectors), Some(offset), Some(length)) = (image.get(0x1f1), word(0x248), word(0x24c)) else {
        return Ok(None);
    };
    let start = (usize::from(sectors) + 1) * 512 + offset;
    let Some(payload) = image.get(start..start + length) else { bail!("the kernel's payload lies outside it") };
    if !payload.starts_with(&LZ4_LEGACY) {
        return Ok(None);
    }
    let (blocks, size) = payload.split_at(payload.len() - 4);
    let size = u32::from_le_bytes(size.try_into().expect("four bytes")) as usize;
    unpack_lz4(&blocks[LZ4_LEGACY.len()..], size).map(Some)
}

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Blocks of the legacy frame hold at most this much.
const LZ4_BLOCK: usize = 8 << 20;
/// No kernel is larger; an absurd size is damage.
const KERNEL_MAX: usize = 256 << 20;

/// Blocks of the legacy LZ4 frame: length, then that many bytes.
fn unpack_lz4(mut blocks: &[u8], size: usize) -> Result<Vec<u8>> {
    if size > KERNEL_MAX {
        bail!("a kernel of {size} bytes is none");
    }
    let mut kernel = Vec::with_capacity(size);
    let mut block = vec![0u8; LZ4_BLOCK];
    while blocks.len() > 4 {
        let (length, rest) = blocks.split_at(4);
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let compressed = rest.get(..length).context("the kernel's compressed data is cut short")?;
        let filled =
            lz4_flex::block::decompress_into(compressed, &mut block).context("cannot decompress the kernel")?;
        kernel.extend_from_slice(&block[..filled]);
        blocks = &rest[length..];
    }
    if kernel.len() != size || !kernel.starts_with(b"\x7fELF") {
        bail!("the kernel unpacked to {} bytes, {size} were expected", kernel.len());
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(kernel: &[u8]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for chunk in kernel.chunks(1000) {
            let compressed = lz4_flex::block::compress(chunk);
            payload.extend_from_slice(&(compressed.len() as u32).to_le_bytes());
            payload.extend_from_slice(&compressed);
        }
        payload.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
        let mut image = vec![0u8; 3 * 512];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&512u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&payload);
        image
    }

    #[test]
    fn the_elf_image_is_found_inside() {
        let kernel: Vec<u8> = b"\x7fELF".iter().copied().chain((0..5000).map(|n| (n / 7) as u8)).collect();
        assert_eq!(uncompressed(&bz_image(&kernel)).unwrap(), Some(kernel));
        assert_eq!(uncompressed(&bz_image(b"")[..600]).ok().flatten(), None);
        assert!(uncompressed(&bz_image(b"no elf image")).is_err());
    }

    #[test]
    fn what_a_module_depends_on_is_read_from_it() {
        assert_eq!(depends(b"xx\0license=GPL\0depends=virtio,virtio_ring\0name=x\0"), ["virtio", "virtio_ring"]);
        assert!(depends(b"xx\0depends=\0name=x\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
