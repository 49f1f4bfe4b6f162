//! The guard, with real processes that are really killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;
use tokio::sync::mpsc;
use understudy_hypervisor::guard::{Duty, GuardClient, GuardError};

use crate::qmp_peer::Peer;
use crate::vm::{GUARD, Qemu, VIRTIO_RAW, Vm, until};

/// A daemon that has stopped the VM and stands still; its guard's process too.
fn stopper(vm: &Vm) -> (Child, Pid) {
    let mut child = Process::new(GUARD).arg("stop").arg(vm.path("qmp")).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let guard = said.strip_prefix("stopped ").unwrap().trim().parse().unwrap();
    (child, Pid::from_raw(guard).unwrap())
}

#[tokio::test]
async fn a_vm_runs_on_within_a_second_when_the_daemon_that_stopped_it_is_killed() {
    for qemu in Qemu::all() {
        let vm = Vm::start(qemu, &[VIRTIO_RAW], &[]);
        let mut tool = vm.tool().await;
        let (mut daemon, guard) = stopper(&vm);
        assert_eq!(tool.status().await, "paused");
        // A service manager asks all processes of a service to end; the guard does not.
        kill_process(guard, Signal::TERM).unwrap();
        daemon.kill().unwrap();
        let killed = Instant::now();
        daemon.wait().unwrap();
        while tool.status().await != "running" {
            assert!(killed.elapsed() < Duration::from_secs(1), "the VM still stands");
        }
        until("the guard has ended", || test_kill_process(guard).is_err());
    }
}

#[tokio::test]
async fn a_guard_waits_for_its_turn_at_a_monitor_that_another_tool_holds() {
    let vm = Vm::start(Qemu::Installed, &[VIRTIO_RAW], &[]);
    let (mut daemon, _guard) = stopper(&vm);
    let path = vm.path("qmp");
    let queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // The other tool was first in the queue: it has the monitor now, and lets go of it.
    let mut greeting = String::new();
    BufReader::new(&queued).read_line(&mut greeting).unwrap();
    let mut tool = vm.tool().await;
    assert_eq!(tool.status().await, "paused");
    drop(queued);
    let begun = Instant::now();
    while tool.status().await != "running" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the VM still stands");
    }
}

/// Kills a guard and waits until its end of the pipe is closed.
fn kill(guard: &GuardClient) -> u32 {
    let pid = guard.pid().unwrap();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until("the guard is dead", || {
        stat().rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z') || rest.is_empty())
    });
    pid
}

/// A monitor that tells which commands it got; its VM is in this state.
fn told(status: &'static str) -> (Peer, mpsc::UnboundedReceiver<String>) {
    let (say, told) = mpsc::unbounded_channel();
    let peer = Peer::tell(move |mut talk| {
        let say = say.clone();
        async move {
            talk.greet().await;
            while let Some(command) = talk.hear().await {
                say.send(command["execute"].as_str().unwrap().to_owned()).unwrap();
                talk.say_line(json!({"return": {"status": status}, "id": command["id"]})).await;
            }
        }
    });
    (peer, told)
}

#[tokio::test]
async fn a_duty_called_off_is_not_carried_out_and_one_let_fall_is() {
    let (peer, mut told) = told("paused");
    let guard = GuardClient::new(GUARD, ["guard"]);
    let duty = Duty::Resume { monitor: peer.socket() };
    guard.arm(duty.clone()).await.unwrap().done();
    let pid = guard.pid().unwrap();
    drop(guard.arm(duty).await.unwrap());
    assert_eq!(told.recv().await.unwrap(), "query-status");
    assert_eq!(told.recv().await.unwrap(), "cont");
    assert_eq!(guard.pid(), Some(pid), "one guard is enough");
    drop(guard);
    let pid = Pid::from_raw(pid as i32).unwrap();
    until("the guard has ended", || test_kill_process(pid).is_err());
    assert!(told.try_recv().is_err(), "nothing was done twice");
}

#[tokio::test]
async fn a_vm_in_any_other_state_than_paused_is_left_alone() {
    let (peer, mut told) = told("shutdown");
    let guard = GuardClient::new(GUARD, ["guard"]);
    drop(guard.arm(Duty::Resume { monitor: peer.socket() }).await.unwrap());
    assert_eq!(told.recv().await.unwrap(), "query-status");
    let pid = Pid::from_raw(guard.pid().unwrap() as i32).unwrap();
    drop(guard);
    until("the guard has ended", || test_kill_process(pid).is_err());
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn a_guard_that_died_is_replaced_and_its_successor_knows_what_it_knew() {
    let (peer, mut told) = told("paused");
    let guard = GuardClient::new(GUARD, ["guard"]);
    let watch = guard.arm(Duty::Resume { monitor: peer.socket() }).await.unwrap();
    let first = kill(&guard);
    let other = guard.arm(Duty::Resume { monitor: "/nonexistent/monitor".into() }).await.unwrap();
    assert_ne!(guard.pid(), Some(first));
    other.done();
    drop(watch);
    assert_eq!(told.recv().await.unwrap(), "query-status");
    assert_eq!(told.recv().await.unwrap(), "cont");
}

#[tokio::test]
async fn a_duty_let_fall_is_carried_out_even_if_the_guard_died_before() {
    let (peer, mut told) = told("paused");
    let guard = GuardClient::new(GUARD, ["guard"]);
    let watch = guard.arm(Duty::Resume { monitor: peer.socket() }).await.unwrap();
    kill(&guard);
    drop(watch);
    assert_eq!(told.recv().await.unwrap(), "query-status");
    assert_eq!(told.recv().await.unwrap(), "cont");
}

#[tokio::test]
async fn a_program_that_is_no_guard_is_no_guard() {
    let duty = || Duty::Resume { monitor: "/nonexistent/monitor".into() };
    let err = GuardClient::new("/bin/true", [""; 0]).arm(duty()).await.unwrap_err();
    assert!(matches!(err, GuardError::NotReady { .. }), "{err}");
    let err = GuardClient::new("/nonexistent/guard", [""; 0]).arm(duty()).await.unwrap_err();
    assert!(matches!(err, GuardError::Start { .. }), "{err}");
}

#[tokio::test]
async fn a_frozen_guest_is_thawed_when_the_duty_falls() {
    let (say, mut told) = mpsc::unbounded_channel();
    let peer = Peer::tell(move |mut talk| {
        let say = say.clone();
        async move {
            talk.synchronise().await;
            while let Some(command) = talk.hear().await {
                say.send(command["execute"].as_str().unwrap().to_owned()).unwrap();
                talk.say_line(json!({"return": 1})).await;
            }
        }
    });
    let guard = GuardClient::new(GUARD, ["guard"]);
    drop(guard.arm(Duty::Thaw { agent: peer.socket() }).await.unwrap());
    assert_eq!(told.recv().await.unwrap(), "guest-fsfreeze-thaw");
}
