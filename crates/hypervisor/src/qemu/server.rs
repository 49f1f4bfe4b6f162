//! The NBD server inside QEMU. There is one per QEMU, so if somebody else runs it, our exports go there as well; it is
//! stopped only if it is ours and nobody uses it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::{execute, failed, list, text};
use crate::driver::{Error, Result};
use crate::nbd::{NbdError, OptionRefusal, list_exports};
use crate::qmp::{Command, Monitor, QmpError};

/// How long a server on this host may take for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Most sockets of a QEMU that are tried in search of its NBD server.
const CANDIDATES_MAX: usize = 32;
/// A socket's path with its end fits `sun_path`.
const SOCKET_PATH_MAX: usize = 107;

/// Where our own server listens.
pub fn own_socket(runtime_dir: &Path) -> Result<PathBuf> {
    let path = runtime_dir.join("nbd");
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(Error::Unsupported {
            what: format!("the socket path {} is longer than {SOCKET_PATH_MAX} bytes", path.display()),
            remedy: "choose a shorter runtime directory".into(),
        });
    }
    Ok(path)
}

/// Starts a server at `own`, unless one runs in this QEMU. Answers whether it is ours.
pub async fn start(monitor: &mut Monitor, own: &Path) -> Result<bool> {
    let address = json!({ "addr": { "type": "unix", "data": { "path": own } } });
    match monitor.execute(Command::new("nbd-server-start", address)).await {
        Ok(_) => Ok(true),
        Err(QmpError::Refused(refused)) if refused.text.contains("already running") => {
            // Perhaps our own, from a live read beside the cut or from an earlier life.
            Ok(list_exports(own, HANDSHAKE).await.is_ok())
        }
        Err(err) => Err(failed("start its NBD server", err)),
    }
}

/// The socket at which `export`, which was just added, can be reached.
pub async fn socket(monitor: &mut Monitor, own: &Path, is_ours: bool, export: &str) -> Result<PathBuf> {
    if is_ours {
        return Ok(own.into());
    }
    let others = chardevs(monitor).await?;
    let pid = monitor.peer().pid;
    let found = pid.map(listening).unwrap_or_default();
    let mut wants_tls = false;
    for path in found.into_iter().filter(|path| !others.contains(path)).take(CANDIDATES_MAX) {
        match list_exports(&path, HANDSHAKE).await {
            Ok(names) if names.iter().any(|name| name == export) => return Ok(path),
            Err(NbdError::Option { reason: OptionRefusal::TlsRequired, .. }) => wants_tls = true,
            _ => {}
        }
    }
    Err(Error::Busy(match wants_tls {
        true => {
            "another tool runs an NBD server with TLS in this QEMU, which we cannot use; waiting for its end".into()
        }
        false => {
            "another tool runs an NBD server in this QEMU, not at a unix socket that can be found; waiting for its \
                  end"
            .into()
        }
    }))
}

/// Stops the server if it is ours and exports nothing any more.
pub async fn stop_if_idle(monitor: &mut Monitor, own: &Path) -> Result<()> {
    if !own.exists() {
        return Ok(());
    }
    let exports = execute(monitor, "list its exports", Command::bare("query-block-exports")).await?;
    let has_nbd = list(&exports).iter().any(|e| text(e, "/type") == "nbd");
    if has_nbd || list_exports(own, HANDSHAKE).await.is_err() {
        return Ok(());
    }
    match monitor.execute(Command::bare("nbd-server-stop")).await {
        Ok(_) | Err(QmpError::Refused(_)) => Ok(()),
        Err(err) => Err(failed("stop its NBD server", err)),
    }
}

/// Sockets of serial lines, monitors and the like, which serve one client: knocking there would disturb.
async fn chardevs(monitor: &mut Monitor) -> Result<HashSet<PathBuf>> {
    let chardevs = execute(monitor, "list its character devices", Command::bare("query-chardev")).await?;
    let paths = list(&chardevs).iter().filter_map(|c| {
        let name = text(c, "/filename");
        let name = name.strip_prefix("disconnected:").unwrap_or(name);
        Some(PathBuf::from(name.strip_prefix("unix:")?.split(',').next()?))
    });
    Ok(paths.collect())
}

