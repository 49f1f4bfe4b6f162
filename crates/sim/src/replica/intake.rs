//! What a session's data goes through, piece by piece: decode, check, write, seal.
//!
//! An acknowledgement is sent only after the store has returned from sealing.

use std::collections::VecDeque;

use bytes::Bytes;
use understudy_engine::primary::Failure;
use understudy_engine::replica::Record;
use understudy_engine::retention::is_point_due;
use understudy_model::{Cut, CutNumber, CutRef, DiskId, DiskSpec, ErrorKind, Millis, SessionNumber, State, Timestamp};
use understudy_run::{Decoder, Stored, cluster_hash};
use understudy_store::{BaseBytes, BaseReceiver, CrashPoint, CycleDisk, CycleHeader, CycleReceiver, Session};
use understudy_wire::Message;
use understudy_wire::bulk::{BaseRecord, Coding};
use understudy_wire::message::{
    BaseBegin, BasePositions, BaseSync, CycleAcked, CycleBegin, CycleEnd, Position, convert,
};

use super::connection::Connection;
use super::hub::{Fault, Hub, outcome};
use super::{Book, Durable, Timer, wake};
use crate::judge::Depth;
use crate::mutation::Mutation;
use crate::net::ConnId;
use crate::primary::failure;
use crate::stage::{Alive, Stage};

/// Something a session brought.
pub enum Work {
    /// Begin or go on with an initial replication.
    BaseBegin(BaseBegin),
    /// Data of it.
    Base(DiskId, Vec<BaseRecord>),
    /// Make it durable.
    BaseSync(BaseSync),
    /// Begin a cycle.
    CycleBegin(Box<CycleBegin>),
    /// Data of it.
    Batch(DiskId, Bytes),
    /// Seal it.
    CycleEnd(CycleEnd),
    /// Forget it.
    CycleAbandon,
}

/// The queue of a session, and the transfer under way.
#[derive(Default)]
pub struct Intake {
    queue: VecDeque<Work>,
    base: Option<(CutNumber, BaseReceiver)>,
    cycle: Option<CycleReceiver>,
    /// Bulk frames of the transfer under way.
    frames: u64,
    /// The source was told that this session goes no further; whatever still comes is thrown away.
    gave_up: bool,
}

