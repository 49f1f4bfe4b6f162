use std::path::PathBuf;

use proptest::prelude::*;
use understudy_model::job::{Job, JobError, JobKind, JobState};
use understudy_model::settings::{PointEvery, ResyncWindow};
use understudy_model::{
    Consistency, CutNumber, DiskId, DiskSpec, JobId, Millis, PeerId, RelationshipId, ReturnCode, Settings, Timestamp,
    VmId,
};
use uuid::Uuid;

use super::*;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("catalogue.db")
    }

    fn open(&self) -> Catalogue {
        Catalogue::open(&self.path()).unwrap()
    }
}

fn vm(n: u128, name: &str) -> VmRecord {
    VmRecord {
        id: VmId(Uuid::from_u128(n)),
        name: name.into(),
        qmp: format!("/run/{name}.qmp"),
        definition: Some("text".into()),
        disks: vec![
            DiskSpec { id: DiskId(0), key: "virtio0".into(), size: 1 << 30 },
            DiskSpec { id: DiskId(1), key: "virtio1".into(), size: 512 },
        ],
        added_at: Timestamp(5),
    }
}

fn relationship(n: u128) -> NewRelationship {
    NewRelationship {
        id: RelationshipId::first(VmId(Uuid::from_u128(n))),
        vm_name: format!("vm-{n}"),
        side: Side::Primary,
        peer: PeerId([7; 32]),
        settings: Settings::default(),
        engine: None,
        made_at: Timestamp(9),
    }
}

fn peer(n: u8, name: &str) -> PeerRecord {
    PeerRecord {
        id: PeerId([n; 32]),
        name: name.into(),
        addresses: vec!["10.0.0.1:7843".into()],
        added_at: Timestamp(1),
        authorization: Authorization::new(true),
    }
}

#[tokio::test]
async fn what_was_recorded_is_there_after_a_restart() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.add_vm(vm(1, "web")).await.unwrap();
    catalogue.put_peer(peer(3, "other")).await.unwrap();
    let made = catalogue.add_relationship(relationship(1)).await.unwrap();
    catalogue.save_engine(made.id, "{\"x\":1}".into()).await.unwrap();
    catalogue.close();

    let catalogue = place.open();
    assert_eq!(catalogue.vms().await.unwrap(), vec![vm(1, "web")]);
    assert_eq!(catalogue.peer(PeerId([3; 32])).await.unwrap(), Some(peer(3, "other")));
    let found = catalogue.relationships().await.unwrap();
    assert_eq!(found, vec![RelationshipRecord { engine: Some("{\"x\":1}".into()), ..made }]);
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_answered() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.add_vm(vm(1, "web")).await.unwrap();
    // What a crash leaves: the files as they are now, with the log not yet copied back.
    let copy = Place::new();
    for name in ["catalogue.db", "catalogue.db-wal"] {
        std::fs::copy(place.dir.path().join(name), copy.dir.path().join(name)).unwrap();
    }
    assert_eq!(copy.open().vms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_cut_number_is_never_handed_out_twice() {
    let place = Place::new();
    let catalogue = place.open();
    let id = catalogue.add_relationship(relationship(1)).await.unwrap().id;
    assert_eq!(catalogue.next_cut(id).await.unwrap(), CutNumber(1));
    assert_eq!(catalogue.next_cut(id).await.unwrap(), CutNumber(2));
    catalogue.close();
    let catalogue = place.open();
    assert_eq!(catalogue.next_cut(id).await.unwrap(), CutNumber(3));
    assert_eq!(catalogue.advance_cut(id, CutNumber(40)).await.unwrap(), CutNumber(41));
    assert_eq!(catalogue.advance_cut(id, CutNumber(7)).await.unwrap(), CutNumber(42));
    let many = futures::future::join_all((0..100).map(|_| catalogue.next_cut(id))).await;
    let mut numbers: Vec<u64> = many.into_iter().map(|n| n.unwrap().0).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (43..143).collect::<Vec<_>>());
    let missing = RelationshipId::first(VmId(Uuid::from_u128(99)));
    assert!(matches!(catalogue.next_cut(missing).await, Err(CatalogueError::NoRelationship(_))));
}

#[tokio::test]
async fn many_small_changes_share_their_commits() {
    let place = Place::new();
    let catalogue = place.open();
    let id = catalogue.add_relationship(relationship(1)).await.unwrap().id;
    let before = catalogue.commits().get();
    futures::future::join_all((0..500).map(|_| catalogue.next_cut(id))).await;
    let commits = catalogue.commits().get() - before;
    assert!(commits < 250, "{commits} commits for 500 changes");
}