/// The unix sockets at which a process listens, by path as seen from here.
fn listening(pid: u32) -> Vec<PathBuf> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let inodes = socket_inodes(&base.join("fd"));
    let table = std::fs::read_to_string(base.join("net/unix")).unwrap_or_default();
    let paths = table.lines().filter_map(|line| listener(line, &inodes));
    paths.filter_map(|path| seen_from_here(&base, path)).collect()
}

/// The numbers of a process's sockets.
fn socket_inodes(fds: &Path) -> HashSet<u64> {
    let links = std::fs::read_dir(fds).into_iter().flatten().flatten();
    let targets = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// The path in a line of `/proc/net/unix`, if it is a listening socket with one of these numbers:
/// `ffff...: 00000002 00000000 00010000 0001 01 12345 /path`.
fn listener<'a>(line: &'a str, inodes: &HashSet<u64>) -> Option<&'a str> {
    const ACCEPTS_CONNECTIONS: u32 = 1 << 16;
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
        rest = after;
        word
    };
    let [_, _, _, flags, _, _, inode] = std::array::from_fn(|_| word());
    let accepts = u32::from_str_radix(flags, 16).ok()? & ACCEPTS_CONNECTIONS != 0;
    (accepts && inodes.contains(&inode.parse().ok()?) && rest.starts_with('/')).then_some(rest)
}

/// QEMU may live in another root directory than we do.
fn seen_from_here(base: &Path, path: &str) -> Option<PathBuf> {
    let inside = base.join("root").join(path.trim_start_matches('/'));
    let is_same_root = std::fs::read_link(base.join("root")).is_ok_and(|root| root == Path::new("/"));
    let path = if is_same_root { PathBuf::from(path) } else { inside };
    path.exists().then_some(path)
}

/// Adds an export to the server.
pub fn add_export(id: &str, node: &str, writable: bool, map: Option<(&str, &str)>) -> Command {
    let mut arguments = json!({
        "type": "nbd", "id": id, "node-name": node, "name": id, "writable": writable,
    });
    if let Some((node, name)) = map {
        arguments["bitmaps"] = json!([{ "node": node, "name": name }]);
    }
    Command::new("block-export-add", arguments)
}

/// The ids of all exports, and whether each is on its way out.
pub async fn exports(monitor: &mut Monitor) -> Result<Vec<(String, bool)>> {
    let exports: Value = execute(monitor, "list its exports", Command::bare("query-block-exports")).await?;
    let entries = list(&exports).iter();
    Ok(entries.map(|e| (text(e, "/id").to_owned(), super::answer::flag(e, "/shutting-down"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_others() {
        let inodes = HashSet::from([35716, 35720]);
        let listening = "0000000000000000: 00000002 00000000 00010000 0001 01 35716 /run/vm 1/nbd";
        assert_eq!(listener(listening, &inodes), Some("/run/vm 1/nbd"));
        let connected = "0000000000000000: 00000003 00000000 00000000 0001 03 35720 /run/qmp";
        assert_eq!(listener(connected, &inodes), None);
        let foreign = "0000000000000000: 00000002 00000000 00010000 0001 01 99 /run/other";
        assert_eq!(listener(foreign, &inodes), None);
        let nameless = "0000000000000000: 00000002 00000000 00010000 0001 01 35716";
        assert_eq!(listener(nameless, &inodes), None);
        let abstract_name = "0000000000000000: 00000002 00000000 00010000 0001 01 35716 @/tmp/x";
        assert_eq!(listener(abstract_name, &inodes), None);
        let heading = "Num       RefCount Protocol Flags    Type St Inode Path";
        assert_eq!(listener(heading, &inodes), None);
    }
}
