//! The daemon on the replica: the store, the record, the connections.

use std::collections::BTreeMap;
use std::sync::Arc;

use understudy_engine::primary::Failure;
use understudy_model::{ErrorKind, Millis, RelationshipId, ReturnCode, SessionNumber, VmId};
use understudy_store::files::{Crash, Files, MemFiles};
use understudy_store::{FailoverId, PointReader, Session, Store, StoreOptions, VmStore};
use understudy_wire::Message;
use understudy_wire::message::Notice;

use super::connection::Connection;
use super::{Book, Durable, Timer, wake};
use crate::judge::Depth;
use crate::net::{Arrived, ConnId, End};
use crate::stage::{Alive, Died, Stage};

/// The session in force.
pub(super) struct Active {
    pub number: SessionNumber,
    pub store: Session,
    pub conn: ConnId,
}

/// See the module's description.
pub struct Hub {
    pub(super) store: Store,
    pub(super) durable: Option<Durable>,
    pub(super) conns: BTreeMap<ConnId, Connection>,
    pub(super) active: Option<Active>,
    pub(super) life: u32,
    /// Points that somebody reads at present.
    pub(super) readers: Vec<PointReader>,
    /// The drill under way.
    pub(super) test: Option<FailoverId>,
    /// The disk below the store: whether it still takes anything tells whether this daemon lives.
    pub(super) disk: MemFiles,
}

impl Hub {
    /// Opens the store and takes up what is recorded.
    pub fn open(
        disk: MemFiles,
        files: Arc<dyn Files>,
        options: StoreOptions,
        life: u32,
        durable: Option<Durable>,
        stage: &mut Stage,
    ) -> Result<Self, String> {
        let store = Store::open(files, options).map_err(|e| crate::primary::chain(&e))?;
        if store.list().is_empty() {
            stage.say("replica", format_args!("finds no replica in its store"));
        }
        for (vm, cause, kind) in store.unopened() {
            stage.say("replica", format_args!("{vm} cannot be opened: {kind:?}: {cause}"));
        }
        Ok(Self { store, durable, conns: BTreeMap::new(), active: None, life, readers: Vec::new(), test: None, disk })
    }

    /// The first look around: what a crash left half-way is brought to an end.
    pub fn begin(&mut self, book: &mut Book, stage: &mut Stage) -> Alive {
        self.take_up(book, stage)?;
        wake(stage, self.life, Millis(500), Timer::Upkeep);
        let depth = if stage.chance.percent(40) { Depth::Twice } else { Depth::All };
        self.look(depth, stage)
    }

    /// The record, if there is a replica.
    pub fn durable(&self) -> Option<&Durable> {
        self.durable.as_ref()
    }

    /// The VM's store.
    pub fn vm(&self) -> Option<Arc<VmStore>> {
        self.store.list().into_iter().next()
    }

    /// The VM of the relationship, also if the store cannot open it.
    pub(super) fn vm_id(&self) -> Option<VmId> {
        let listed = self.store.list().first().map(|vm| vm.id());
        listed.or_else(|| self.store.unopened().first().map(|(vm, ..)| *vm))
    }

    /// Dies if the disk or a crash point says so; to be asked after each call into the store.
    pub(super) fn survive(&self) -> Alive {
        if self.disk.free_space().is_err() { Err(Died) } else { Ok(()) }
    }

    /// Something is due.
    pub fn on_timer(&mut self, timer: Timer, book: &mut Book, stage: &mut Stage) -> Alive {
        match timer {
            Timer::Intake(conn) => self.on_work(conn, book, stage),
            Timer::Silence(conn) => self.on_silence(conn, stage),
            Timer::Upkeep => self.on_upkeep(book, stage),
        }
    }

    /// Something came over a connection.
    pub fn on_arrival(&mut self, conn: ConnId, arrived: Arrived, book: &mut Book, stage: &mut Stage) -> Alive {
        match arrived {
            Arrived::Accepted => {
                stage.net.answer(conn, true, &mut stage.agenda);
                self.conns.insert(conn, Connection::new(conn, stage.now()));
                wake(stage, self.life, super::connection::GREETING, Timer::Silence(conn));
                Ok(())
            }
            Arrived::Bytes(bytes) => self.on_bytes(conn, &bytes, book, stage),
            Arrived::Closed => self.on_closed(conn, stage),
            Arrived::Connected | Arrived::Refused => Ok(()),
        }
    }

