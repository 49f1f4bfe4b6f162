//! The copy of an initial replication: the live disks, from a durable position on, into the target's staging.

use understudy_engine::primary::{Event, Failure, Token};
use understudy_model::{CutNumber, DiskId, DiskSpec, Extent, Millis, Timestamp};
use understudy_run::{Encoded, Encoder, cluster_hash};
use understudy_wire::bulk::{BaseWriter, Coding};
use understudy_wire::message::{BaseBegin, BasePositions, BaseSync, Disk, Position};
use understudy_wire::{FrameKind, Message};

use super::Desk;
use super::failure::{bug, driver, unexpected};
use super::lane::{Facts, Next};
use super::points::Point;
use super::session::{Asker, Session};
use crate::stage::{Alive, Stage};

/// Pieces are whole blocks of this size, save at the end of a disk: what the store's initial copy is made of.
const BLOCK: u64 = 64 << 10;
/// Time after which the target is asked to make what it has durable.
const SYNC_EVERY: Millis = Millis(400);

enum Phase {
    /// The target is to say how far it is.
    Begin,
    /// Data flows.
    Flow,
    /// The target is to say that it has everything.
    End,
}

/// A copy under way.
pub struct Copy {
    token: Token,
    attempt: CutNumber,
    facts: Facts,
    phase: Phase,
    is_asked: bool,
    frames: u64,
    sent: Vec<(DiskId, u64)>,
    synced_at: Timestamp,
    is_first: bool,
}

impl Copy {
    /// A copy that has not begun.
    pub fn new(token: Token, attempt: CutNumber, facts: Facts) -> Self {
        Self {
            token,
            attempt,
            facts,
            phase: Phase::Begin,
            is_asked: false,
            frames: 0,
            sent: Vec::new(),
            synced_at: Timestamp(0),
            is_first: true,
        }
    }

    /// How it failed.
    pub fn failed(&self, failure: Failure) -> Event {
        Event::BaseFailed { token: self.token, failure }
    }

