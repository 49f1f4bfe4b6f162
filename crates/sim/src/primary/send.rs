//! Sends a cycle: what the frozen maps hold, in the clusters that suit its shape, and has it sealed.

use std::collections::VecDeque;

use understudy_engine::primary::{Event, Failure, Token};
use understudy_hypervisor::driver::ImageRecord;
use understudy_model::{Consistency, CutDigest, CutNumber, DiskId, Extent, Millis};
use understudy_run::digest::CutHeader;
use understudy_run::record::BATCH_TARGET_MAX;
use understudy_run::{
    BatchWriter, ClusterKind, Encoded, Geometry, RunDigester, choose_cluster_bits, cluster_hash, cut_digest,
};
use understudy_wire::message::{CycleAcked, CycleBegin, CycleDisk, CycleEnd, convert};
use understudy_wire::{FrameKind, Message, bulk};

use super::Desk;
use super::copy::encoder;
use super::failure::{bug, driver, failure, unexpected};
use super::lane::{Facts, Frozen, Next};
use super::points::Point;
use super::session::{Asker, Session};
use crate::mutation::Mutation;
use crate::stage::{Alive, Stage};

/// Bytes of a disk that go into one frame at most.
const PIECE_MAX: u64 = 128 << 10;

#[derive(PartialEq, Eq)]
enum Phase {
    /// Nothing was said.
    Begin,
    /// Data flows.
    Flow,
    /// Everything was sent and the digest is known; the engine does not know it.
    Computed,
    /// The engine must record the digest first.
    Leave,
    /// The target was asked to seal.
    Asked,
}

/// One disk's part.
struct Part {
    disk: DiskId,
    geometry: Geometry,
    extents: VecDeque<Extent>,
    digester: RunDigester,
}

/// A cycle on its way.
pub struct Send {
    token: Token,
    number: CutNumber,
    parent: CutDigest,
    facts: Facts,
    cut: Option<Frozen>,
    images: Vec<ImageRecord>,
    phase: Phase,
    parts: Vec<Part>,
    frames: u64,
    digest: CutDigest,
    began_at: u64,
    sent: u64,
}

impl Send {
    /// The images at its cut.
    pub fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    /// A cycle that nothing was sent of.
    pub fn begin(token: Token, number: CutNumber, parent: CutDigest, facts: Facts) -> Self {
        Self {
            token,
            number,
            parent,
            facts,
            cut: None,
            images: Vec::new(),
            phase: Phase::Begin,
            parts: Vec::new(),
            frames: 0,
            digest: CutDigest::ZERO,
            began_at: 0,
            sent: 0,
        }
    }

    /// The same, from this cut.
    pub fn with(mut self, cut: Frozen) -> Self {
        self.images = cut.images.clone();
        self.cut = Some(cut);
        self
    }

    /// Gives the cut back.
    pub fn into_cut(self) -> Option<Frozen> {
        self.cut
    }

    /// How it failed.
    pub fn failed(&self, failure: Failure) -> Event {
        Event::CycleFailed { token: self.token, failure }
    }

    /// A mistake made on purpose: what was asked for is taken for done.
    pub fn believed(&self) -> Event {
        Event::CycleAcked { token: self.token, digest: self.digest, bytes: self.sent }
    }

