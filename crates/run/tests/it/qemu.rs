//! QEMU's tools as judges. They are needed: without them these tests fail rather than pass unseen.

use std::path::Path;
use std::process::{Command, Output};

fn qemu_img(args: &[&str], paths: &[&Path]) -> Output {
    let output = Command::new("qemu-img").args(args).args(paths).env("LC_ALL", "C").output();
    output.expect("qemu-img, the judge of these tests, is installed")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// `qemu-img check` finds neither errors nor leaks.
pub fn assert_clean(path: &Path) {
    let output = qemu_img(&["check", "-f", "qcow2"], &[path]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("No errors were found"), "{}", told(&output));
}

/// Through its chain, the qcow2 file holds what the raw file holds.
pub fn assert_same(qcow2: &Path, raw: &Path) {
    let output = qemu_img(&["compare", "-f", "qcow2", "-F", "raw"], &[qcow2, raw]);
    assert!(output.status.success(), "{}", told(&output));
}

/// The same question with the opposite expectation, so that the judge is seen to condemn.
pub fn assert_differs(qcow2: &Path, raw: &Path) {
    let output = qemu_img(&["compare", "-f", "qcow2", "-F", "raw"], &[qcow2, raw]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
}

/// The whole disk as QEMU reads it.
pub fn read_all(qcow2: &Path) -> Vec<u8> {
    let raw = qcow2.with_extension("converted");
    let output = qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[qcow2, &raw]);
    assert!(output.status.success(), "{}", told(&output));
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// What `qemu-img info` says, or `None` if it refuses the file.
pub fn info(path: &Path) -> Option<String> {
    let output = qemu_img(&["info", "-f", "qcow2"], &[path]);
    output.status.success().then(|| told(&output))
}

/// Runs one `qemu-io` command on a file, for writing to overlays.
pub fn qemu_io(path: &Path, command: &str) -> String {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(path).output();
    let output = output.expect("qemu-io, the judge of these tests, is installed");
    assert!(output.status.success(), "{}", told(&output));
    told(&output)
}