    /// Does the next piece.
    pub fn go_on(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Alive<Next> {
        let next = match self.phase {
            Phase::Begin => {
                let disks: Vec<Disk> = self.facts.disks.iter().map(Disk::from).collect();
                let begin = Message::BaseBegin(BaseBegin { attempt: self.attempt.0, disks, seeded: false });
                self.ask(begin, session, desk.stage)
            }
            Phase::Flow => return self.flow(desk, session),
            Phase::End => Ok(Next::Wait),
        };
        Ok(next.unwrap_or_else(|failure| Next::Done(self.failed(failure))))
    }

    fn ask(&mut self, message: Message, session: &mut Session, stage: &mut Stage) -> Result<Next, Failure> {
        session.request(Asker::Lane, message, stage)?;
        self.is_asked = true;
        Ok(Next::Wait)
    }

    /// Takes the target's answer in.
    pub fn on_answer(&mut self, answer: Result<Message, Failure>, desk: &mut Desk<'_>) -> Next {
        self.is_asked = false;
        let positions = answer.and_then(|answer| positions(answer, self.attempt));
        let positions = match positions {
            Ok(positions) => positions,
            Err(failure) => return Next::Done(self.failed(failure)),
        };
        match self.phase {
            Phase::Begin => {
                self.sent = self.facts.disks.iter().map(|d| (d.id, position_of(&positions, d))).collect();
                self.synced_at = desk.stage.now();
                self.phase = Phase::Flow;
                Next::Again(Millis(0))
            }
            // The flow has its own timer.
            Phase::Flow => Next::Again(Millis(1)),
            Phase::End => {
                let is_whole = self.facts.disks.iter().all(|d| position_of(&positions, d) == d.size);
                let event = if is_whole {
                    Event::BaseCopied { token: self.token }
                } else {
                    self.failed(bug("the target did not make the whole copy durable"))
                };
                Next::Done(event)
            }
        }
    }

    fn flow(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Alive<Next> {
        if !session.has_room(desk.stage) {
            return Ok(Next::Again(Millis(20)));
        }
        let next = self.sent.iter().position(|(id, at)| self.facts.disks.iter().any(|d| d.id == *id && *at < d.size));
        let Some(index) = next else { return Ok(self.end(desk, session)) };
        desk.stage.pass(if self.is_first { Point::FirstExtent } else { Point::MidExtent })?;
        self.is_first = false;
        let (id, at) = self.sent[index];
        let Some(spec) = self.facts.disks.iter().find(|d| d.id == id).cloned() else {
            return Ok(Next::Done(self.failed(bug("a disk is missing from the copy"))));
        };
        let blocks = desk.stage.chance.between(1, 4);
        let extent = Extent::new(at, (spec.size - at).min(blocks * BLOCK));
        if let Err(failure) = self.send_piece(&spec, extent, desk, session) {
            return Ok(Next::Done(self.failed(failure)));
        }
        self.sent[index].1 = extent.end();
        if !self.is_asked
            && desk.stage.now() - self.synced_at >= SYNC_EVERY
            && let Err(failure) = self.ask_for_sync(desk, session)
        {
            return Ok(Next::Done(self.failed(failure)));
        }
        Ok(Next::Again(Millis(desk.stage.chance.below(8))))
    }

    fn send_piece(
        &mut self,
        spec: &DiskSpec,
        extent: Extent,
        desk: &mut Desk<'_>,
        session: &mut Session,
    ) -> Result<(), Failure> {
        let bytes = desk.vm.read_live(spec, extent).map_err(|e| driver(&e))?;
        let mut encoder = encoder(self.facts.compression);
        let mut writer = BaseWriter::new(spec.id);
        for (i, block) in bytes.chunks(BLOCK as usize).enumerate() {
            let (offset, len) = (extent.offset + i as u64 * BLOCK, block.len() as u64);
            let full = match encoder.encode(block) {
                Encoded::Zero => writer.push(offset, len, Coding::Zero, [0; 32], &[]),
                Encoded::Compressed(packed) => {
                    writer.push(offset, len, Coding::Zstd, cluster_hash(offset, block).0, packed)
                }
                Encoded::Plain => writer.push(offset, len, Coding::Plain, cluster_hash(offset, block).0, block),
            };
            debug_assert!(full.is_none(), "a few blocks do not fill a payload");
        }
        let Some(payload) = writer.finish() else { return Ok(()) };
        session.bulk(FrameKind::BaseData, self.frames, payload, desk.stage)?;
        self.frames += 1;
        Ok(())
    }

    fn ask_for_sync(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Result<Next, Failure> {
        self.synced_at = desk.stage.now();
        let positions = self.sent.iter().map(|p| Position::from(*p)).collect();
        self.ask(Message::BaseSync(BaseSync { frames: self.frames, positions }), session, desk.stage)
    }

    fn end(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Next {
        if self.is_asked {
            return Next::Wait;
        }
        self.phase = Phase::End;
        self.ask_for_sync(desk, session).unwrap_or_else(|failure| Next::Done(self.failed(failure)))
    }
}

/// An encoder as the relationship's settings want it.
pub fn encoder(compression: bool) -> Encoder {
    if compression { Encoder::new(1).unwrap_or_else(|_| Encoder::plain()) } else { Encoder::plain() }
}

fn positions(answer: Message, attempt: CutNumber) -> Result<Vec<Position>, Failure> {
    match answer {
        Message::BasePositions(BasePositions { attempt: a, positions }) if a == attempt.0 => Ok(positions),
        other => Err(unexpected(&other)),
    }
}

fn position_of(positions: &[Position], disk: &DiskSpec) -> u64 {
    positions.iter().find(|p| p.disk == disk.id.0).map_or(0, |p| p.offset.min(disk.size))
}
