//! The network between the two hosts: connections that carry bytes in order, late, in part, or not at all.
//!
//! A connection behaves as TCP does: each direction keeps its order, and what was sent before a close arrives before
//! it. Across connections nothing is in order, so what an old session sent can arrive after a new one began. Beyond
//! what TCP can do, single sends (the daemons send whole frames) can be flipped, repeated, exchanged or dropped: that
//! is what a sender's faulty memory, or a middlebox that holds the keys, looks like from the other end.

use std::collections::{BTreeMap, VecDeque};

use understudy_model::{Millis, Timestamp};

use crate::agenda::Agenda;
use crate::chance::Chance;
use crate::world::Happening;

mod weather;

pub use weather::{Mangle, Outage, Weather};

/// Bytes that may be under way in one direction before a sender has to wait: the buffers of two sockets.
const UNDER_WAY_MAX: usize = 256 << 10;
/// Bytes of one connection that are recorded for a later replay.
const RECORDED_MAX: usize = 1 << 20;
/// Connections whose bytes are recorded.
const RECORDINGS: usize = 4;

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

impl std::fmt::Display for ConnId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Who connected: the primary.
    Dialer,
    /// Who was connected to: the replica.
    Listener,
}

impl End {
    /// The other end.
    pub fn other(self) -> End {
        match self {
            End::Dialer => End::Listener,
            End::Listener => End::Dialer,
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// What an end learns.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The connection is made; at the dialer.
    Connected,
    /// Nobody listens; at the dialer.
    Refused,
    /// Somebody connected; at the listener.
    Accepted,
    /// Bytes came.
    Bytes(Vec<u8>),
    /// The other end closed, or the connection broke.
    Closed,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<Arrived>,
    /// Bytes in `queue`.
    under_way: usize,
    /// When the line is free for the next byte.
    free_at: Timestamp,
    /// When the last entry arrives; later ones arrive no earlier.
    last: Timestamp,
    sent: u64,
    /// Nothing is taken in any more.
    is_closed: bool,
    /// A send held back so that it changes places with the next one.
    held: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Conn {
    /// By receiving end.
    to: [Pipe; 2],
    /// Extra delay of this connection's way.
    extra: Millis,
    /// The connection breaks when this many bytes were sent towards this end.
    breaks: Option<(End, u64)>,
    /// Nobody reads what comes back: a recording is being played.
    is_ghost: bool,
    /// Its streams are not what was sent.
    is_mangled: bool,
}

/// All connections.
#[derive(Debug)]
pub struct Net {
    conns: BTreeMap<ConnId, Conn>,
    last: u64,
    weather: Weather,
    chance: Chance,
    /// What was sent to the replica, newest last.
    recorded: VecDeque<(ConnId, Vec<u8>)>,
}

type Entries = Agenda<Happening>;

impl Net {
    /// A network with this weather.
    pub fn new(weather: Weather, chance: Chance) -> Self {
        Self { conns: BTreeMap::new(), last: 0, weather, chance, recorded: VecDeque::new() }
    }

    /// What goes wrong at present.
    pub fn weather(&mut self) -> &mut Weather {
        &mut self.weather
    }

    /// Begins to connect. The dialer learns the outcome, or nothing.
    pub fn dial(&mut self, entries: &mut Entries) -> ConnId {
        self.dial_as(entries, false)
    }

    fn dial_as(&mut self, entries: &mut Entries, is_ghost: bool) -> ConnId {
        self.last += 1;
        let id = ConnId(self.last);
        let extra = self.weather.draw_extra(&mut self.chance);
        let breaks = self.weather.draw_break(&mut self.chance);
        self.conns
            .insert(id, Conn { to: [Pipe::default(), Pipe::default()], extra, breaks, is_ghost, is_mangled: false });
        self.put(id, End::Listener, Arrived::Accepted, entries);
        if !is_ghost {
            self.recorded.push_back((id, Vec::new()));
            if self.recorded.len() > RECORDINGS {
                self.recorded.pop_front();
            }
        }
        id
    }

    /// The listener took the connection, or nobody listens.
    pub fn answer(&mut self, id: ConnId, is_taken: bool, entries: &mut Entries) {
        let answer = if is_taken { Arrived::Connected } else { Arrived::Refused };
        self.put(id, End::Dialer, answer, entries);
        if !is_taken {
            self.seal(id, End::Dialer);
        }
    }

    /// Whether `from` may send more without waiting.
    pub fn has_room(&self, id: ConnId, from: End) -> bool {
        self.conns.get(&id).is_none_or(|conn| conn.to[from.other().index()].under_way < UNDER_WAY_MAX)
    }

    /// Sends bytes, as a rule one frame. What is sent on a connection that is gone goes nowhere, as in a kernel that has
    /// not learnt of it yet.
    pub fn send(&mut self, id: ConnId, from: End, bytes: Vec<u8>, entries: &mut Entries) {
        let to = from.other();
        if to == End::Listener {
            self.record(id, &bytes);
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let sends = match self.weather.mangles(to, &mut self.chance) {
            None => conn.to[to.index()].flush(bytes),
            Some(mangle) => {
                conn.is_mangled = true;
                conn.to[to.index()].mangled(mangle, bytes, &mut self.chance)
            }
        };
        for bytes in sends {
            self.send_one(id, to, bytes, entries);
        }
    }

    fn send_one(&mut self, id: ConnId, to: End, mut bytes: Vec<u8>, entries: &mut Entries) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let sent = conn.to[to.index()].sent;
        let breaks = conn.breaks.filter(|(end, at)| *end == to && sent + bytes.len() as u64 >= *at);
        if let Some((_, at)) = breaks {
            bytes.truncate(at.saturating_sub(sent) as usize);
        }
        self.put(id, to, Arrived::Bytes(bytes), entries);
        if breaks.is_some() {
            self.break_off(id, entries);
        }
    }

    /// One end closes: the other learns it after everything that was sent before.
    pub fn close(&mut self, id: ConnId, from: End, entries: &mut Entries) {
        self.put(id, from.other(), Arrived::Closed, entries);
        self.seal(id, from.other());
        // What is on its way to the end that closed has no reader any more.
        self.seal(id, from);
    }

    /// The connection breaks: both ends learn it.
    pub fn break_off(&mut self, id: ConnId, entries: &mut Entries) {
        for to in [End::Dialer, End::Listener] {
            self.put(id, to, Arrived::Closed, entries);
            self.seal(id, to);
        }
    }

    /// Breaks every connection.
    pub fn break_all(&mut self, entries: &mut Entries) {
        let ids: Vec<_> = self.conns.keys().copied().collect();
        ids.into_iter().for_each(|id| self.break_off(id, entries));
    }

    /// Breaks every connection on which a send was left out or exchanged.
    pub fn break_mangled(&mut self, entries: &mut Entries) {
        let ids: Vec<_> = self.conns.iter().filter(|(_, c)| c.is_mangled).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.break_off(id, entries));
    }

    /// A process ended and its host's kernel says so on all its connections.
    pub fn close_all(&mut self, from: End, entries: &mut Entries) {
        let ids: Vec<_> = self.conns.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close(id, from, entries));
    }

    /// The newest connection that the daemons made.
    pub fn newest(&self) -> Option<ConnId> {
        self.recorded.back().map(|(id, _)| *id)
    }

    /// Plays a recorded connection to the replica once more.
    pub fn replay(&mut self, entries: &mut Entries) -> Option<ConnId> {
        let whole: Vec<_> = self.recorded.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        if whole.is_empty() {
            return None;
        }
        let (_, bytes) = self.chance.pick(&whole);
        let bytes = bytes.clone();
        let id = self.dial_as(entries, true);
        self.put(id, End::Listener, Arrived::Bytes(bytes), entries);
        self.close(id, End::Dialer, entries);
        Some(id)
    }

    /// Sends once more, on the newest connection, a stretch of what an older one carried.
    pub fn inject(&mut self, entries: &mut Entries) -> Option<ConnId> {
        let (into, _) = self.recorded.back()?;
        let into = *into;
        let (_, bytes) = self.chance.pick(self.recorded.make_contiguous());
        let frames = frames(bytes);
        if frames.is_empty() {
            return None;
        }
        let frame = self.chance.pick(&frames).to_vec();
        if let Some(conn) = self.conns.get_mut(&into) {
            conn.is_mangled = true;
        }
        self.put(into, End::Listener, Arrived::Bytes(frame), entries);
        Some(into)
    }

    /// What arrives now at `to`, if anything: a black hole keeps it for later.
    pub fn arrive(&mut self, id: ConnId, to: End, entries: &mut Entries) -> Option<Arrived> {
        let now = entries.now();
        if let Some(until) = self.weather.swallows(id, to, now) {
            let later = until + Millis(self.chance.below(50));
            entries.at(later, Happening::Arrival(id, to));
            return None;
        }
        let conn = self.conns.get_mut(&id)?;
        let pipe = &mut conn.to[to.index()];
        let arrived = pipe.queue.pop_front()?;
        if let Arrived::Bytes(bytes) = &arrived {
            pipe.under_way -= bytes.len();
        }
        let is_ghost = conn.is_ghost && to == End::Dialer;
        if conn.to.iter().all(|p| p.is_closed && p.queue.is_empty()) {
            self.conns.remove(&id);
        }
        (!is_ghost).then_some(arrived)
    }

    fn put(&mut self, id: ConnId, to: End, what: Arrived, entries: &mut Entries) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let pipe = &mut conn.to[to.index()];
        if pipe.is_closed {
            return;
        }
        let len = if let Arrived::Bytes(bytes) = &what { bytes.len() } else { 0 };
        let start = pipe.free_at.max(entries.now());
        pipe.free_at = start + self.weather.time_for(len);
        let arrives = pipe.free_at + conn.extra + self.weather.draw_delay(&mut self.chance);
        pipe.last = pipe.last.max(arrives);
        pipe.under_way += len;
        pipe.sent += len as u64;
        pipe.queue.push_back(what);
        entries.at(pipe.last, Happening::Arrival(id, to));
    }