impl Intake {
    /// Puts work behind what is there; true if nothing was.
    pub fn put(&mut self, work: Work) -> bool {
        self.queue.push_back(work);
        self.queue.len() == 1
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Hub {
    /// Deals with the next piece of a connection's work.
    pub(super) fn on_work(&mut self, id: ConnId, book: &mut Book, stage: &mut Stage) -> Alive {
        let Some(mut conn) = self.conns.remove(&id) else { return Ok(()) };
        if let Some(work) = conn.intake.queue.pop_front()
            && !conn.intake.gave_up
        {
            self.deal_with(&mut conn, work, book, stage)?;
        }
        if !conn.intake.is_idle() {
            let pause = Millis(stage.chance.below(4) * stage.slowness);
            wake(stage, self.life, pause, Timer::Intake(id));
        }
        self.keep(conn, stage);
        Ok(())
    }

    fn deal_with(&mut self, conn: &mut Connection, work: Work, book: &mut Book, stage: &mut Stage) -> Alive {
        match outcome(self.work(conn, work, book, stage))? {
            Ok(None) => {}
            Ok(Some(answer)) => {
                self.tell(conn, &answer, stage);
                if let Message::CycleAcked(acked) = &answer {
                    stage.judge.acked(acked);
                    self.prove(stage);
                    let passed = self.vm().map(|vm| vm.passed(CrashPoint::ReceiveAfterAck));
                    self.survive()?;
                    drop(passed);
                }
            }
            Err(failure) => {
                conn.intake.gave_up = true;
                (conn.intake.base, conn.intake.cycle) = (None, None);
                self.survive()?;
                self.refuse(conn, &failure, stage);
            }
        }
        Ok(())
    }

    fn work(
        &mut self,
        conn: &mut Connection,
        work: Work,
        book: &mut Book,
        stage: &mut Stage,
    ) -> Result<Option<Message>, Fault> {
        let session = conn.session.ok_or_else(|| failure::bug("data without a session"))?;
        match work {
            Work::BaseBegin(begin) => self.begin_base(&mut conn.intake, session, &begin).map(Some),
            Work::Base(disk, records) => self.take_base(&mut conn.intake, disk, &records).map(|()| None),
            Work::BaseSync(sync) => self.sync_base(&conn.intake, &sync).map(Some),
            Work::CycleBegin(begin) => self.begin_cycle(&mut conn.intake, session, &begin).map(|()| None),
            Work::Batch(disk, batch) => self.take_batch(&mut conn.intake, disk, &batch).map(|()| None),
            Work::CycleEnd(end) => self.end_cycle(&mut conn.intake, session, &end, book, stage).map(Some),
            Work::CycleAbandon => {
                conn.intake.cycle = None;
                self.survive()?;
                Ok(None)
            }
        }
    }

    fn session(&self, number: SessionNumber) -> Result<Session, Failure> {
        let active = self.active.as_ref().filter(|a| a.number == number);
        active.map(|a| a.store).ok_or_else(|| failure::retry("a newer session was opened"))
    }

    fn begin_base(&mut self, intake: &mut Intake, number: SessionNumber, begin: &BaseBegin) -> Result<Message, Fault> {
        intake.base = None;
        let attempt = CutNumber(begin.attempt);
        let disks = convert::disks(&begin.disks).map_err(|e| failure::failure(ErrorKind::Refused, &e))?;
        let session = self.session(number)?;
        let vm = self.served()?;
        if !same_disks(&vm.report().disks, &disks) {
            return Err(failure::refused("the disks of the copy are not those this replica was made for").into());
        }
        let receiver = vm.begin_base(session, attempt);
        self.survive()?;
        let receiver = receiver.map_err(|e| failure::failure(e.kind(), &e))?;
        let positions = receiver.positions();
        intake.base = Some((attempt, receiver));
        intake.frames = 0;
        Ok(base_positions(attempt, positions))
    }

    fn take_base(&self, intake: &mut Intake, disk: DiskId, records: &[BaseRecord]) -> Result<(), Fault> {
        let (_, receiver) = intake.base.as_ref().ok_or_else(|| failure::bug("base data came without its beginning"))?;
        let mut decoder = Decoder::new().map_err(|e| failure::failure(e.kind(), &e))?;
        let mut buffer = Vec::new();
        for record in records {
            let bytes = match record.coding {
                Coding::Zero => BaseBytes::Zeros(record.len),
                _ => BaseBytes::Data(open_record(record, &mut decoder, &mut buffer)?),
            };
            let written = receiver.write(disk, record.offset, bytes);
            self.survive()?;
            written.map_err(|e| failure::failure(e.kind(), &e))?;
        }
        intake.frames += 1;
        Ok(())
    }

    fn sync_base(&self, intake: &Intake, sync: &BaseSync) -> Result<Message, Fault> {
        let (attempt, receiver) = intake.base.as_ref().ok_or_else(|| failure::bug("a sync came without a copy"))?;
        if sync.frames != intake.frames {
            return Err(lost_frames(sync.frames, intake.frames).into());
        }
        let positions = receiver.sync();
        self.survive()?;
        Ok(base_positions(*attempt, positions.map_err(|e| failure::failure(e.kind(), &e))?))
    }

    fn begin_cycle(&mut self, intake: &mut Intake, number: SessionNumber, begin: &CycleBegin) -> Result<(), Fault> {
        // The copy's files are published by the cycle: nobody may hold them open for writing then.
        (intake.base, intake.cycle) = (None, None);
        self.survive()?;
        let vm = self.served()?;
        let record = self.durable.as_ref().map(|d| d.record.clone());
        let record = record.ok_or_else(|| failure::retry("the replica is gone"))?;
        let header = header(begin, &record, &vm.report().disks)?;
        record.admit_cycle(number, header.parent, vm.newest().map(|cut| cut.id.digest))?;
        let receiver = vm.begin_cycle(self.session(number)?, header);
        self.survive()?;
        intake.cycle = Some(receiver.map_err(|e| failure::failure(e.kind(), &e))?);
        intake.frames = 0;
        Ok(())
    }

    fn take_batch(&self, intake: &mut Intake, disk: DiskId, batch: &Bytes) -> Result<(), Fault> {
        let receiver = intake.cycle.as_mut().ok_or_else(|| failure::bug("cycle data came without its beginning"))?;
        let pushed = receiver.push(disk, batch);
        self.survive()?;
        pushed.map_err(|e| failure::failure(e.kind(), &e))?;
        intake.frames += 1;
        Ok(())
    }

    fn end_cycle(
        &mut self,
        intake: &mut Intake,
        number: SessionNumber,
        end: &CycleEnd,
        book: &mut Book,
        stage: &mut Stage,
    ) -> Result<Message, Fault> {
        let receiver = intake.cycle.take().ok_or_else(|| failure::bug("a cycle ended without its beginning"))?;
        if end.frames != intake.frames {
            return Err(lost_frames(end.frames, intake.frames).into());
        }
        let digest = convert::digest("digest", &end.digest).map_err(|e| failure::failure(ErrorKind::Refused, &e))?;
        let vm = self.served()?;
        let durable = self.durable.clone().ok_or_else(|| failure::retry("the replica is gone"))?;
        let parent = receiver.header().parent;
        durable.record.admit_cycle(number, parent, vm.newest().map(|cut| cut.id.digest))?;
        if stage.makes(Mutation::AcknowledgeUnsealed) {
            return Ok(Message::CycleAcked(CycleAcked { number: end.number, digest: digest.to_string() }));
        }
        let keep = is_due(&vm, &durable.record, receiver.header(), digest);
        stage.judge.seal_begins(digest);
        let sealed = receiver.seal(digest, keep, None);
        self.survive()?;
        let cut = sealed.map_err(|e| failure::failure(e.kind(), &e))?;
        stage.say("replica", format_args!("cut {} is sealed{}", cut.id.number, if keep { " and kept" } else { "" }));
        stage.judge.sealed(&durable.record, &cut);
        self.look(Depth::Newest, stage)?;
        if let Some(next) = durable.record.sealed() {
            // The cut is durable whatever happens here; a state that lags behind is put right at the next start.
            let record = Record { state: next.state, ..durable.record.clone() };
            if let Err(Fault::Died) = self.change(Durable { record, ..durable }, book, stage) {
                return Err(Fault::Died);
            }
        }
        Ok(Message::CycleAcked(CycleAcked { number: cut.id.number.0, digest: cut.id.digest.to_string() }))
    }
}

fn same_disks(ours: &[DiskSpec], theirs: &[DiskSpec]) -> bool {
    ours.len() == theirs.len() && theirs.iter().all(|d| ours.iter().any(|o| o.id == d.id && o.size == d.size))
}

fn header(begin: &CycleBegin, record: &Record, known: &[DiskSpec]) -> Result<CycleHeader, Failure> {
    let unreadable = |e: convert::ConvertError| failure::failure(ErrorKind::Refused, &e);
    let mut disks = Vec::with_capacity(begin.disks.len());
    for disk in &begin.disks {
        let id = DiskId(disk.id);
        convert::check_disk_size(id, disk.size).map_err(unreadable)?;
        let spec = known.iter().find(|d| d.id == id && d.size == disk.size);
        let spec = spec.ok_or_else(|| failure::refused(&format!("{id} is not a disk of this replica")))?;
        disks.push(CycleDisk { spec: spec.clone(), cluster_bits: u32::from(disk.cluster_bits) });
    }
    Ok(CycleHeader {
        generation: record.generation,
        number: CutNumber(begin.number),
        parent: convert::digest("parent", &begin.parent).map_err(unreadable)?,
        taken_at: Timestamp(begin.taken_at),
        consistency: convert::consistency(&begin.consistency).map_err(unreadable)?,
        disks,
    })
}

fn is_due(
    vm: &understudy_store::VmStore,
    record: &Record,
    header: &CycleHeader,
    digest: understudy_model::CutDigest,
) -> bool {
    let last = vm.points().iter().filter(|p| p.kept).map(|p| p.cut.taken_at).next_back();
    let id = CutRef { generation: header.generation, number: header.number, digest };
    let cut = Cut { id, parent: header.parent, taken_at: header.taken_at, consistency: header.consistency };
    is_point_due(&record.settings, last, &cut)
}

fn base_positions(attempt: CutNumber, positions: Vec<(DiskId, u64)>) -> Message {
    let positions = positions.into_iter().map(Position::from).collect();
    Message::BasePositions(BasePositions { attempt: attempt.0, positions })
}

fn lost_frames(sent: u64, received: u64) -> Failure {
    failure::retry(&format!("{sent} parts of the transfer were sent and {received} arrived"))
}

/// Decodes a record and compares it with the hash that was made where it was read.
fn open_record<'a>(
    record: &'a BaseRecord,
    decoder: &mut Decoder,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], Failure> {
    let bytes: &[u8] = match record.coding {
        Coding::Plain => &record.stored,
        _ => {
            buffer.resize(record.len as usize, 0);
            let decoded = decoder.decode(Stored::Compressed, &record.stored, buffer);
            decoded.map_err(|e| failure::failure(ErrorKind::Corrupt, &e))?;
            buffer
        }
    };
    if cluster_hash(record.offset, bytes).0 == record.hash {
        return Ok(bytes);
    }
    let mut failed = failure::retry(&format!("{} bytes at {} arrived damaged", record.len, record.offset));
    failed.kind = ErrorKind::Corrupt;
    Err(failed)
}

/// Whether a state is one in which a first cycle is still awaited.
pub(super) fn awaits_first(state: State) -> bool {
    state == State::InitialReplication
}
