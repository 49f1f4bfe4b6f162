use super::*;

impl Play {
    /// A relationship whose tracking was lost after its first cycle, with a resynchronisation asked for.
    fn resyncing() -> Self {
        let mut play = Self::replicating();
        play.wait(1000);
        let (token, ..) = play.taken();
        let failure = Failure::new(ErrorKind::Resync, ReturnCode::Failed, "the map of disk-0 is gone");
        play.event(Event::CutFailed { token, failure });
        assert_eq!(play.state(), State::ResyncRequired);
        play.command(Command::Resynchronize { transfer_job: job() }).unwrap();
        assert_eq!(play.state(), State::Resynchronizing);
        play
    }

    fn taken(&mut self) -> (Token, Option<CutNumber>) {
        let found = self.take().into_iter().find_map(|a| match a {
            Action::TakeCut { token, differing, .. } => Some((token, differing)),
            _ => None,
        });
        found.expect("a cut was asked for")
    }

    fn comparing(&mut self) -> (Token, CutNumber, CutRef) {
        let found = self.take().into_iter().find_map(|a| match a {
            Action::Compare { token, attempt, against } => Some((token, attempt, against)),
            _ => None,
        });
        found.expect("a comparison was asked for")
    }

    fn compared(&mut self) -> CutNumber {
        let (token, attempt, _) = self.comparing();
        self.event(Event::Compared { token });
        attempt
    }

    fn sent_parent(&mut self) -> CutDigest {
        let found = self.take().into_iter().find_map(|a| match a {
            Action::SendCycle { parent, .. } => Some(parent),
            _ => None,
        });
        found.expect("a cycle was sent")
    }
}

fn theirs(number: u64, n: u8) -> CutRef {
    CutRef { generation: Generation(1), number: CutNumber(number), digest: digest(n) }
}

fn holds(cut: CutRef) -> TargetReport {
    TargetReport { newest: Some(cut), ..Default::default() }
}

#[test]
fn a_resynchronisation_tracks_afresh_compares_and_sends_on_top_of_what_the_replica_has() {
    let mut play = Play::resyncing();
    // The replica was put back to something older, even to another history: whatever it has is compared with.
    let other = theirs(40, 9);
    play.opened(holds(other));
    let map = play.tracked();
    assert!(map > other.number, "no number that the replica may know is used again");
    let (token, attempt, against) = play.comparing();
    assert_eq!((attempt, against), (map, other));
    play.event(Event::Compared { token });
    assert!(play.relationship.record().compare.unwrap().is_done);
    let (cut, differing) = play.taken();
    assert_eq!(differing, Some(map));
    play.event(Event::CutTaken { token: cut });
    assert_eq!(play.sent_parent(), other.digest);
    play.computed(cut, 5);
    play.take();
    play.acked(cut, 5);
    let record = play.relationship.record();
    assert_eq!((record.state, record.compare, record.transfer_job), (State::Replicating, None, None));
    assert_eq!(record.acked.unwrap().digest, digest(5));
    let actions = play.take();
    let done = Action::FinishJob { job: job(), result: Ok(()) };
    assert!(actions.contains(&Action::ForgetComparison) && actions.contains(&done));
    assert!(actions.iter().any(|a| matches!(a, Action::DropMaps { .. })));
}

#[test]
fn a_comparison_goes_on_after_a_restart_if_the_replica_is_as_it_was() {
    let mut play = Play::resyncing();
    play.opened(holds(theirs(1, 1)));
    let map = play.tracked();
    play.comparing();
    let record = play.relationship.record().clone();
    let mut same = Play::resumed(record.clone(), Timestamp(9));
    same.opened(holds(theirs(1, 1)));
    assert_eq!(same.comparing().1, map, "no new tracking");
    let mut other = Play::resumed(record, Timestamp(9));
    other.opened(holds(theirs(1, 7)));
    assert!(other.tracked() > map);
    assert_eq!(other.comparing().2.digest, digest(7));
}