    fn seal(&mut self, id: ConnId, to: End) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.to[to.index()].is_closed = true;
        }
    }

    fn record(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some((_, kept)) = self.recorded.iter_mut().find(|(conn, _)| *conn == id)
            && kept.len() + bytes.len() <= RECORDED_MAX
        {
            kept.extend_from_slice(bytes);
        }
    }
}

impl Pipe {
    /// What goes out in place of these bytes.
    fn mangled(&mut self, mangle: Mangle, mut bytes: Vec<u8>, chance: &mut Chance) -> Vec<Vec<u8>> {
        match mangle {
            Mangle::Flip => {
                let bit = chance.below(bytes.len() as u64 * 8);
                bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
                self.flush(bytes)
            }
            Mangle::Repeat => self.flush(bytes.clone()).into_iter().chain([bytes]).collect(),
            Mangle::Drop => self.flush(Vec::new()),
            Mangle::Exchange if self.held.is_none() => {
                self.held = Some(bytes);
                Vec::new()
            }
            Mangle::Exchange => self.flush(bytes),
        }
    }

    /// The bytes, and behind them what was held back.
    fn flush(&mut self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        [Some(bytes), self.held.take()].into_iter().flatten().filter(|b| !b.is_empty()).collect()
    }
}

/// A recording cut into frames, by the lengths in their headers.
fn frames(bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while rest.len() >= 16 {
        let payload = u32::from_le_bytes(rest[8..12].try_into().expect("four bytes")) as usize;
        let header = usize::from(u16::from_le_bytes(rest[12..14].try_into().expect("two bytes")));
        let len = header + payload;
        if len == 0 || len > rest.len() {
            break;
        }
        let (frame, more) = rest.split_at(len);
        out.push(frame);
        rest = more;
    }
    out
}