    /// Does the next piece.
    pub fn go_on(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Alive<Next> {
        let next = match self.phase {
            Phase::Begin => self.announce(desk, session),
            Phase::Flow => {
                if !session.has_room(desk.stage) {
                    return Ok(Next::Again(Millis(20)));
                }
                desk.stage.pass(if self.frames == 0 { Point::FirstFrame } else { Point::MidFrames })?;
                let next = self.flow(desk, session);
                if self.phase == Phase::Computed {
                    desk.stage.pass(Point::LastFrame)?;
                }
                next
            }
            Phase::Computed | Phase::Leave | Phase::Asked => Ok(Next::Wait),
        };
        Ok(next.unwrap_or_else(|failure| Next::Done(self.failed(failure))))
    }

    fn announce(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Result<Next, Failure> {
        let cut = self.cut.as_ref().ok_or_else(|| bug("there is no cut to send"))?;
        for spec in &self.facts.disks {
            let dirty = desk.vm.dirty(cut.id, spec.id).map_err(|e| driver(&e))?;
            let bits = choose_cluster_bits(&dirty, spec.size);
            let geometry = Geometry::new(spec.size, bits).map_err(|e| failure(e.kind(), &e))?;
            let extents = dirty.aligned(geometry.cluster_size(), spec.size).iter().collect();
            self.parts.push(Part { disk: spec.id, geometry, extents, digester: RunDigester::new(geometry) });
        }
        let disk = |p: &Part| CycleDisk {
            id: p.disk.0,
            size: p.geometry.virtual_size(),
            cluster_bits: p.geometry.cluster_bits() as u8,
        };
        let begin = Message::CycleBegin(Box::new(CycleBegin {
            number: self.number.0,
            parent: self.parent.to_string(),
            taken_at: cut.taken_at.0,
            consistency: convert::consistency_word(Consistency::Standard).to_owned(),
            disks: self.parts.iter().map(disk).collect(),
            definition: None,
        }));
        self.began_at = session.sent();
        session.tell(&begin, desk.stage)?;
        self.phase = Phase::Flow;
        Ok(Next::Again(Millis(desk.stage.chance.below(4))))
    }

    fn flow(&mut self, desk: &mut Desk<'_>, session: &mut Session) -> Result<Next, Failure> {
        let Some(index) = self.parts.iter().position(|p| !p.extents.is_empty()) else {
            self.compute(desk, session)?;
            return Ok(Next::Wait);
        };
        let limit = desk.stage.chance.between(1, PIECE_MAX >> 12) << 12;
        let part = &mut self.parts[index];
        let extent = part.extents.pop_front().ok_or_else(|| bug("a part has no extents"))?;
        let limit = limit.next_multiple_of(part.geometry.cluster_size());
        let piece = Extent::new(extent.offset, extent.len.min(limit));
        if piece.len < extent.len {
            part.extents.push_front(Extent::new(piece.end(), extent.len - piece.len));
        }
        let cut = self.cut.as_ref().ok_or_else(|| bug("the cut is gone"))?;
        let live = self.facts.disks.iter().find(|d| d.id == part.disk && desk.stage.makes(Mutation::LiveDataSent));
        let read = match live {
            Some(spec) => desk.vm.read_live(spec, piece),
            None => desk.vm.read_frozen(cut.id, part.disk, piece),
        };
        let bytes = read.map_err(|e| driver(&e))?;
        let batch = pack(part, piece, &bytes, self.facts.compression)?;
        let payload = bulk::write_cycle(part.disk, &batch);
        session.bulk(FrameKind::CycleData, self.frames, payload, desk.stage)?;
        self.frames += 1;
        Ok(Next::Again(Millis(desk.stage.chance.below(6))))
    }

    fn compute(&mut self, desk: &mut Desk<'_>, session: &Session) -> Result<(), Failure> {
        let cut = self.cut.as_ref().ok_or_else(|| bug("the cut is gone"))?;
        desk.vm.ensure_intact(cut.id).map_err(|e| driver(&e))?;
        let header = CutHeader {
            vm: self.facts.vm,
            generation: self.facts.generation,
            number: self.number,
            taken_at: cut.taken_at,
            consistency: Consistency::Standard,
        };
        let parts = std::mem::take(&mut self.parts);
        let runs: Vec<_> =
            parts.into_iter().map(|p| (p.disk, p.geometry.virtual_size(), p.digester.finish())).collect();
        self.digest = cut_digest(self.parent, &header, &runs);
        self.sent = session.sent() - self.began_at;
        self.phase = Phase::Computed;
        desk.stage.judge.cycle_computed(self.facts.generation, self.number, self.parent, self.digest);
        Ok(())
    }

    /// If everything was sent just now: what the engine is told, and the cut, which is not needed any more.
    pub fn computed(&mut self) -> (Option<Event>, Option<Frozen>) {
        if self.phase != Phase::Computed {
            return (None, None);
        }
        self.phase = Phase::Leave;
        (Some(Event::CycleComputed { token: self.token, digest: self.digest }), self.cut.take())
    }

    /// The engine has recorded the digest.
    pub fn conclude(&mut self, token: Token, session: &mut Session, stage: &mut Stage) -> Next {
        if token != self.token || self.phase != Phase::Leave {
            return Next::Wait;
        }
        self.phase = Phase::Asked;
        let end = CycleEnd { number: self.number.0, frames: self.frames, digest: self.digest.to_string() };
        match session.request(Asker::Lane, Message::CycleEnd(end), stage) {
            Ok(()) => Next::Wait,
            Err(failure) => Next::Done(self.failed(failure)),
        }
    }

    /// The target sealed it, or did not.
    pub fn on_answer(&mut self, answer: Result<Message, Failure>) -> Next {
        let event = match answer {
            Ok(Message::CycleAcked(CycleAcked { number, digest })) if number == self.number.0 => match digest.parse() {
                Ok(digest) => Event::CycleAcked { token: self.token, digest, bytes: self.sent },
                Err(_) => self.failed(bug("the acknowledgement names no digest")),
            },
            Ok(other) => self.failed(unexpected(&other)),
            Err(failure) => self.failed(failure),
        };
        Next::Done(event)
    }
}

/// Packs a piece of a disk into one batch, and adds it to the digest.
fn pack(part: &mut Part, piece: Extent, bytes: &[u8], compression: bool) -> Result<Vec<u8>, Failure> {
    let wrong = |e: understudy_run::digest::OrderError| failure(e.kind(), &e);
    let size = part.geometry.cluster_size() as usize;
    let mut encoder = encoder(compression);
    let mut writer = BatchWriter::new(part.geometry, BATCH_TARGET_MAX);
    let mut padded = vec![0; size];
    for (i, raw) in bytes.chunks(size).enumerate() {
        let address = piece.offset + (i * size) as u64;
        // The last cluster of a disk may be cut short by its end; it is padded with zeros.
        padded[..raw.len()].copy_from_slice(raw);
        padded[raw.len()..].fill(0);
        let encoded = encoder.encode(&padded);
        let kind = match encoded {
            Encoded::Zero => ClusterKind::Zero,
            _ => ClusterKind::Data(cluster_hash(address, &padded)),
        };
        writer.push_encoded(address, encoded, &padded).map_err(wrong)?;
        part.digester.push(address, kind).map_err(wrong)?;
    }
    Ok(writer.take().unwrap_or_default())
}
