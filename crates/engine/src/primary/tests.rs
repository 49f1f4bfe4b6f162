use super::*;
use understudy_model::{ErrorKind, VmId};

/// Plays the world around a relationship by hand.
struct Play {
    relationship: Relationship,
    now: Timestamp,
    actions: Actions,
}

fn spec() -> DiskSpec {
    DiskSpec { id: DiskId(0), key: "disk".into(), size: 1 << 20 }
}

fn id() -> RelationshipId {
    RelationshipId::first("7f2c0b6e-0000-4000-8000-0123456789ab".parse::<VmId>().expect("a uuid"))
}

fn digest(n: u8) -> CutDigest {
    CutDigest([n; 32])
}

fn job() -> JobId {
    "00000000-0000-4000-8000-000000000001".parse().expect("a uuid")
}

fn retry() -> Failure {
    Failure::new(ErrorKind::Retry, ReturnCode::NotAvailable, "away")
}

impl Play {
    fn new() -> Self {
        let settings = Settings { interval: Millis(1000), ..Default::default() };
        let record = Record::new(id(), Generation(1), vec![spec()], settings);
        Self::resumed(record, Timestamp(0))
    }

    fn resumed(record: Record, now: Timestamp) -> Self {
        let mut play = Self { relationship: Relationship::new(record, now, 7), now, actions: vec![] };
        play.event(Event::Tick);
        play
    }

    fn event(&mut self, event: Event) {
        self.relationship.handle(self.now, event, &mut self.actions);
    }

    fn command(&mut self, command: Command) -> Result<(), Refusal> {
        self.relationship.command(self.now, command, &mut self.actions)
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now + Millis(millis);
        self.event(Event::Tick);
    }

    fn take(&mut self) -> Actions {
        std::mem::take(&mut self.actions)
    }

    fn state(&self) -> State {
        self.relationship.record().state
    }

    /// Answers the pending `Open`.
    fn opened(&mut self, report: TargetReport) {
        let found = self.take().into_iter().rev().find_map(|a| match a {
            Action::Open { token, session, .. } => Some((token, session)),
            _ => None,
        });
        let (token, session) = found.expect("a session was asked for");
        self.event(Event::Opened { token, session, report });
    }

    fn tracked(&mut self) -> CutNumber {
        let found = self.take().into_iter().find_map(|a| match a {
            Action::BeginTracking { token, first_map } => Some((token, first_map)),
            _ => None,
        });
        let (token, map) = found.expect("tracking was asked for");
        self.event(Event::TrackingBegun { token });
        map
    }

    fn copied(&mut self) -> Vec<(DiskId, u64)> {
        let found = self.take().into_iter().find_map(|a| match a {
            Action::CopyBase { token, positions, .. } => Some((token, positions)),
            _ => None,
        });
        let (token, positions) = found.expect("a copy was asked for");
        self.event(Event::BaseCopied { token });
        positions
    }

    fn cut(&mut self) -> (Token, CutNumber, CutNumber) {
        let found = self.take().into_iter().find_map(|a| match a {
            Action::TakeCut { token, number, must_cover, .. } => Some((token, number, must_cover)),
            _ => None,
        });
        let (token, number, must_cover) = found.expect("a cut was asked for");
        self.event(Event::CutTaken { token });
        (token, number, must_cover)
    }

    fn computed(&mut self, token: Token, n: u8) {
        self.event(Event::CycleComputed { token, digest: digest(n) });
    }

    fn acked(&mut self, token: Token, n: u8) {
        self.event(Event::CycleAcked { token, digest: digest(n), bytes: 10 });
    }

    /// A relationship that has acknowledged its first cycle, with digest 1.
    fn replicating() -> Self {
        let mut play = Self::new();
        play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
        play.opened(TargetReport::default());
        play.tracked();
        play.copied();
        let (token, ..) = play.cut();
        play.computed(token, 1);
        play.acked(token, 1);
        assert_eq!(play.state(), State::Replicating);
        play.take();
        play
    }

    fn newest(&self) -> TargetReport {
        TargetReport { newest: self.relationship.record().acked, ..Default::default() }
    }
}