#[tokio::test]
async fn one_callers_failure_leaves_the_others_changes_alone() {
    let place = Place::new();
    let catalogue = place.open();
    let (first, twice, panics, last) = tokio::join!(
        catalogue.add_vm(vm(1, "a")),
        catalogue.add_vm(vm(2, "a")),
        catalogue.write(|c| -> Result<(), CatalogueError> {
            c.execute("DELETE FROM vm", []).unwrap();
            panic!("a fault of ours");
        }),
        catalogue.add_vm(vm(3, "c")),
    );
    first.unwrap();
    assert_eq!(twice.unwrap_err().to_string(), "a VM named \"a\" is already there");
    assert!(matches!(panics, Err(CatalogueError::Panicked)));
    last.unwrap();
    let names: Vec<_> = catalogue.vms().await.unwrap().into_iter().map(|v| v.name).collect();
    assert_eq!(names, ["a", "c"]);
}

#[tokio::test]
async fn a_vm_is_added_once_by_name_by_socket_and_by_identity() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.add_vm(vm(1, "web")).await.unwrap();
    let said = |r: Result<(), CatalogueError>| r.unwrap_err().to_string();
    let same_socket = VmRecord { qmp: "/run/web.qmp".into(), ..vm(2, "b") };
    assert!(said(catalogue.add_vm(same_socket).await).contains("QMP socket /run/web.qmp (as VM \"web\")"));
    let same_id = vm(1, "c");
    assert!(said(catalogue.add_vm(same_id).await).contains("(as \"web\")"));
    let mut twice = vm(4, "d");
    twice.disks[1].key = twice.disks[0].key.clone();
    assert!(catalogue.add_vm(twice).await.is_err());
    assert_eq!(catalogue.vms().await.unwrap().len(), 1, "nothing of a refused VM stays");
}

#[tokio::test]
async fn a_replicated_vm_is_not_forgotten() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.add_vm(vm(1, "web")).await.unwrap();
    let id = catalogue.add_relationship(relationship(1)).await.unwrap().id;
    assert!(!catalogue.remove_vm(id.vm).await.unwrap());
    assert!(catalogue.remove_relationship(id).await.unwrap());
    assert!(!catalogue.remove_relationship(id).await.unwrap());
    assert!(catalogue.remove_vm(id.vm).await.unwrap());
    assert_eq!(catalogue.vm(id.vm).await.unwrap(), None);
}

#[tokio::test]
async fn a_second_relationship_on_the_same_leg_is_refused() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.add_relationship(relationship(1)).await.unwrap();
    assert!(matches!(catalogue.add_relationship(relationship(1)).await, Err(CatalogueError::Taken { .. })));
    let mut second = relationship(1);
    second.id.leg = 1;
    catalogue.add_relationship(second).await.unwrap();
}