#[test]
fn tracking_that_is_lost_again_makes_the_comparison_begin_anew() {
    let mut play = Play::resyncing();
    play.opened(holds(theirs(1, 1)));
    let first = play.tracked();
    let (token, ..) = play.comparing();
    let failure = Failure::new(ErrorKind::Resync, ReturnCode::Failed, "the VM was killed");
    play.event(Event::CompareFailed { token, failure: failure.clone() });
    play.wait(60_000);
    play.opened(holds(theirs(1, 1)));
    let second = play.tracked();
    assert!(second > first);
    assert_eq!(play.compared(), second);
    let (token, differing) = play.taken();
    assert_eq!(differing, Some(second));
    play.event(Event::CutFailed { token, failure });
    assert_eq!(play.state(), State::Resynchronizing, "also when the cut finds out");
    play.wait(60_000);
    assert!(play.tracked() > second);
}

#[test]
fn a_repaired_replica_that_could_not_say_so_is_recognised() {
    let mut play = Play::resyncing();
    play.opened(holds(theirs(1, 1)));
    play.tracked();
    play.compared();
    let (token, number, _) = play.cut();
    play.computed(token, 5);
    let record = play.relationship.record().clone();
    let mut play = Play::resumed(record, Timestamp(9));
    play.opened(TargetReport { newest: Some(theirs(number.0, 5)), ..Default::default() });
    let record = play.relationship.record();
    assert_eq!((record.state, record.compare), (State::Replicating, None));
    assert!(play.take().contains(&Action::FinishJob { job: job(), result: Ok(()) }));
}

#[test]
fn a_replica_that_has_nothing_is_copied_to_in_full() {
    let mut play = Play::resyncing();
    play.opened(TargetReport::default());
    assert_eq!(play.state(), State::InitialReplication);
    play.tracked();
    play.copied();
    let (token, ..) = play.cut();
    play.computed(token, 5);
    play.acked(token, 5);
    assert_eq!(play.state(), State::Replicating);
}

#[test]
fn a_resynchronisation_is_stopped_paused_and_resumed() {
    let mut play = Play::resyncing();
    play.opened(holds(theirs(1, 1)));
    let map = play.tracked();
    play.command(Command::Suspend).unwrap();
    assert_eq!(play.state(), State::ResyncSuspended);
    play.take();
    play.wait(3_600_000);
    assert!(play.take().is_empty());
    play.command(Command::Resume).unwrap();
    play.opened(holds(theirs(1, 1)));
    assert_eq!(play.comparing().1, map);
    play.command(Command::StopResync).unwrap();
    assert_eq!((play.state(), play.relationship.record().compare), (State::ResyncRequired, None));
    let actions = play.take();
    assert!(actions.contains(&Action::ForgetComparison));
    assert!(actions.iter().any(|a| matches!(a, Action::FinishJob { result: Err(_), .. })));
    assert!(play.command(Command::StopResync).is_err());
}

#[test]
fn a_resynchronisation_is_refused_where_there_is_nothing_to_compare_or_no_need() {
    let mut play = Play::new();
    assert!(play.command(Command::Resynchronize { transfer_job: job() }).is_err());
    let mut play = Play::replicating();
    let refusal = play.command(Command::Resynchronize { transfer_job: job() }).unwrap_err();
    assert_eq!(refusal.code, ReturnCode::InvalidState);
    play.command(Command::Suspend).unwrap();
    play.command(Command::Resynchronize { transfer_job: job() }).unwrap();
    assert!(play.command(Command::Resynchronize { transfer_job: job() }).is_err(), "twice");
}

#[test]
fn a_replica_that_refuses_meanwhile_is_tried_again_and_the_comparison_goes_on() {
    let mut play = Play::resyncing();
    play.opened(holds(theirs(1, 1)));
    let map = play.tracked();
    play.event(Event::PeerRemoved);
    play.wait(60_000);
    let token = play.take().into_iter().rev().find_map(|a| match a {
        Action::Open { token, .. } => Some(token),
        _ => None,
    });
    let failure = Failure::new(ErrorKind::Refused, ReturnCode::AccessDenied, "no");
    play.event(Event::OpenFailed { token: token.unwrap(), failure });
    assert_eq!(play.state(), State::Critical);
    play.wait(3_600_000);
    play.opened(holds(theirs(1, 1)));
    assert_eq!(play.state(), State::Resynchronizing);
    assert_eq!(play.comparing().1, map);
}
