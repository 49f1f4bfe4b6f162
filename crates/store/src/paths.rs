//! The names of the store's files. We make every one of them; none comes from outside.
//!
//! ```text
//! lock  reserve                          the store
//! <vm>/manifest.json  manifest.copy.json the truth about a VM, twice
//! <vm>/disk-<n>/base.raw  base.sums      the oldest state and its checksums
//! <vm>/disk-<n>/<number>.qcow2           runs, and at most one stub per disk
//! <vm>/vm/<number>.<extension>           definitions of the VM
//! <vm>/vm/<hash>.blob                    what definitions refer to
//! <vm>/staging/                          what is arriving
//! <vm>/failover/<number>/disk-<n>.qcow2  overlays
//! aside-<vm>-<number>/                   a replica whose points were kept, and that made room for another
//! ```

use understudy_model::{DiskId, VmId};

/// Number of a file within a VM's directory. Drawn from one counter for all kinds of files and never reused while
/// anything could still bear it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileNumber(pub u64);

impl std::fmt::Display for FileNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

pub(crate) const LOCK: &str = "lock";
pub(crate) const RESERVE: &str = "reserve";
pub(crate) const MANIFESTS: [&str; 2] = ["manifest.copy.json", "manifest.json"];
pub(crate) const MANIFESTS_NEW: [&str; 2] = ["manifest.copy.new", "manifest.new"];
pub(crate) const STAGING: &str = "staging";
pub(crate) const DEFINITIONS: &str = "vm";
pub(crate) const FAILOVER: &str = "failover";
/// The raw image's name within its disk's directory.
pub(crate) const BASE: &str = "base.raw";
/// The name of its checksums.
pub(crate) const BASE_SUMS: &str = "base.sums";
const RUN_SUFFIX: &str = ".qcow2";
const BLOB_SUFFIX: &str = ".blob";
const CREATING: &str = "creating-";
const REMOVING: &str = "removing-";
const REPLACING: &str = "replacing-";
const ASIDE: &str = "aside-";

pub(crate) fn vm_dir(vm: VmId) -> String {
    vm.to_string()
}

/// A VM's directory while it is being made.
pub(crate) fn creating(vm: VmId) -> String {
    format!("{CREATING}{vm}")
}

/// A VM's directory while it is being taken apart.
pub(crate) fn removing(vm: VmId) -> String {
    format!("{REMOVING}{vm}")
}

/// A VM's directory while it is being made in the place of another, which is to be set aside under this number.
pub(crate) fn replacing(vm: VmId, number: FileNumber) -> String {
    format!("{REPLACING}{vm}-{number}")
}

pub(crate) fn parse_replacing(name: &str) -> Option<(VmId, FileNumber)> {
    parse_numbered(name.strip_prefix(REPLACING)?)
}

/// A VM's directory that was set aside.
pub(crate) fn aside(vm: VmId, number: FileNumber) -> String {
    format!("{ASIDE}{vm}-{number}")
}

pub(crate) fn parse_aside(name: &str) -> Option<(VmId, FileNumber)> {
    parse_numbered(name.strip_prefix(ASIDE)?)
}

fn parse_numbered(text: &str) -> Option<(VmId, FileNumber)> {
    let (vm, number) = text.rsplit_once('-')?;
    Some((parse_vm(vm)?, parse_number(number)?))
}

/// Whether a directory of the root is half made or half taken apart.
pub(crate) fn is_half(name: &str) -> bool {
    let vm = name.strip_prefix(CREATING).or_else(|| name.strip_prefix(REMOVING));
    vm.is_some_and(|vm| parse_vm(vm).is_some())
}

/// The VM whose directory bears this name; only the very text that [`vm_dir`] makes.
pub(crate) fn parse_vm(name: &str) -> Option<VmId> {
    name.parse().ok().filter(|vm: &VmId| vm_dir(*vm) == name)
}

pub(crate) fn disk_dir(disk: DiskId) -> String {
    disk.to_string()
}

pub(crate) fn parse_disk_dir(name: &str) -> Option<DiskId> {
    name.parse().ok().filter(|disk: &DiskId| disk_dir(*disk) == name)
}

pub(crate) fn run_name(number: FileNumber) -> String {
    format!("{number}{RUN_SUFFIX}")
}

pub(crate) fn parse_run_name(name: &str) -> Option<FileNumber> {
    parse_number(name.strip_suffix(RUN_SUFFIX)?)
}

