//! Finds and runs the clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where `cargo xtask setup` puts the Python packages, beside everything else that is built.
const ENVIRONMENT: &str = "cim-clients";
/// Names another place for them.
const VARIABLE: &str = "UNDERSTUDY_CIM_CLIENTS";

/// Says how to get what is missing.
fn missing(what: &str) -> String {
    format!("{what} is not installed; `cargo xtask setup` installs what the tests of the CIM kit need")
}

fn environment() -> PathBuf {
    match std::env::var_os(VARIABLE) {
        Some(place) => place.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(ENVIRONMENT),
    }
}

/// A program of the Python environment.
pub fn in_environment(program: &str) -> Command {
    let path = environment().join("bin").join(program);
    assert!(path.is_file(), "{}", missing(&format!("{program} in {}", environment().display())));
    Command::new(path)
}

/// A program of the machine.
pub fn installed(program: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    assert!(std::env::split_paths(&path).any(|dir| dir.join(program).is_file()), "{}", missing(program));
    Command::new(program)
}

/// Runs a program and gives what it wrote; fails with all of it when the program does.
pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout) + &text(&output.stderr)
}

/// Runs a program whose status says nothing, or that should fail, and gives what it wrote.
pub fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs one of the scripts beside this file against a server.
pub fn script(name: &str, url: &str) -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = in_environment("python3");
    command.arg(tests.join("clients").join(name)).arg(url).arg(tests.join("toy")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("QUALIFIERS", tests.join("../src/repository/qualifiers.mof"));
    output(&mut command)
}
