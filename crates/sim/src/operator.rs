//! What operators do: at random while faults strike, and to put things right.

use understudy_engine::primary::{Command, InitialKind, Record};
use understudy_model::{Generation, JobId, Millis, RelationshipId, State, VmId};
use uuid::Uuid;

use crate::primary::Ticket;
use crate::replica::Wish;
use crate::temper::draw_settings;
use crate::world::World;

/// A kind of deed; what exactly is asked for is drawn when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what is asked for")]
pub enum Deed {
    PutRight,
    Suspend,
    Resume,
    Modify,
    StopInitial,
    Start,
    RemovePrimary,
    ReplicaSuspend,
    ReplicaResume,
    FailOver,
    FailOverTo,
    Revert,
    Commit,
    Test,
    EndTest,
    RemoveReplica,
}

impl Deed {
    /// Every kind, and how often it comes in an even mixture.
    pub const ALL: &[(Deed, u64)] = &[
        (Deed::PutRight, 30),
        (Deed::Suspend, 4),
        (Deed::Resume, 8),
        (Deed::Modify, 6),
        (Deed::StopInitial, 1),
        (Deed::Start, 3),
        (Deed::RemovePrimary, 1),
        (Deed::ReplicaSuspend, 3),
        (Deed::ReplicaResume, 6),
        (Deed::FailOver, 3),
        (Deed::FailOverTo, 2),
        (Deed::Revert, 8),
        (Deed::Commit, 1),
        (Deed::Test, 3),
        (Deed::EndTest, 5),
        (Deed::RemoveReplica, 1),
    ];
}

/// What an operator can be granted, by name.
pub const DONE: &[&str] = &[
    "Create",
    "Start",
    "StopInitial",
    "Suspend",
    "Resume",
    "Modify",
    "Remove",
    "ReplicaSuspend",
    "ReplicaResume",
    "FailOver",
    "FailOverTo",
    "Revert",
    "Commit",
    "Test",
    "EndTest",
    "ReplicaRemove",
];

/// The name of a command in [`DONE`].
pub fn name_of_command(command: &Command) -> &'static str {
    match command {
        Command::Start { .. } => "Start",
        Command::StopInitial => "StopInitial",
        Command::Suspend => "Suspend",
        Command::Resume => "Resume",
        Command::Resynchronize { .. } => "Resynchronize",
        Command::StopResync => "StopResync",
        Command::ResetStats => "ResetStats",
        Command::Modify(_) => "Modify",
        Command::Remove => "Remove",
    }
}

/// The name of a wish in [`DONE`].
pub fn name_of_wish(wish: Wish) -> &'static str {
    match wish {
        Wish::Suspend => "ReplicaSuspend",
        Wish::Resume => "ReplicaResume",
        Wish::FailOver => "FailOver",
        Wish::FailOverTo(_) => "FailOverTo",
        Wish::Revert => "Revert",
        Wish::Commit => "Commit",
        Wish::Test(_) => "Test",
        Wish::EndTest => "EndTest",
        Wish::Remove => "ReplicaRemove",
    }
}

/// The VM of every world.
pub fn vm_id() -> VmId {
    VmId(Uuid::from_u128(0x7f2c_0b6e_0000_4000_8000_0123_4567_89ab))
}

impl World {
    /// Draws a deed and does it.
    pub(crate) fn do_something(&mut self) {
        let Some(index) = self.chance.weighted(&self.temper.deeds.clone()) else { return self.put_right() };
        let (deed, _) = Deed::ALL[index];
        let any = self.chance.below(24) as usize;
        match deed {
            Deed::PutRight => self.put_right(),
            Deed::Suspend => self.command(Command::Suspend),
            Deed::Resume => self.command(Command::Resume),
            Deed::Modify => {
                let interval = self.interval();
                let mut settings = draw_settings(interval, &mut self.chance);
                if self.chance.percent(30) {
                    settings.interval = Millis(*self.chance.pick(&[500, 1_000, 2_000, 5_000, 901_000]));
                }
                self.command(Command::Modify(settings));
            }
            Deed::StopInitial => self.command(Command::StopInitial),
            Deed::Start => self.start_transfer(),
            Deed::RemovePrimary => self.command(Command::Remove),
            Deed::ReplicaSuspend => self.wish(Wish::Suspend),
            Deed::ReplicaResume => self.wish(Wish::Resume),
            Deed::FailOver => self.wish(Wish::FailOver),
            Deed::FailOverTo => self.wish(Wish::FailOverTo(any)),
            Deed::Revert => self.wish(Wish::Revert),
            Deed::Commit => self.wish(Wish::Commit),
            Deed::Test => self.wish(Wish::Test(any)),
            Deed::EndTest => self.wish(Wish::EndTest),
            Deed::RemoveReplica => self.wish(Wish::Remove),
        }
    }

