//! Real guests: they lose their power while they write, and their journals say what came through; and the judge is judged.

use anyhow::Result;
use serde_json::json;
use understudy_testkit::disk::{self, Difference, FileSystem, Format};
use understudy_testkit::emulator::Emulator;
use understudy_testkit::guest::{Agent, Guest, GuestConfig, GuestDisk, Machine};

const DISK: u64 = 64 << 20;

fn two_disks(config: GuestConfig, formats: [Format; 2]) -> Result<GuestConfig> {
    config.two_disks(formats, DISK)
}

fn report(what: &str, value: impl std::fmt::Debug) {
    println!("measured: {what}: {value:?}");
}

/// Journals, pulls the plug, starts again, verifies.
fn survives_a_power_cut(config: GuestConfig) -> Result<()> {
    let mut guest = config.start()?;
    report("up in", guest.up_in());
    assert_eq!(guest.qmp().execute("query-uuid", json!({}))?["UUID"], config.uuid());
    guest.start_journal("")?;
    guest.wait_for_ack(200)?;
    let (config, acked) = guest.kill()?;
    let acked = acked.expect("records were announced");
    let mut guest = config.start()?;
    report("up again in", guest.up_in());
    let verdict = guest.verify()?;
    report("verdict", &verdict);
    assert!(verdict.consistent, "{verdict:?}");
    assert_eq!((verdict.missing, verdict.torn, verdict.order), (0, 0, 0));
    assert_eq!(verdict.loss(acked).0, 0, "announced {acked:?}, found {verdict:?}");
    guest.poweroff()?;
    Ok(())
}

#[test]
fn a_booted_guest_finds_every_announced_record_after_its_power_was_cut() -> Result<()> {
    survives_a_power_cut(two_disks(GuestConfig::new()?.booted(), [Format::Raw, Format::Raw])?)
}

#[test]
fn a_restored_guest_finds_every_announced_record_after_its_power_was_cut() -> Result<()> {
    survives_a_power_cut(two_disks(GuestConfig::new()?, [Format::Raw, Format::Qcow2])?)
}

#[test]
fn a_microvm_finds_every_announced_record_after_its_power_was_cut() -> Result<()> {
    survives_a_power_cut(two_disks(GuestConfig::new()?.machine(Machine::Microvm), [Format::Raw, Format::Raw])?)
}

#[test]
fn scsi_disks_on_a_thread_of_their_own_are_found_by_their_serial_numbers() -> Result<()> {
    let config = GuestConfig::new()?;
    let dir = config.directory().to_path_buf();
    let disk_of = |name: &str| -> Result<GuestDisk> {
        let path = disk::create(&dir.join(name), Format::Qcow2, DISK)?;
        Ok(GuestDisk::new(name, path, Format::Qcow2).on_scsi().on_iothread())
    };
    survives_a_power_cut(config.disk(disk_of("first")?).disk(disk_of("second")?))
}

#[test]
fn debian_12s_own_emulator_runs_the_same_guest() -> Result<()> {
    let emulator = Emulator::debian_12()?;
    assert_eq!(emulator.version(), (7, 2));
    survives_a_power_cut(two_disks(GuestConfig::new()?.emulator(emulator), [Format::Qcow2, Format::Raw])?)
}

/// The oracle must not be blind: a disk that is older than the other must be seen for what it is.
#[test]
fn a_disk_from_an_earlier_moment_does_not_pass_for_a_good_one() -> Result<()> {
    let config = two_disks(GuestConfig::new()?, [Format::Raw, Format::Raw])?;
    let mut guest = config.start()?;
    guest.start_journal("--count 101")?;
    guest.wait_for_ack(101)?;
    let config = guest.poweroff()?;
    let b = config.disks()[1].path.clone();
    let older = config.directory().join("older");
    std::fs::copy(&b, &older)?;

    let mut guest = config.start()?;
    assert_eq!(guest.verify()?.last.number, 101);
    guest.start_journal("")?; // goes on behind 101
    let acked = guest.wait_for_ack(300)?;
    assert!(acked.number > 300 - 1);
    let (config, _) = guest.kill()?;
    assert_ne!(disk::compare((&b, Format::Raw), (&older, Format::Raw))?, Difference::None);
    std::fs::copy(&older, &b)?;

    let mut guest = config.start()?;
    let verdict = guest.verify()?;
    assert!(!verdict.consistent);
    assert!(verdict.order >= 99, "{verdict:?}");
    assert_eq!((verdict.missing, verdict.torn, verdict.strangers), (0, 0, 0), "{verdict:?}");
    Ok(())
}