fn parse_number(text: &str) -> Option<FileNumber> {
    let number = FileNumber(text.parse().ok()?);
    (number.to_string() == text).then_some(number)
}

pub(crate) fn run(disk: DiskId, number: FileNumber) -> String {
    format!("{disk}/{}", run_name(number))
}

pub(crate) fn base(disk: DiskId) -> String {
    format!("{disk}/{BASE}")
}

pub(crate) fn base_sums(disk: DiskId) -> String {
    format!("{disk}/{BASE_SUMS}")
}

pub(crate) fn staged_run(disk: DiskId, number: FileNumber) -> String {
    format!("{STAGING}/{number}-{disk}{RUN_SUFFIX}")
}

pub(crate) fn staged_base(disk: DiskId) -> String {
    format!("{STAGING}/{disk}-{BASE}")
}

pub(crate) fn staged_base_sums(disk: DiskId) -> String {
    format!("{STAGING}/{disk}-{BASE_SUMS}")
}

pub(crate) fn staged_other(number: FileNumber) -> String {
    format!("{STAGING}/{number}")
}

pub(crate) fn definition(number: FileNumber, extension: &str) -> String {
    format!("{DEFINITIONS}/{number}.{extension}")
}

pub(crate) fn blob(hash: &[u8; 32]) -> String {
    format!("{DEFINITIONS}/{}{BLOB_SUFFIX}", blake3::Hash::from_bytes(*hash).to_hex())
}

pub(crate) fn failover_dir(number: FileNumber) -> String {
    format!("{FAILOVER}/{number}")
}

pub(crate) fn parse_failover_dir(name: &str) -> Option<FileNumber> {
    parse_number(name)
}

pub(crate) fn overlay(failover: FileNumber, disk: DiskId) -> String {
    format!("{FAILOVER}/{failover}/{disk}{RUN_SUFFIX}")
}

/// Whether a definition's extension may stand in a name: short, of a small alphabet, and not one of ours.
pub(crate) fn is_extension(text: &str) -> bool {
    (1..=8).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && format!(".{text}") != BLOB_SUFFIX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::check_path;
    use uuid::Uuid;

    #[test]
    fn every_name_we_make_is_one_the_files_take() {
        let (vm, disk, number) = (VmId(Uuid::from_u128(7)), DiskId(65535), FileNumber(u64::MAX));
        let inside = [
            base_sums(disk),
            run(disk, number),
            staged_run(disk, number),
            staged_base(disk),
            staged_base_sums(disk),
            staged_other(number),
            definition(number, "xml"),
            blob(&[0xab; 32]),
            overlay(number, disk),
        ];
        for path in inside {
            check_path(&format!("{}/{path}", creating(vm))).unwrap_or_else(|_| panic!("{path}"));
            check_path(&format!("{}/{path}", replacing(vm, number))).unwrap_or_else(|_| panic!("{path}"));
        }
    }

    #[test]
    fn names_read_back_only_in_the_form_we_make_them() {
        assert_eq!(parse_run_name("000007.qcow2"), Some(FileNumber(7)));
        assert_eq!(parse_run_name("1234567.qcow2"), Some(FileNumber(1_234_567)));
        for other in ["7.qcow2", "0000007.qcow2", "000007.raw", "+00007.qcow2", "base.raw"] {
            assert_eq!(parse_run_name(other), None, "{other}");
        }
        assert_eq!(parse_disk_dir("disk-3"), Some(DiskId(3)));
        assert_eq!(parse_disk_dir("disk-03"), None);
        let vm = VmId(Uuid::from_u128(7));
        assert_eq!(parse_vm(&vm.to_string()), Some(vm));
        assert_eq!(parse_vm(&vm.0.simple().to_string()), None);
        assert_eq!(parse_aside(&aside(vm, FileNumber(7))), Some((vm, FileNumber(7))));
        assert_eq!(parse_replacing(&replacing(vm, FileNumber(7))), Some((vm, FileNumber(7))));
        assert_eq!(parse_aside(&replacing(vm, FileNumber(7))), None);
        assert_eq!(parse_aside(&format!("aside-{vm}-7")), None);
        assert!(is_half(&creating(vm)) && is_half(&removing(vm)) && !is_half("creating-x"));
    }

    #[test]
    fn an_extension_is_short_and_plain() {
        assert!(is_extension("xml") && is_extension("json") && is_extension("vmx7"));
        for bad in ["", "XML", "a/b", "..", "toolonger", "blob", "a.b"] {
            assert!(!is_extension(bad), "{bad}");
        }
    }
}