#[test]
fn initial_replication_tracks_copies_cuts_and_becomes_replicating() {
    let mut play = Play::new();
    assert!(play.take().is_empty(), "nothing happens before it is asked for");
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    assert_eq!(play.state(), State::InitialReplication);
    play.opened(TargetReport::default());
    let first = play.tracked();
    play.copied();
    let (token, number, must_cover) = play.cut();
    assert_eq!((must_cover, number), (first, first.next()));
    play.computed(token, 1);
    let actions = play.take();
    let persisted = actions.iter().position(|a| matches!(a, Action::Persist(r) if r.sent.is_some()));
    let concluded = actions.iter().position(|a| matches!(a, Action::ConcludeCycle { .. }));
    assert!(persisted.unwrap() < concluded.unwrap(), "the digest is durable before the seal is asked for");
    play.acked(token, 1);
    let actions = play.take();
    assert_eq!(play.state(), State::Replicating);
    assert!(actions.contains(&Action::FinishJob { job: job(), result: Ok(()) }));
    let persisted = actions.iter().position(|a| matches!(a, Action::Persist(r) if r.acked.is_some()));
    let dropped = actions.iter().position(|a| *a == Action::DropMaps { below: number });
    assert!(persisted.unwrap() < dropped.unwrap(), "maps go only after the acknowledgement is durable");
}

#[test]
fn a_cycle_that_fails_keeps_its_maps_and_the_next_one_has_a_new_number() {
    let mut play = Play::replicating();
    play.wait(1000);
    let (token, number, must_cover) = play.cut();
    play.event(Event::CycleFailed { token, failure: retry().with_link_lost() });
    let actions = play.take();
    assert!(actions.contains(&Action::FoldMaps) && !actions.iter().any(|a| matches!(a, Action::DropMaps { .. })));
    play.wait(2000);
    let newest = play.newest();
    play.opened(newest);
    play.wait(1000);
    let (_, again, still) = play.cut();
    assert!(again > number && still == must_cover);
}

#[test]
fn a_late_answer_of_a_cycle_that_was_given_up_is_dropped() {
    let mut play = Play::replicating();
    play.wait(1000);
    let (token, ..) = play.cut();
    play.computed(token, 2);
    play.event(Event::CycleFailed { token, failure: retry() });
    let before = play.relationship.record().clone();
    play.take();
    play.acked(token, 2);
    assert_eq!(play.relationship.record().acked, before.acked);
}

#[test]
fn an_acknowledgement_of_other_content_does_not_count() {
    let mut play = Play::replicating();
    play.wait(1000);
    let (token, ..) = play.cut();
    play.computed(token, 2);
    play.take();
    play.acked(token, 3);
    assert_eq!(play.relationship.record().acked.unwrap().digest, digest(1));
    let actions = play.take();
    assert!(actions.contains(&Action::FoldMaps) && actions.contains(&Action::CloseLink), "{actions:?}");
    play.wait(2000);
    assert!(play.take().iter().any(|a| matches!(a, Action::Open { .. })), "and replication goes on");
}

#[test]
fn a_replica_that_is_one_cut_ahead_is_recognised_by_its_digest_also_after_a_restart() {
    let mut play = Play::replicating();
    play.wait(1000);
    let (token, number, _) = play.cut();
    play.computed(token, 2);
    let record = play.relationship.record().clone();
    let mut play = Play::resumed(record, Timestamp(9000));
    let newest = CutRef { generation: Generation(1), number, digest: digest(2) };
    play.opened(TargetReport { newest: Some(newest), ..Default::default() });
    assert_eq!(play.relationship.record().acked, Some(newest));
    let actions = play.take();
    assert!(actions.contains(&Action::DropMaps { below: number }));
    let Some(Action::TakeCut { must_cover, .. }) = actions.last() else { panic!("no cut: {actions:?}") };
    assert_eq!(*must_cover, number);
}