#[test]
fn a_file_system_frozen_by_the_agent_takes_no_record() -> Result<()> {
    let config = GuestConfig::new()?.with_agent();
    let dir = config.directory().to_path_buf();
    let a = disk::create_with(FileSystem::Ext4, &dir.join("a"), Format::Qcow2, DISK)?;
    let b = disk::create_with(FileSystem::Xfs, &dir.join("b"), Format::Raw, 320 << 20)?; // XFS wants 300 MiB
    let config = config.disk(GuestDisk::new("a", a.clone(), Format::Qcow2)).disk(GuestDisk::new("b", b, Format::Raw));
    let mut guest = config.start()?;
    mount(&mut guest)?;
    guest.start_journal_on("/mnt/a/journal /mnt/b/journal", "--slots 1024")?;
    let mut agent = Agent::connect(&config.agent_socket())?;
    assert_eq!(agent.execute("guest-fsfreeze-freeze")?, 2);
    let before = guest.acked();
    guest.run("usleep 300000")?; // some hundred records' time
    let after = guest.acked();
    // One record may have become durable just before, and be announced just after.
    assert!(after.unwrap().number <= before.unwrap().number + 1, "{before:?} {after:?}");
    assert_eq!(agent.execute("guest-fsfreeze-thaw")?, 2);
    let acked = guest.wait_for_ack(after.unwrap().number + 50)?;
    let (config, _) = guest.kill()?;
    disk::check(&a)?;

    let mut guest = config.start()?;
    mount(&mut guest)?;
    let verdict = guest.verify_on("/mnt/a/journal /mnt/b/journal --slots 1024")?;
    assert!(verdict.consistent, "{verdict:?}");
    assert_eq!(verdict.loss(acked).0, 0);
    Ok(())
}

fn mount(guest: &mut Guest) -> Result<()> {
    guest.run("load xfs && mkdir -p /mnt/a /mnt/b && mount /disk/a /mnt/a && mount -t xfs /disk/b /mnt/b").map(drop)
}

#[test]
fn a_guest_with_a_script_runs_it_and_ends() -> Result<()> {
    let config = two_disks(GuestConfig::new()?, [Format::Raw, Format::Raw])?;
    let mut guest = config.clone().script("guest-io journal /disk/a /disk/b --count 20").start()?;
    guest.ended()?;
    let mut guest = config.clone().script("guest-io verify /disk/a /disk/b").start()?;
    guest.ended()?;
    let log = std::fs::read_to_string(config.serial_log())?;
    assert!(log.contains("GUEST-IO verify consistent=1 records=20 last=20"), "{log}");
    assert!(log.contains("GUEST-RUN-END 0"), "{log}");
    Ok(())
}

#[test]
fn loads_do_what_they_report() -> Result<()> {
    let mut guest = two_disks(GuestConfig::new()?, [Format::Raw, Format::Raw])?.start()?;
    assert_eq!(guest.workload("dirty /disk/a --clusters 100")?.number("bytes")?, 100 * 4096);
    guest.workload("fill /disk/a --bytes 8388608 --pattern text --from 33554432")?;
    guest.workload("heavy /disk/b --seconds 1")?;
    let latency = guest.workload("latency /disk/b --count 300")?;
    assert_eq!(latency.number("count")?, 300);
    report("latency", latency);
    assert!(
        guest.workload("fill /disk/a --bytes 99999999999").is_err(),
        "a disk that is too small is not filled in silence"
    );
    let a = guest.config().disks()[0].path.clone();
    let _config = guest.poweroff()?; // whose directory holds the image
    let bytes = std::fs::read(a)?;
    let dirty = |range: std::ops::Range<usize>, unit| {
        bytes[range].chunks(unit).filter(|chunk| chunk.iter().any(|&byte| byte != 0)).count()
    };
    let below = dirty(0..32 << 20, 65_536);
    assert!((30..=100).contains(&below), "about half of 100 clusters lie in the lower half: {below}");
    assert_eq!(dirty(32 << 20..40 << 20, 4096), 2048);
    Ok(())
}