    /// Makes the next record durable, then lets it count.
    pub(super) fn change(&mut self, next: Durable, book: &mut Book, stage: &mut Stage) -> Result<(), Fault> {
        if self.durable.as_ref() == Some(&next) {
            return Ok(());
        }
        if book.dies(false) {
            return Err(Fault::Died);
        }
        if book.is_full {
            let reason = "the state directory cannot be written";
            return Err(Failure::new(ErrorKind::Retry, ReturnCode::NotAvailable, reason).into());
        }
        stage.judge.replica_persisted(self.durable.as_ref().map(|d| &d.record), &next.record);
        book.durable = Some(next.clone());
        self.durable = Some(next);
        if book.dies(true) { Err(Fault::Died) } else { Ok(()) }
    }

    /// The record, or a refusal.
    pub(super) fn record(&self, id: RelationshipId) -> Result<&Durable, Failure> {
        self.durable.as_ref().filter(|d| d.record.id == id && !self.has_lost_its_files()).ok_or_else(|| {
            let reason = format!("this host has no replica of VM {} from the caller", id.vm);
            Failure::new(ErrorKind::Refused, ReturnCode::AccessDenied, reason)
        })
    }

    /// Whether there is a record and no replica: a removal was cut short after the files had gone. Nobody is let in,
    /// and the operator removes the rest.
    pub fn has_lost_its_files(&self) -> bool {
        self.durable.is_some() && self.vm_id().is_none()
    }

    /// The store of the VM, or a refusal.
    pub(super) fn served(&self) -> Result<Arc<VmStore>, Failure> {
        self.vm().ok_or_else(|| {
            let reason = "the replica's files cannot be opened";
            Failure::new(ErrorKind::Operator, ReturnCode::Failed, reason)
        })
    }

    /// Tells the source something unasked, if one is connected.
    pub(super) fn notify(&self, notice: Notice, stage: &mut Stage) {
        if let Some(active) = &self.active {
            self.say(active.conn, &Message::Notice(notice), active.number.0, stage);
        }
    }

    pub(super) fn say(&self, conn: ConnId, message: &Message, session: u64, stage: &mut Stage) {
        let bytes = message.to_frame(understudy_wire::VERSIONS.1, session).to_bytes();
        stage.net.send(conn, End::Listener, bytes, &mut stage.agenda);
    }

    /// Ends the session in force, whichever it is.
    pub(super) fn end_session(&mut self, stage: &mut Stage) {
        if let Some(active) = self.active.take() {
            self.stop_reading(active.conn, stage);
        }
    }

    /// Lets the judge look at what the store shows.
    pub(super) fn look(&self, depth: Depth, stage: &mut Stage) -> Alive {
        if let Some(vm) = self.vm() {
            stage.judge.check_points(&vm, &self.disk, depth);
        }
        self.survive()
    }
}

/// Why something was not done: the peer is told, or there is nobody left to tell it.
#[derive(Debug)]
pub(super) enum Fault {
    Died,
    Failed(Box<Failure>),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Fault::Failed(Box::new(failure))
    }
}

impl From<Box<Failure>> for Fault {
    fn from(failure: Box<Failure>) -> Self {
        Fault::Failed(failure)
    }
}

impl From<Died> for Fault {
    fn from(_: Died) -> Self {
        Fault::Died
    }
}

/// The failure, unless the daemon died.
pub(super) fn outcome<T>(result: Result<T, Fault>) -> Alive<Result<T, Failure>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Fault::Failed(failure)) => Ok(Err(*failure)),
        Err(Fault::Died) => Err(Died),
    }
}

/// Opens a copy of the disk as a power cut at this instant would leave it, with all that was not synced lost.
fn after_power_cut(disk: &MemFiles) -> Result<(Store, MemFiles), String> {
    let copy = disk.fork();
    copy.crash(Crash::LostAll);
    let options = StoreOptions { reserve: 0, receive_floor: 0, ..StoreOptions::default() };
    let store = Store::open(Arc::new(copy.clone()), options).map_err(|e| crate::primary::chain(&e))?;
    Ok((store, copy))
}

impl Hub {
    /// What is acknowledged at this instant must survive a power cut at this instant.
    pub(super) fn prove(&self, stage: &mut Stage) {
        if !stage.chance.percent(PROVE_PERCENT) {
            return;
        }
        match after_power_cut(&self.disk) {
            Ok((store, copy)) => {
                let vm = store.list().into_iter().next();
                let is_whole = self.vm().is_some_and(|vm| vm.report().damage.is_empty());
                stage.judge.check_durable(vm.as_ref(), &copy, is_whole);
            }
            Err(cause) => stage.judge.not_durable(&cause),
        }
    }
}

/// Share of acknowledgements that are proven: each opens a whole store.
const PROVE_PERCENT: u64 = 25;