#[test]
fn a_replica_that_went_back_forked_or_lost_everything_needs_a_comparison() {
    let older = CutRef { generation: Generation(1), number: CutNumber(1), digest: digest(9) };
    let fork = CutRef { number: CutNumber(50), ..older };
    for newest in [None, Some(older), Some(fork)] {
        let mut play = Play::resumed(Play::replicating().relationship.record().clone(), Timestamp(0));
        play.opened(TargetReport { newest, ..Default::default() });
        assert_eq!(play.state(), State::ResyncRequired, "{newest:?}");
        assert!(play.relationship.record().cause.is_some());
        play.wait(3_600_000);
        assert!(!play.take().iter().any(|a| matches!(a, Action::Open { .. } | Action::TakeCut { .. })));
    }
}

#[test]
fn lost_tracking_is_said_and_nothing_more_is_sent() {
    let mut play = Play::replicating();
    play.wait(1000);
    let found = play.take().into_iter().find_map(|a| match a {
        Action::TakeCut { token, .. } => Some(token),
        _ => None,
    });
    let failure = Failure::new(ErrorKind::Resync, ReturnCode::Failed, "the map of disk-0 is gone");
    play.event(Event::CutFailed { token: found.unwrap(), failure });
    assert_eq!(play.state(), State::ResyncRequired);
    assert!(play.command(Command::Resume).is_err());
    assert_eq!(play.relationship.report(play.now).health, understudy_model::Health::Critical);
}

#[test]
fn a_copy_goes_on_from_the_durable_position_unless_tracking_began_anew() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.opened(TargetReport::default());
    let attempt = play.tracked();
    let record = play.relationship.record().clone();
    let base = Some((attempt, vec![(DiskId(0), 4096)]));
    let mut same = Play::resumed(record.clone(), Timestamp(0));
    same.opened(TargetReport { base, ..Default::default() });
    assert_eq!(same.copied(), vec![(DiskId(0), 4096)]);
    let mut other = Play::resumed(record, Timestamp(0));
    other.opened(TargetReport { base: Some((CutNumber(77), vec![(DiskId(0), 4096)])), ..Default::default() });
    assert_eq!(other.copied(), vec![]);
}

#[test]
fn a_copy_whose_tracking_broke_begins_again_under_a_new_number() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.opened(TargetReport::default());
    let first = play.tracked();
    let token = play.take().into_iter().find_map(|a| match a {
        Action::CopyBase { token, .. } => Some(token),
        _ => None,
    });
    let failure = Failure::new(ErrorKind::Resync, ReturnCode::Failed, "the VM was restarted");
    play.event(Event::BaseFailed { token: token.unwrap(), failure });
    play.wait(5000);
    play.opened(TargetReport::default());
    assert!(play.tracked() > first);
    assert_eq!(play.state(), State::InitialReplication);
}

#[test]
fn a_session_number_that_was_used_is_passed_over() {
    let mut play = Play::replicating();
    let session = play.relationship.record().session_last;
    play.event(Event::LinkLost { session });
    play.wait(2000);
    let token = play.take().into_iter().find_map(|a| match a {
        Action::Open { token, .. } => Some(token),
        _ => None,
    });
    let failure = Failure { session: Some(SessionNumber(40)), ..retry() };
    play.event(Event::OpenFailed { token: token.unwrap(), failure });
    play.wait(60_000);
    assert!(play.take().iter().any(|a| matches!(a, Action::Open { session: SessionNumber(41), .. })));
}

#[test]
fn a_number_the_replica_names_is_tried_soon_and_a_stream_of_them_is_not() {
    let mut play = Play::replicating();
    let session = play.relationship.record().session_last;
    play.event(Event::LinkLost { session });
    let refuse = |play: &mut Play, failure: Failure| {
        let token = play.take().into_iter().rev().find_map(|a| match a {
            Action::Open { token, .. } => Some(token),
            _ => None,
        });
        play.event(Event::OpenFailed { token: token.expect("a session was asked for"), failure });
    };
    let is_soon = |play: &Play| play.relationship.next_deadline().is_some_and(|at| at <= play.now + Millis(1000));
    for _ in 0..8 {
        play.wait(30_000);
        refuse(&mut play, retry());
    }
    assert!(!is_soon(&play), "plain trouble waits ever longer");
    for (lesson, soon) in [true, true, false].into_iter().enumerate() {
        play.wait(30_000);
        let number = play.relationship.record().session_last.0 + 10;
        refuse(&mut play, Failure { session: Some(SessionNumber(number)), ..retry() });
        assert_eq!(is_soon(&play), soon, "lesson {lesson}");
    }
}

