//! What the network does to what it carries, at present.

use understudy_model::{Millis, Timestamp};

use super::{ConnId, End};
use crate::chance::Chance;

/// What becomes of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mangle {
    /// One bit of it is flipped.
    Flip,
    /// It arrives twice.
    Repeat,
    /// It changes places with the next one.
    Exchange,
    /// It is left out.
    Drop,
}

impl Mangle {
    /// Every way.
    pub const ALL: [Mangle; 4] = [Mangle::Flip, Mangle::Repeat, Mangle::Exchange, Mangle::Drop];
}

/// A time in which nothing gets through; it arrives afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// The one connection that is hit, or all.
    pub conn: Option<ConnId>,
    /// The receiving end that nothing gets to, or both.
    pub to: Option<End>,
    /// Its end.
    pub until: Timestamp,
}

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Least delay of anything.
    pub delay: Millis,
    /// What chance adds to it at most.
    pub jitter: Millis,
    /// Bytes that fit on the line in a millisecond.
    pub rate: u64,
    /// Share of connections, in percent, whose way is much longer.
    pub detours: u64,
    /// The next connections break after some bytes: how many of them.
    pub breaks: u32,
    /// Sends towards an end that are mangled: which way, and how many are let through before.
    pub mangle: Option<(Mangle, End, u32)>,
    outages: Vec<Outage>,
}

/// Longest extra delay on a detour: longer than the pause before a new session, shorter than the silence after which a
/// session is given up.
const DETOUR_MAX: u64 = 8_000;
/// Bytes after which a connection breaks at most: a whole cycle of the largest world.
const BREAK_MAX: u64 = 600_000;

impl Weather {
    /// Weather drawn for a run.
    pub fn draw(chance: &mut Chance) -> Self {
        Self {
            delay: Millis(*chance.pick(&[0, 1, 10, 40, 120])),
            jitter: Millis(*chance.pick(&[0, 2, 20, 60])),
            rate: *chance.pick(&[100, 1_000, 10_000, 100_000]),
            detours: *chance.pick(&[0, 0, 10, 30]),
            breaks: 0,
            mangle: None,
            outages: Vec::new(),
        }
    }

    /// Ends everything that is a fault, and all slowness.
    pub fn clear(&mut self, now: Timestamp) {
        (self.delay, self.jitter, self.rate) = (Millis(2), Millis(2), 10_000);
        self.detours = 0;
        self.breaks = 0;
        self.mangle = None;
        for outage in &mut self.outages {
            outage.until = outage.until.min(now);
        }
    }

    /// Begins an outage.
    pub fn begin(&mut self, outage: Outage) {
        self.outages.push(outage);
    }

    /// Until when nothing gets to this end of this connection.
    pub(super) fn swallows(&mut self, id: ConnId, to: End, now: Timestamp) -> Option<Timestamp> {
        self.outages.retain(|outage| outage.until > now);
        let hit = |o: &&Outage| o.conn.is_none_or(|c| c == id) && o.to.is_none_or(|end| end == to);
        self.outages.iter().filter(hit).map(|o| o.until).max()
    }

    pub(super) fn time_for(&self, len: usize) -> Millis {
        Millis(len as u64 / self.rate.max(1))
    }

    pub(super) fn draw_delay(&self, chance: &mut Chance) -> Millis {
        Millis(self.delay.0 + chance.below(self.jitter.0 + 1))
    }

    pub(super) fn draw_extra(&self, chance: &mut Chance) -> Millis {
        if chance.percent(self.detours) { Millis(chance.below(DETOUR_MAX)) } else { Millis(0) }
    }

    /// Where the next connection breaks, if it does. Half of the breaks come early, among the messages.
    pub(super) fn draw_break(&mut self, chance: &mut Chance) -> Option<(End, u64)> {
        if self.breaks == 0 {
            return None;
        }
        self.breaks -= 1;
        let to = *chance.pick(&[End::Listener, End::Listener, End::Dialer]);
        let bytes = if chance.percent(50) { chance.between(1, 4_000) } else { chance.between(1, BREAK_MAX) };
        Some((to, bytes))
    }

    /// What becomes of the next send towards `to`.
    pub(super) fn mangles(&mut self, to: End, _chance: &mut Chance) -> Option<Mangle> {
        let (mangle, end, before) = self.mangle?;
        if end != to {
            return None;
        }
        if before > 0 {
            self.mangle = Some((mangle, end, before - 1));
            return None;
        }
        self.mangle = None;
        Some(mangle)
    }
}
