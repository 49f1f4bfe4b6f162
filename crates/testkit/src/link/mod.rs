//! A link that misbehaves on command: a TCP proxy on loopback with delay, rate, stall in one direction, and cuts at a byte.
//!
//! ```text
//!   client ══ proxy ══════════════════════════════════ server
//!             Forward:  read ─▸ queue ─▸ delay, rate, hold, cut ─▸ write
//!             Backward: the same the other way round
//! ```
//!
//! What is held is not lost: it is delivered when the link is released, as TCP would deliver it once a real link is back. What
//! is cut is gone, with the connection.
//!
//! Invariant: bytes of a connection come out in order and unchanged, and a cut after N bytes delivers exactly N.

mod pump;

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the target.
    Forward,
    /// From the target back.
    Backward,
}

/// Both ways.
pub const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// How one direction of the link behaves now.
#[derive(Debug, Default)]
struct Way {
    delay: Duration,
    bytes_per_second: Option<u64>,
    held: bool,
    /// Bytes that may still pass before the link is cut.
    left: Option<u64>,
    passed: u64,
    /// When the link, at its rate, is done with what was last given to it.
    free_at: Option<Instant>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    ways: [Way; 2],
    refusing: bool,
    ended: bool,
    connections: Vec<Weak<Connection>>,
}

/// State of the link and the bell that rings when it changes.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held while a connection comes into being, so that a cut either comes before it or takes it along.
    entering: Mutex<()>,
}

/// One client and its connection to the target.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    dead: AtomicBool,
}

/// The proxy. Dropping it resets its connections.
#[derive(Debug)]
pub struct LinkProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl LinkProxy {
    /// A link to this address that behaves well for now.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
        let state = State { target, ways: Default::default(), refusing: false, ended: false, connections: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), entering: Mutex::default() });
        let proxy = LinkProxy { address: listener.local_addr()?, shared: Arc::clone(&shared) };
        std::thread::spawn(move || accept(&listener, &shared));
        Ok(proxy)
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where new connections go from now on.
    pub fn retarget(&self, target: SocketAddr) {
        self.change(|state| state.target = target);
    }

    /// Every byte takes this much longer.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change(|state| state.ways[direction as usize].delay = delay);
    }

    /// All connections together get no more than this; `None` lifts the limit.
    pub fn rate(&self, direction: Direction, bytes_per_second: Option<u64>) {
        self.change(|state| {
            let way = &mut state.ways[direction as usize];
            way.bytes_per_second = bytes_per_second.map(|rate| rate.max(1));
            way.free_at = None;
        });
    }

    /// Nothing passes in this direction until it is released; connections stay.
    pub fn hold(&self, direction: Direction) {
        self.change(|state| state.ways[direction as usize].held = true);
    }

    /// What was held passes on.
    pub fn release(&self, direction: Direction) {
        self.change(|state| state.ways[direction as usize].held = false);
    }

    /// Resets all connections there are; new ones may come.
    pub fn cut(&self) {
        self.shared.kill_all();
    }

    /// Lets exactly so many more bytes pass in this direction, over all connections, then cuts them all, once.
    ///
    /// The receiving end gets every one of those bytes and then the end of the stream, the sending end a reset.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.change(|state| state.ways[direction as usize].left = Some(bytes));
    }

    /// True while a cut that was ordered has not come yet.
    pub fn cut_is_due(&self, direction: Direction) -> bool {
        self.state().ways[direction as usize].left.is_some()
    }

    /// New connections are reset at once, or let in again.
    pub fn refuse(&self, refusing: bool) {
        self.change(|state| state.refusing = refusing);
    }

    /// Bytes delivered in this direction so far.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.state().ways[direction as usize].passed
    }

    /// Connections that stand now.
    pub fn connections(&self) -> usize {
        self.state().connections.iter().filter_map(Weak::upgrade).filter(|c| !c.is_dead()).count()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        self.change(|state| state.ended = true);
        self.cut();
        // The one who waits for connections is woken by one.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> MutexGuard<'_, ()> {
        self.entering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets every connection that is not dead yet.
    fn kill_all(&self) {
        let _nobody_enters = self.enter();
        let connections = self.state().connections.clone();
        connections.iter().filter_map(Weak::upgrade).filter(|c| !c.is_dead()).for_each(|c| c.kill());
        self.changed.notify_all();
    }
}

impl Connection {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Both ends get a reset, as from a peer that has gone.
    fn kill(&self) {
        self.dead.store(true, Ordering::Release);
        for stream in [&self.client, &self.server] {
            abort(stream);
        }
    }

    /// The receiving end keeps what it was sent and sees the end of the stream; the sending end gets a reset.
    fn kill_behind(&self, direction: Direction) {
        self.dead.store(true, Ordering::Release);
        let (sender, receiver) = self.ends(direction);
        // Either end may have gone by itself, which is as good.
        let _ = receiver.shutdown(Shutdown::Both);
        abort(sender);
    }

    fn ends(&self, direction: Direction) -> (&TcpStream, &TcpStream) {
        match direction {
            Direction::Forward => (&self.client, &self.server),
            Direction::Backward => (&self.server, &self.client),
        }
    }
}

/// Closing with no time to linger sends a reset; whoever reads from the socket here is woken, lets go of it, and so closes it.
fn abort(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Read);
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept() else { return };
        let (target, refusing) = {
            let state = shared.state();
            if state.ended {
                return;
            }
            (state.target, state.refusing)
        };
        let _entering = shared.enter();
        let server = if refusing { None } else { TcpStream::connect(target).ok() };
        match server {
            Some(server) => connect(client, server, shared),
            None => abort(&client),
        }
    }
}

fn connect(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    for stream in [&client, &server] {
        // Small pieces must not wait for more: that would be a delay nobody ordered.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(pump::LOOK_EVERY));
    }
    let connection = Arc::new(Connection { client, server, dead: AtomicBool::new(false) });
    let mut state = shared.state();
    state.connections.retain(|known| known.strong_count() > 0);
    state.connections.push(Arc::downgrade(&connection));
    drop(state);
    for direction in BOTH {
        pump::start(direction, &connection, shared);
    }
}