#[test]
fn a_fenced_primary_stands_still_until_the_right_is_handed_back() {
    let mut play = Play::replicating();
    play.event(Event::PeerFailedOver);
    let refused = |play: &mut Play, handed_back, generation| {
        let token = play.take().into_iter().rev().find_map(|a| match a {
            Action::Open { token, .. } => Some(token),
            _ => None,
        });
        let kind = if handed_back { ErrorKind::Retry } else { ErrorKind::Refused };
        let mut failure = Failure::new(kind, ReturnCode::InvalidState, "failed over");
        (failure.generation, failure.is_handed_back) = (Some(Generation(generation)), handed_back);
        play.event(Event::OpenFailed { token: token.expect("a session was asked for"), failure });
    };
    refused(&mut play, false, 2);
    assert_eq!((play.state(), play.relationship.record().generation), (State::Critical, Generation(1)));
    play.wait(60_000);
    refused(&mut play, true, 3);
    assert_eq!(play.relationship.record().generation, Generation(3));
    play.wait(60_000);
    let newest = play.newest();
    play.opened(newest);
    assert_eq!(play.state(), State::Replicating);
}

#[test]
fn a_leap_of_numbers_is_not_believed() {
    let mut play = Play::replicating();
    play.event(Event::PeerFailedOver);
    let token = play.take().into_iter().rev().find_map(|a| match a {
        Action::Open { token, .. } => Some(token),
        _ => None,
    });
    let failure = Failure { session: Some(SessionNumber(u64::MAX)), ..retry() };
    play.event(Event::OpenFailed { token: token.unwrap(), failure });
    play.wait(60_000);
    assert!(play.relationship.record().session_last < SessionNumber(10));
}

#[test]
fn a_pause_stops_cuts_and_resume_sends_everything_since() {
    let mut play = Play::replicating();
    let must_cover = play.relationship.record().acked.unwrap().number;
    play.command(Command::Suspend).unwrap();
    play.take();
    play.wait(3_600_000);
    assert!(play.take().is_empty());
    assert!(play.command(Command::Suspend).is_err(), "twice is refused");
    play.command(Command::Resume).unwrap();
    let newest = play.newest();
    play.opened(newest);
    assert_eq!(play.cut().2, must_cover);
}

#[test]
fn commands_out_of_place_are_refused_and_change_nothing() {
    let mut play = Play::new();
    let before = play.relationship.record().clone();
    for command in [Command::Suspend, Command::Resume, Command::StopInitial] {
        assert_eq!(play.command(command).unwrap_err().code, ReturnCode::InvalidState);
    }
    assert!(play.command(Command::Modify(Settings { points: 99, ..Default::default() })).is_err());
    assert!(play.take().is_empty() && *play.relationship.record() == before);
    let mut play = Play::replicating();
    assert!(play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).is_err());
    assert!(play.command(Command::StopInitial).is_err());
}

#[test]
fn stopping_initial_replication_goes_back_to_ready_and_ends_tracking() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.opened(TargetReport::default());
    play.command(Command::StopInitial).unwrap();
    assert_eq!(play.state(), State::Ready);
    let actions = play.take();
    assert!(actions.contains(&Action::EndTracking));
    assert!(actions.iter().any(|a| matches!(a, Action::FinishJob { result: Err(_), .. })));
}

#[test]
fn a_first_cycle_that_arrived_before_initial_replication_was_stopped_is_not_built_upon() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.opened(TargetReport::default());
    play.tracked();
    play.copied();
    let (token, number, _) = play.cut();
    play.computed(token, 1);
    play.command(Command::StopInitial).unwrap();
    assert!(play.take().contains(&Action::EndTracking));

    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    let theirs = CutRef { generation: Generation(1), number, digest: digest(1) };
    play.opened(TargetReport { newest: Some(theirs), ..Default::default() });
    assert_eq!(play.state(), State::ResyncRequired, "what was written since is in no map");
    assert_eq!(play.relationship.record().acked, None);
}

