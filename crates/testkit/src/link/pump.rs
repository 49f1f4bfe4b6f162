//! Carries one direction of one connection: a thread that reads and stamps, a thread that waits and writes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Connection, Direction, Shared, State};

/// Pieces are small against any rate worth testing: at 1 MB/s one takes 16 ms.
const PIECE_BYTES: usize = 16 << 10;
/// What one direction of a connection may have under way: 4 MiB, more than 100 Mbit/s hold in 200 ms.
const PIECES_MAX: usize = 256;
/// How often a thread that waits on a socket looks whether its connection is dead.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A piece and when it came in; an empty one is the end of the stream.
type Piece = (Instant, Vec<u8>);

#[derive(Debug, Default)]
struct Queue {
    pieces: Mutex<VecDeque<Piece>>,
    changed: Condvar,
}

/// Starts both threads.
pub fn start(direction: Direction, connection: &Arc<Connection>, shared: &Arc<Shared>) {
    let queue = Arc::new(Queue::default());
    let (theirs, reading) = (Arc::clone(&queue), Arc::clone(connection));
    std::thread::spawn(move || read(direction, &reading, &theirs));
    let (writing, shared) = (Arc::clone(connection), Arc::clone(shared));
    std::thread::spawn(move || write(direction, &writing, &queue, &shared));
}

fn read(direction: Direction, connection: &Connection, queue: &Queue) {
    let (mut from, _) = connection.ends(direction);
    loop {
        let mut piece = vec![0u8; PIECE_BYTES];
        let count = match from.read(&mut piece) {
            Ok(count) => count,
            Err(err) if err.kind() == ErrorKind::Interrupted => continue,
            Err(_) => {
                // The sender has gone without a word: its peer must learn it the same way.
                connection.kill();
                0
            }
        };
        piece.truncate(count);
        if !queue.push((Instant::now(), piece), connection) || count == 0 {
            return;
        }
    }
}

fn write(direction: Direction, connection: &Connection, queue: &Queue, shared: &Shared) {
    let (_, to) = connection.ends(direction);
    while let Some((came, piece)) = queue.pop(connection) {
        if !wait_for_turn(direction, connection, shared, came, piece.len()) {
            return;
        }
        if piece.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if !deliver(direction, connection, shared, to, &piece) {
            return;
        }
    }
}

/// Waits for delay, rate and release; false when the connection has died meanwhile.
fn wait_for_turn(direction: Direction, connection: &Connection, shared: &Shared, came: Instant, length: usize) -> bool {
    let mut state = shared.state();
    loop {
        if connection.is_dead() || state.ended {
            return false;
        }
        let now = Instant::now();
        let way = &mut state.ways[direction as usize];
        let until = match (way.held, came + way.delay) {
            (true, _) => now + LOOK_EVERY,
            (false, due) if due > now => due,
            (false, _) => match way.free_at.filter(|free| *free > now) {
                Some(free) => free,
                None => {
                    way.free_at = way.bytes_per_second.map(|rate| now + time_for(length, rate));
                    return true;
                }
            },
        };
        let pause = until.saturating_duration_since(now).min(LOOK_EVERY);
        state = shared.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn time_for(length: usize, rate: u64) -> Duration {
    Duration::from_nanos((length as u128 * 1_000_000_000 / u128::from(rate)) as u64)
}

/// Writes a piece as far as it may go; false when that was the end of the connection.
fn deliver(direction: Direction, connection: &Connection, shared: &Shared, to: &TcpStream, piece: &[u8]) -> bool {
    let (granted, cut) = grant(&mut shared.state(), direction, piece.len());
    if !write_all(connection, to, &piece[..granted]) {
        return false;
    }
    shared.state().ways[direction as usize].passed += granted as u64;
    if cut {
        connection.kill_behind(direction);
        shared.kill_all();
    }
    !cut
}

/// How much of a piece may pass, and whether the link is cut behind it.
fn grant(state: &mut State, direction: Direction, length: usize) -> (usize, bool) {
    let way = &mut state.ways[direction as usize];
    match way.left {
        Some(left) if left <= length as u64 => {
            way.left = None;
            (left as usize, true)
        }
        Some(left) => {
            way.left = Some(left - length as u64);
            (length, false)
        }
        None => (length, false),
    }
}

/// Writes everything, looking now and then whether the connection still lives.
fn write_all(connection: &Connection, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => {
                connection.kill();
                return false;
            }
        }
        if connection.is_dead() {
            return false;
        }
    }
    true
}

impl Queue {
    /// Waits for room; false when the connection has died.
    fn push(&self, piece: Piece, connection: &Connection) -> bool {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        while pieces.len() >= PIECES_MAX {
            if connection.is_dead() {
                return false;
            }
            pieces = self.changed.wait_timeout(pieces, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        pieces.push_back(piece);
        self.changed.notify_all();
        true
    }

    /// Waits for a piece; none when the connection has died.
    fn pop(&self, connection: &Connection) -> Option<Piece> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if connection.is_dead() {
                return None;
            }
            if let Some(piece) = pieces.pop_front() {
                self.changed.notify_all();
                return Some(piece);
            }
            pieces = self.changed.wait_timeout(pieces, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
