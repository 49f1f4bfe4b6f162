//! The harness for daemons, with a stand-in: a program that listens on a socket, logs, and ends when told to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::Result;
use understudy_testkit::daemon::DaemonConfig;

/// Understands the words of `serve` and of the command line; logs what the file `say` in its state directory holds.
const STAND_IN: &str = r#"
if [ "$1" = --socket ]; then
    [ "$3" = --json ] && echo "{\"asked\": \"$4 $5\", \"listen\": \"127.0.0.1:4711\"}" && exit 0
    echo "no such thing" >&2
    exit 3
fi
while [ $# -gt 0 ]; do
    case "$1" in --state) state=$2 ;; --socket) socket=$2 ;; --listen) listen=$2 ;; esac
    shift
done
echo "2026-11-22T14:00:00Z  INFO stand-in: service started listen=$listen" >&2
[ -e "$state/say" ] && cat "$state/say" >&2
[ -e "$state/refuse" ] && exit 7
exec qemu-storage-daemon --chardev "socket,id=c,path=$socket,server=on,wait=off" --monitor chardev=c
"#;

fn stand_in() -> Result<DaemonConfig> {
    Ok(DaemonConfig::of_program("stand-in", ["sh", "-c", STAND_IN, "sh"])?.listen("127.0.0.1:4711"))
}

fn saying(config: DaemonConfig, line: &str) -> Result<DaemonConfig> {
    std::fs::create_dir_all(config.state())?;
    std::fs::write(config.state().join("say"), format!("2026-11-22T14:00:01Z {line}\n"))?;
    Ok(config)
}

#[test]
fn a_daemon_answers_is_killed_and_starts_again_with_its_state() -> Result<()> {
    let daemon = stand_in()?.start()?;
    assert_eq!(daemon.address()?.port(), 4711);
    assert_eq!(daemon.json(&["host", "show"])?["asked"], "host show");
    let err = format!("{:#}", daemon.text(&["host"]).unwrap_err());
    assert!(err.contains("no such thing") && err.contains("service started"), "{err}");
    let id = daemon.id();
    let config = daemon.kill()?;
    let daemon = saying(config, " INFO stand-in: again")?.start()?;
    assert_ne!(daemon.id(), id);
    assert_eq!(daemon.log().lines().count(), 2, "the log of this start only");
    assert_eq!(daemon.stop()?.log().lines().count(), 3, "the log of both");
    Ok(())
}

#[test]
fn a_warning_fails_the_test_unless_it_is_listed() -> Result<()> {
    let warning = " WARN stand-in: peer lost";
    assert!(saying(stand_in()?, warning)?.start()?.stop().is_err());
    saying(stand_in()?, warning)?.allow("peer lost").start()?.stop()?;
    let dropped = saying(stand_in()?, warning)?.start()?;
    assert!(catch_unwind(AssertUnwindSafe(|| drop(dropped))).is_err());
    Ok(())
}

#[test]
fn a_daemon_that_does_not_come_up_says_how_it_ended() -> Result<()> {
    let config = saying(stand_in()?, "ERROR stand-in: no room")?;
    std::fs::write(config.state().join("refuse"), "")?;
    let err = format!("{:#}", config.start().unwrap_err());
    assert!(err.contains('7') && err.contains("no room"), "{err}");
    Ok(())
}

#[test]
fn a_daemon_that_ended_by_itself_is_not_waited_for_in_vain() -> Result<()> {
    let mut daemon = stand_in()?.start()?;
    assert!(daemon.is_running()?);
    assert!(daemon.wait_for_log("never said", Duration::from_millis(50)).is_err());
    let (_, status) = {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(daemon.id() as i32).unwrap(),
            rustix::process::Signal::TERM,
        )?;
        daemon.ended(Duration::from_secs(20))?
    };
    assert!(status.success());
    Ok(())
}