#[test]
fn a_crash_between_the_acknowledgement_and_the_end_of_its_job_does_not_lose_the_end() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.opened(TargetReport::default());
    play.tracked();
    play.copied();
    let (token, ..) = play.cut();
    play.computed(token, 1);
    play.take();
    play.acked(token, 1);
    let actions = play.take();
    let durable = actions.iter().find_map(|a| match a {
        Action::Persist(record) => Some((**record).clone()),
        Action::FinishJob { .. } => panic!("the end was told before it was durable"),
        _ => None,
    });
    let mut play = Play::resumed(durable.expect("the acknowledgement is made durable"), Timestamp(9000));
    let actions = play.take();
    assert!(actions.contains(&Action::FinishJob { job: job(), result: Ok(()) }), "{actions:?}");
    assert_eq!(play.relationship.record().transfer_job, None);
    let mut play = Play::resumed(play.relationship.record().clone(), Timestamp(9000));
    assert!(!play.take().iter().any(|a| matches!(a, Action::FinishJob { .. })), "once it is forgotten it is over");
}

#[test]
fn a_crash_between_a_stop_and_the_end_of_its_job_still_ends_it() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.take();
    play.command(Command::StopInitial).unwrap();
    let durable = play.take().into_iter().find_map(|a| if let Action::Persist(r) = a { Some(*r) } else { None });
    let mut play = Play::resumed(durable.expect("the stop is made durable"), Timestamp(9000));
    assert!(play.take().iter().any(|a| matches!(a, Action::FinishJob { result: Err(_), .. })));
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    assert_eq!(play.state(), State::InitialReplication);
}

#[test]
fn a_removed_relationship_ends_its_job_only_when_it_is_forgotten() {
    let mut play = Play::new();
    play.command(Command::Start { transfer_job: job(), kind: InitialKind::Network }).unwrap();
    play.command(Command::Remove).unwrap();
    let actions = play.take();
    let at = |wanted: fn(&Action) -> bool| actions.iter().position(wanted).expect("both are asked for");
    assert!(at(|a| *a == Action::Forget) < at(|a| matches!(a, Action::FinishJob { .. })));
}

#[test]
fn cuts_keep_their_beat_and_a_missed_one_is_caught_up_at_once() {
    let mut play = Play::replicating();
    assert_eq!(play.relationship.next_deadline(), Some(play.now + Millis(1000)));
    play.wait(1000);
    let (token, ..) = play.cut();
    play.computed(token, 2);
    play.now = play.now + Millis(700);
    play.acked(token, 2);
    assert_eq!(play.relationship.next_deadline(), Some(play.now + Millis(300)), "one second after the last cut");
    play.wait(5300);
    assert!(play.take().iter().any(|a| matches!(a, Action::TakeCut { .. })), "overdue: at once");
}

#[test]
fn damage_in_a_row_becomes_critical_and_is_tried_again_later() {
    let mut play = Play::replicating();
    for _ in 0..CORRUPT_MAX {
        assert_eq!(play.state(), State::Replicating);
        if play.relationship.link == (Link::Up { session: play.relationship.record().session_last }) {
            play.wait(2000);
        } else {
            play.wait(60_000);
            let newest = play.newest();
            play.opened(newest);
        }
        let (token, ..) = play.cut();
        let failure = Failure::new(ErrorKind::Corrupt, ReturnCode::Failed, "digests differ");
        play.event(Event::CycleFailed { token, failure });
    }
    assert_eq!(play.state(), State::Critical);
    assert!(play.relationship.record().cause.as_ref().unwrap().contains("digests differ"));
}

#[test]
fn removal_ends_tracking_and_forgets() {
    let mut play = Play::replicating();
    play.command(Command::Remove).unwrap();
    let actions = play.take();
    assert!(actions.ends_with(&[Action::EndTracking, Action::Forget]));
    assert_eq!(play.relationship.next_deadline(), None);
    assert!(play.command(Command::Resume).is_err());
}

mod compare;