    /// Takes the next step towards a relationship that replicates.
    pub(crate) fn put_right(&mut self) {
        if !self.primary.is_up() || !self.replica.is_up() {
            return;
        }
        let ours = self.primary.book.record().map(|r| r.state);
        let theirs = self.replica.durable().map(|d| d.record.state);
        if self.replica.has_lost_its_files() {
            return self.wish(Wish::Remove);
        }
        match (ours, theirs) {
            (None, None) => self.create(),
            // A place may have been made without our learning of it: asking again finds that out.
            (None, Some(State::InitialReplication)) if self.chance.percent(50) => self.create(),
            (_, Some(State::FailedOver)) => {
                let wish = if self.chance.percent(85) { Wish::Revert } else { Wish::Commit };
                self.wish(wish);
            }
            (None, Some(_)) => self.wish(Wish::Remove),
            (Some(_), Some(State::Committed)) | (Some(State::ResyncRequired), _) => self.command(Command::Remove),
            (Some(State::Ready), None) => self.command(Command::Remove),
            (Some(State::Critical), None) => self.command(Command::Remove),
            (Some(State::Ready), _) => self.start_transfer(),
            (Some(State::Suspended), _) => self.command(Command::Resume),
            (_, Some(State::Suspended)) => self.wish(Wish::Resume),
            _ => {}
        }
    }

    /// Whether something waits for a decision that only an operator takes.
    pub(crate) fn waits_for_operator(&self) -> bool {
        let ours = self.primary.book.record().map(|r| r.state);
        let theirs = self.replica.book.durable.as_ref().map(|d| d.record.state);
        let at_rest = |state| matches!(state, State::Ready | State::Suspended | State::ResyncRequired);
        ours.is_none_or(at_rest)
            || self.replica.has_lost_its_files()
            || theirs.is_none_or(|s| matches!(s, State::FailedOver | State::Committed | State::Suspended))
    }

    fn create(&mut self) {
        self.generation = self.generation.next();
        let id = RelationshipId::first(vm_id());
        let disks = self.temper.disks.iter().map(|(spec, _)| spec.clone()).collect();
        let record = Record::new(id, self.generation, disks, self.temper.settings.clone());
        self.stage.judge.new_relationship();
        self.primary.create(record, &mut self.stage);
    }

    fn start_transfer(&mut self) {
        // Where the job cannot be recorded, nothing is begun.
        if self.primary.book.record().is_none() || !self.primary.is_up() || self.primary.book.is_full {
            return;
        }
        self.tickets += 1;
        let job = JobId(Uuid::from_u128(u128::from(self.tickets)));
        self.stage.judge.job_begun(job);
        self.primary.book.begin_job(job);
        self.command(Command::Start { transfer_job: job, kind: InitialKind::Network });
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.tickets += 1;
        self.stage.say("operator", format_args!("primary: {command:?}"));
        self.primary.command(&mut self.stage, Ticket(self.tickets), command);
        self.after_primary();
    }

    pub(crate) fn wish(&mut self, wish: Wish) {
        self.replica.wish(&mut self.stage, wish);
        self.after_replica();
    }

    pub(crate) fn interval(&self) -> Millis {
        self.primary.book.record().map_or(self.temper.settings.interval, |r| r.settings.interval)
    }

    /// The highest generation any relationship of this world was created in.
    pub(crate) fn first_generation() -> Generation {
        Generation(0)
    }
}