#[tokio::test]
async fn an_invitation_is_used_once_and_not_after_its_end() {
    let place = Place::new();
    let catalogue = place.open();
    let invite =
        |n: u8| InviteRecord { secret: [n; 32], made_at: Timestamp(100), expires_at: Timestamp(200), used_at: None };
    assert!(catalogue.add_invite(invite(1), 2).await.unwrap());
    assert!(catalogue.add_invite(invite(2), 2).await.unwrap());
    assert!(!catalogue.add_invite(invite(3), 2).await.unwrap(), "no more than allowed are open at once");
    let (one, two) = tokio::join!(
        catalogue.use_invite([1; 32], Timestamp(150), peer(3, "a")),
        catalogue.use_invite([1; 32], Timestamp(150), peer(4, "b")),
    );
    assert!(one.unwrap() ^ two.unwrap(), "of two at once one wins");
    assert_eq!(catalogue.peers().await.unwrap().len(), 1);
    assert!(!catalogue.use_invite([2; 32], Timestamp(200), peer(5, "c")).await.unwrap(), "expired");
    assert!(!catalogue.use_invite([9; 32], Timestamp(150), peer(5, "c")).await.unwrap(), "never made");
    let late = InviteRecord { made_at: Timestamp(200), expires_at: Timestamp(300), ..invite(3) };
    assert!(catalogue.add_invite(late, 2).await.unwrap(), "ended ones make room");
    assert_eq!(catalogue.invites().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_invitation_stays_open_when_its_peer_cannot_be_stored() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.put_peer(peer(1, "taken")).await.unwrap();
    let invite = InviteRecord { secret: [1; 32], made_at: Timestamp(0), expires_at: Timestamp(9), used_at: None };
    catalogue.add_invite(invite, 2).await.unwrap();
    assert!(catalogue.use_invite([1; 32], Timestamp(1), peer(2, "taken")).await.is_err());
    assert!(catalogue.use_invite([1; 32], Timestamp(1), peer(2, "free")).await.unwrap());
}

#[tokio::test]
async fn the_history_is_bounded_for_each_relationship() {
    let place = Place::new();
    let catalogue = place.open();
    let (one, two) = (relationship(1).id, relationship(2).id);
    let cycle = |n: u64| CycleRecord {
        cut: CutNumber(n),
        outcome: if n.is_multiple_of(2) { CycleOutcome::Acknowledged } else { CycleOutcome::GivenUp },
        consistency: Consistency::Application,
        taken_at: Timestamp(n),
        ended_at: Timestamp(n + 1),
        changed: 4096,
        sent: 100,
        detail: "x".repeat(900),
    };
    catalogue.add_cycle(two, cycle(1)).await.unwrap();
    let many = (0..u64::from(CYCLES_KEPT)).map(|n| catalogue.add_cycle(one, cycle(n)));
    futures::future::join_all(many).await.into_iter().for_each(|r| r.unwrap());
    for n in 5000..5020 {
        catalogue.add_cycle(one, cycle(n)).await.unwrap();
    }
    let kept = catalogue.cycles(one, u32::MAX).await.unwrap();
    assert_eq!(kept.len(), CYCLES_KEPT as usize);
    assert_eq!((kept[0].cut, kept[19].cut), (CutNumber(5019), CutNumber(5000)));
    assert_eq!(kept[0].detail.len(), 500);
    assert_eq!(catalogue.cycles(two, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn jobs_keep_every_field() {
    let place = Place::new();
    let catalogue = place.open();
    let job = Job {
        id: JobId(Uuid::from_u128(1)),
        kind: JobKind::Failover,
        vm: Some(VmId(Uuid::from_u128(2))),
        state: JobState::Exception,
        percent: 40,
        bytes_done: 4,
        bytes_total: 10,
        status: "copying".into(),
        submitted_at: Timestamp(1),
        scheduled_at: Some(Timestamp(77)),
        started_at: Some(Timestamp(2)),
        ended_at: Some(Timestamp(3)),
        cancellable: true,
        error: Some(JobError { code: ReturnCode::NotAvailable, description: "no".into(), hint: "wait".into() }),
    };
    let bare =
        Job { id: JobId(Uuid::from_u128(2)), vm: None, started_at: None, ended_at: None, error: None, ..job.clone() };
    catalogue.save_job(job.clone()).await.unwrap();
    catalogue.save_job(bare.clone()).await.unwrap();
    assert_eq!(catalogue.jobs().await.unwrap(), vec![job.clone(), bare.clone()]);
    catalogue.remove_jobs(vec![job.id]).await.unwrap();
    assert_eq!(catalogue.jobs().await.unwrap(), vec![bare]);
}

#[tokio::test]
async fn a_job_that_has_ended_stays_as_it_ended() {
    let place = Place::new();
    let catalogue = place.open();
    let mut job = Job {
        id: JobId(Uuid::from_u128(1)),
        kind: JobKind::Start,
        vm: None,
        state: JobState::Running,
        percent: 40,
        bytes_done: 4,
        bytes_total: 10,
        status: "copying".into(),
        submitted_at: Timestamp(1),
        scheduled_at: Some(Timestamp(77)),
        started_at: None,
        ended_at: None,
        cancellable: true,
        error: None,
    };
    catalogue.save_job(job.clone()).await.unwrap();
    let ended = Job { state: JobState::Completed, ended_at: Some(Timestamp(3)), ..job.clone() };
    catalogue.save_job(ended.clone()).await.unwrap();
    job.percent = 50;
    catalogue.save_job(job).await.unwrap();
    assert_eq!(catalogue.jobs().await.unwrap(), vec![ended]);
}

#[tokio::test]
async fn each_start_is_counted_and_the_first_identity_stays() {
    let place = Place::new();
    let catalogue = place.open();
    assert_eq!(catalogue.host().await.unwrap(), None);
    catalogue.record_start(PeerId([1; 32]), Timestamp(4)).await.unwrap();
    let second = catalogue.record_start(PeerId([2; 32]), Timestamp(5)).await.unwrap();
    assert_eq!(second, HostRecord { peer: PeerId([1; 32]), made_at: Timestamp(4), starts: 2 });
}

#[tokio::test]
async fn a_full_disk_refuses_changes_keeps_what_was_told_and_is_got_over() {
    let place = Place::new();
    let catalogue = place.open();
    catalogue.add_vm(vm(1, "before")).await.unwrap();
    let limit = |pages: i64| {
        catalogue.write(move |c| {
            c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
                .map_err(CatalogueError::doing("limit the file"))
        })
    };
    // SQLite never goes below what the file has already.
    limit(1).await.unwrap();
    let large = |n: u128| VmRecord { definition: Some("x".repeat(200_000)), ..vm(n, &format!("large-{n}")) };
    let refused = catalogue.add_vm(large(2)).await.unwrap_err();
    assert_eq!(refused.kind(), understudy_model::ErrorKind::Operator);
    assert_eq!(refused.refusal().hint, "free space in the state directory");
    assert_eq!(catalogue.vms().await.unwrap(), vec![vm(1, "before")], "nothing of the refused change stays");
    limit(1 << 30).await.unwrap();
    catalogue.add_vm(large(2)).await.unwrap();
}

fn bytes(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn a_newer_catalogue_is_refused_and_left_untouched() {
    let place = Place::new();
    place.open().close();
    rusqlite::Connection::open(place.path()).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = bytes(&place.path());
    let err = Catalogue::open(&place.path()).unwrap_err();
    assert!(matches!(err, CatalogueError::Newer { found: 99, known: schema::VERSION, .. }), "{err}");
    assert_eq!(bytes(&place.path()), before);
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_untouched() {
    let place = Place::new();
    rusqlite::Connection::open(place.path()).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let before = bytes(&place.path());
    assert!(matches!(Catalogue::open(&place.path()), Err(CatalogueError::Foreign { .. })));
    assert_eq!(bytes(&place.path()), before);
    std::fs::write(place.path(), b"not a database, but long enough to be looked at as one").unwrap();
    assert!(matches!(Catalogue::open(&place.path()), Err(CatalogueError::Foreign { .. })));
}

#[tokio::test]
async fn a_damaged_catalogue_is_refused_and_named() {
    let place = Place::new();
    let catalogue = place.open();
    for n in 0..200 {
        catalogue.add_vm(vm(n, &format!("vm-{n}"))).await.unwrap();
    }
    catalogue.close();
    let mut content = bytes(&place.path());
    let middle = content.len() / 2 / 4096 * 4096;
    content[middle..middle + 2048].fill(0xa5);
    std::fs::write(place.path(), &content).unwrap();
    let err = Catalogue::open(&place.path()).unwrap_err();
    assert!(matches!(err, CatalogueError::Damaged { .. }), "{err}");
    assert_eq!(bytes(&place.path()), content);
}

#[tokio::test]
async fn only_the_owner_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.open().close();
    assert_eq!(std::fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

fn settings() -> impl Strategy<Value = Settings> {
    let span = prop_oneof![Just(PointEvery::Cycle), (1u64..1 << 40).prop_map(|n| PointEvery::Span(Millis(n)))];
    let window =
        (0u64..86_400_000, 0u64..86_400_000).prop_map(|(a, b)| ResyncWindow { start: Millis(a), end: Millis(b) });
    let consistent = proptest::option::of((1u64..1 << 40).prop_map(Millis));
    let disks = proptest::collection::vec(any::<u16>().prop_map(DiskId), 0..4);
    (1000u64..900_000, 0u16..25, span, consistent, any::<bool>(), disks, proptest::option::of(window)).prop_map(
        |(interval, points, point_every, application_consistent_every, compression, excluded_disks, auto_resync)| {
            let interval = Millis(interval);
            Settings {
                interval,
                points,
                point_every,
                application_consistent_every,
                compression,
                excluded_disks,
                auto_resync,
            }
        },
    )
}

proptest! {
    #[test]
    fn settings_survive_the_catalogue(settings in settings()) {
        let text = rows::to_json(&rows::SettingsJson::from(&settings));
        prop_assert_eq!(Settings::from(rows::json::<rows::SettingsJson>("settings", &text).unwrap()), settings);
    }
}
