//! A world: two hosts, the network between them, a guest that writes, faults, operators, and a judge, from one seed.
//!
//! ```text
//! guest ─▶ fake VM ─▶ primary's daemon ═ network ═▶ replica's daemon ─▶ store ─▶ disk that loses power
//!    ╰────────────────── judge: every cut's true content, every promise ──────────────╯
//! ```
//!
//! A run has two phases. In the first, faults strike and operators act. In the second there are no faults any more, and
//! replication must go on by itself, or stand in a state that waits for an operator and says why.

use std::collections::VecDeque;

use understudy_engine::primary::Record;
use understudy_hypervisor::driver::{ImageFormat, Power};
use understudy_hypervisor::fake::{FakeDisk, FakeVm};
use understudy_model::{Generation, Millis, State, Timestamp};
use understudy_store::files::{Crash, FaultyFiles, MemFiles};
use understudy_store::{Store, StoreOptions};

use crate::agenda::Agenda;
use crate::chance::Chance;
use crate::coverage::{self, Coverage, Kind};
use crate::fault::Fault;
use crate::guest::Guest;
use crate::judge::{Excuse, Judge, Rule};
use crate::mutation::Mutation;
use crate::net::{ConnId, End, Net, Weather};
use crate::primary::points::Trap;
use crate::primary::{self, PrimaryHost};
use crate::replica::{self, Durable, ReplicaHost, Wish};
use crate::stage::{Stage, WallClocks};
use crate::temper::Temper;
use crate::trace::{Keep, Trace};

mod quiet;

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// Something arrives over a connection.
    Arrival(ConnId, End),
    /// The primary's daemon, in this life of it, is woken.
    Primary(u32, primary::Timer),
    /// The replica's daemon, in this life of it, is woken.
    Replica(u32, replica::Timer),
    /// The guest writes.
    Guest,
    /// A fault strikes.
    Fault,
    /// An operator acts.
    Operator,
    /// A fault is over.
    Heal(Healing),
    /// The store is copied, to be put back later.
    Copy,
    /// A host that stood still goes on.
    Awake,
    /// An operator asks the replica for this.
    Wish(Wish),
    /// Somebody looks at what both sides report.
    Look,
}

/// What is over, or comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named for what is put right")]
pub enum Healing {
    PrimaryStarts,
    ReplicaStarts,
    QemuStarts,
    PrimaryFull,
    ReplicaFull,
    Disk,
    Capacity,
    Slowness,
}

/// An older copy of the replica host.
struct Copy {
    disk: MemFiles,
    durable: Option<Durable>,
}

/// Most that may happen at one instant. A busy one sees some hundred things.
const AT_ONCE_MAX: u32 = 20_000;

/// See the module's description.
pub struct World {
    pub(crate) stage: Stage,
    pub(crate) primary: PrimaryHost,
    pub(crate) replica: ReplicaHost,
    pub(crate) temper: Temper,
    pub(crate) chance: Chance,
    pub(crate) tickets: u64,
    pub(crate) generation: Generation,
    pub(crate) primary_paused: Timestamp,
    pub(crate) replica_paused: Timestamp,
    /// What is due at a host that stands still, and until when it does.
    pub(crate) put_off: Vec<(Timestamp, Happening)>,
    /// Faults that struck.
    pub(crate) struck: Vec<Fault>,
    /// A start is on the agenda.
    primary_starts: bool,
    replica_starts: bool,
    /// What the operator has put right since the faults ended.
    pub(crate) repairs: u32,
    /// What happened at this instant so far.
    at_once: (Timestamp, u32),
    guest: Guest,
    copies: VecDeque<Copy>,
    /// When the faults ended, or the operator last put something right after that.
    pub(crate) quiet_since: Option<Timestamp>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, keep: Keep, mutation: Option<Mutation>) -> Self {
        let mut chance = Chance::new(seed);
        let temper = Temper::draw(&mut chance.split());
        let mut weather_chance = chance.split();
        let weather = Weather::draw(&mut weather_chance);
        let vm = FakeVm::new(temper.disks.iter().map(|(spec, is_persistent)| {
            let format = if *is_persistent { ImageFormat::Qcow2 } else { ImageFormat::Raw };
            FakeDisk::new(spec.key.clone(), spec.size, format)
        }));
        let mut judge = Judge::default();
        let sizes: Vec<_> = temper.disks.iter().map(|(spec, _)| (spec.id, spec.size)).collect();
        judge.truth.disks = sizes.iter().map(|(id, size)| (*id, crate::image::Image::new(*size))).collect();
        let stage = Stage {
            agenda: Agenda::default(),
            net: Net::new(weather, weather_chance),
            chance: chance.split(),
            trace: Trace::new(keep),
            judge,
            wall: WallClocks::default(),
            trap: Trap::default(),
            scratch_limit: temper.scratch_limit,
            coverage: Coverage::default(),
            mutation,
            slowness: 1,
        };
        let guest = Guest::new(sizes, temper.guest_pause, chance.split());
        Self {
            stage,
            primary: PrimaryHost::new(vm),
            replica: ReplicaHost::new(temper.capacity),
            temper,
            chance,
            tickets: 0,
            generation: Self::first_generation(),
            primary_paused: Timestamp(0),
            replica_paused: Timestamp(0),
            put_off: Vec::new(),
            struck: Vec::new(),
            primary_starts: false,
            replica_starts: false,
            repairs: 0,
            at_once: (Timestamp(0), 0),
            guest,
            copies: VecDeque::new(),
            quiet_since: None,
        }
    }

    /// Runs both phases, or until a promise is broken.
    pub fn run(&mut self) {
        let temper = format!("{:?}", self.temper);
        self.stage.say("world", format_args!("{temper}"));
        self.begin();
        let end = self.stage.now() + self.temper.length;
        self.run_until(end);
        if self.stage.judge.violations().is_empty() {
            self.calm_down();
            self.run_quiet();
        }
        let trace = self.stage.trace.digest();
        self.stage.say("world", format_args!("ends, {} broken promises, {trace}", self.stage.judge.violations().len()));
    }

    fn begin(&mut self) {
        self.primary.start(&mut self.stage);
        self.replica.start(&mut self.stage);
        self.stage.agenda.after(Millis(1), Happening::Guest);
        self.stage.agenda.after(Millis(10), Happening::Operator);
        self.stage.agenda.after(Millis(500), Happening::Look);
        self.stage.agenda.after(Millis(self.temper.settings.interval.0 * 3), Happening::Copy);
        self.put_off_fault();
        self.trap_beginnings();
    }

    fn put_off_fault(&mut self) {
        let wait = self.chance.between(self.temper.fault_every / 4, self.temper.fault_every * 7 / 4);
        self.stage.agenda.after(Millis(wait.max(50)), Happening::Fault);
    }

    /// Lets everything happen that is due until then, or until a promise is broken.
    pub(crate) fn run_until(&mut self, end: Timestamp) {
        while self.stage.judge.violations().is_empty() {
            let Some(happening) = self.stage.agenda.next(end) else { return };
            self.stage.judge.set_now(self.stage.agenda.now());
            self.happen(happening);
        }
    }

    /// Lets one thing happen; false if nothing is due until then.
    pub(crate) fn step(&mut self, end: Timestamp) -> bool {
        let Some(happening) = self.stage.agenda.next(end) else { return false };
        self.stage.judge.set_now(self.stage.agenda.now());
        self.happen(happening);
        true
    }

    fn happen(&mut self, happening: Happening) {
        if self.is_stuck() {
            return self.broken(Rule::I51, format!("time stands still: {happening:?} again and again"));
        }
        match happening {
            Happening::Arrival(conn, to) => self.arrive(conn, to),
            Happening::Primary(..) if self.is_paused(self.primary_paused, happening) => {}
            Happening::Primary(life, timer) => {
                self.primary.on_timer(&mut self.stage, life, timer);
                self.after_primary();
            }
            Happening::Replica(..) if self.is_paused(self.replica_paused, happening) => {}
            Happening::Replica(life, timer) => {
                self.replica.on_timer(&mut self.stage, life, timer);
                self.after_replica();
            }
            Happening::Guest => self.guest_writes(),
            Happening::Fault if self.quiet_since.is_none() => {
                self.strike();
                self.put_off_fault();
            }
            Happening::Fault => {}
            Happening::Operator => self.operate(),
            Happening::Heal(healing) => self.heal(healing),
            Happening::Wish(wish) => self.wish(wish),
            Happening::Copy => self.copy(),
            Happening::Awake => self.wake_up(),
            Happening::Look => self.look_around(),
        }
    }

    /// Counts what happens at one instant: more than this is a loop that waits for nothing.
    fn is_stuck(&mut self) -> bool {
        let now = self.stage.now();
        let (instant, count) = &mut self.at_once;
        if *instant != now {
            (*instant, *count) = (now, 0);
        }
        *count += 1;
        *count > AT_ONCE_MAX
    }

    /// Whether a host stands still: then what it should do comes when it goes on.
    fn is_paused(&mut self, until: Timestamp, happening: Happening) -> bool {
        let is_paused = until > self.stage.now();
        if is_paused {
            self.put_off.push((until, happening));
            self.stage.agenda.at(until, Happening::Awake);
        }
        is_paused
    }

    /// What had to wait for a host that stood still comes now, in its order.
    pub(crate) fn wake_up(&mut self) {
        let now = self.stage.now();
        let (due, later) = std::mem::take(&mut self.put_off).into_iter().partition(|(until, _)| *until <= now);
        self.put_off = later;
        let due: Vec<(Timestamp, Happening)> = due;
        due.into_iter().for_each(|(_, happening)| self.stage.agenda.at(now, happening));
    }

    fn arrive(&mut self, conn: ConnId, to: End) {
        let paused = if to == End::Dialer { self.primary_paused } else { self.replica_paused };
        if self.is_paused(paused, Happening::Arrival(conn, to)) {
            return;
        }
        let Some(arrived) = self.stage.net.arrive(conn, to, &mut self.stage.agenda) else { return };
        match to {
            End::Dialer => {
                self.primary.on_arrival(&mut self.stage, conn, arrived);
                self.after_primary();
            }
            End::Listener => {
                self.replica.on_arrival(&mut self.stage, conn, arrived);
                self.after_replica();
            }
        }
    }

    fn guest_writes(&mut self) {
        if self.primary.vm.power() == Power::Running {
            let pause = self.guest.act(&mut self.primary.vm, &mut self.stage.judge.truth);
            self.stage.agenda.after(pause, Happening::Guest);
        } else {
            self.stage.agenda.after(Millis(500), Happening::Guest);
        }
        self.stage.judge.check_maps(self.primary.book.record(), &self.primary.vm);
    }

    fn operate(&mut self) {
        let every = self.temper.deed_every;
        match self.quiet_since {
            None if every > 0 && self.stage.now().0 > 2_000 => self.do_something(),
            None => self.put_right(),
            Some(_) => self.put_right_quietly(),
        }
        let wait =
            if every == 0 || self.quiet_since.is_some() { 1_500 } else { self.chance.between(every / 2, every * 2) };
        let wait = if self.stage.now().0 < 2_000 { 300 } else { wait };
        self.stage.agenda.after(Millis(wait), Happening::Operator);
    }

    /// What has to be looked after once the primary has done something.
    pub(crate) fn after_primary(&mut self) {
        if !self.primary.is_up() && !self.primary_starts {
            self.primary_starts = true;
            let wait = Millis(self.chance.between(50, 4_000));
            self.stage.agenda.after(wait, Happening::Heal(Healing::PrimaryStarts));
        }
        if let Some(record) = self.primary.book.record() {
            self.generation = self.generation.max(record.generation);
        }
        self.stage.judge.check_maps(self.primary.book.record(), &self.primary.vm);
    }

    /// What has to be looked after once the replica has done something.
    pub(crate) fn after_replica(&mut self) {
        if !self.replica.is_up() {
            self.start_replica_later();
        }
        if let Some(durable) = &self.replica.book.durable {
            self.generation = self.generation.max(durable.record.generation);
        }
    }

    pub(crate) fn start_replica_later(&mut self) {
        if !self.replica_starts {
            self.replica_starts = true;
            let wait = Millis(self.chance.between(50, 4_000));
            self.stage.agenda.after(wait, Happening::Heal(Healing::ReplicaStarts));
        }
    }

    pub(crate) fn crash_primary(&mut self, host_lives: bool) {
        self.primary.crash(&mut self.stage, host_lives);
        self.after_primary();
    }

    pub(crate) fn crash_replica(&mut self) {
        let (crash, host_lives) = self.stage.draw_crash();
        self.replica.crash(&mut self.stage, crash, host_lives);
        self.after_replica();
    }

    /// The primary's host loses power: daemon and QEMU are gone, nobody is told.
    pub(crate) fn cut_primary_power(&mut self) {
        self.end_qemu(false);
        self.crash_primary(false);
    }

    /// QEMU ends, in good order or not, and comes back a little later.
    pub(crate) fn end_qemu(&mut self, in_order: bool) {
        if self.primary.vm.power() == Power::Off {
            return;
        }
        let keeps_maps = in_order && self.temper.disks.iter().all(|(_, persistent)| *persistent);
        if in_order {
            self.primary.vm.quit()
        } else {
            self.primary.vm.kill()
        }
        self.stage.say("guest", format_args!("QEMU ends{}", if in_order { "" } else { " without closing its disks" }));
        if !keeps_maps {
            self.stage.judge.tracking_lost();
        }
        if self.primary.book.images().iter().any(|image| image.stamp.is_some()) {
            self.stage.judge.excuse(Excuse::StartedAndStopped);
        }
        let wait = Millis(self.chance.between(100, 5_000));
        self.stage.agenda.after(wait, Happening::Heal(Healing::QemuStarts));
    }

    pub(crate) fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::PrimaryStarts => {
                self.primary_starts = false;
                if !self.primary.is_up() {
                    self.primary.start(&mut self.stage);
                }
                self.after_primary();
            }
            Healing::ReplicaStarts => self.start_replica(),
            Healing::QemuStarts => self.primary.vm.start(),
            Healing::PrimaryFull => self.primary.book.is_full = false,
            Healing::ReplicaFull => self.replica.book.is_full = false,
            Healing::Disk => {
                self.replica.faulty.plan(None);
                self.stage.judge.reads_may_fail = false;
            }
            Healing::Capacity => self.replica.disk.set_capacity(self.temper.capacity),
            Healing::Slowness => self.stage.slowness = 1,
        }
    }

    /// The replica's daemon starts; while faults strike it may die again at once, inside its recovery.
    fn start_replica(&mut self) {
        self.replica_starts = false;
        if self.replica.is_up() {
            return;
        }
        if self.quiet_since.is_none() && self.chance.percent(20) {
            self.replica.disk.power_off_after(self.chance.below(12));
        }
        if !self.replica.start(&mut self.stage) {
            self.stage.coverage.met(Kind::Crash, coverage::REPLICA_RECOVERING);
        }
        self.after_replica();
    }

    fn copy(&mut self) {
        if self.copies.len() == 3 {
            self.copies.pop_front();
        }
        let copy = Copy { disk: self.replica.disk.fork(), durable: self.replica.book.durable.clone() };
        self.copies.push_back(copy);
        let every = self.temper.settings.interval.0 * 4;
        self.stage.agenda.after(Millis(every), Happening::Copy);
    }

    /// The store, and sometimes the whole replica, is put back to an older copy.
    pub(crate) fn put_back(&mut self) {
        let is_over = |d: &Durable| matches!(d.record.state, State::FailingOver | State::FailedOver | State::Committed);
        let same = |a: &Option<Durable>, b: &Option<Durable>| {
            matches!((a, b), (Some(a), Some(b)) if !is_over(a) && !is_over(b)
                && a.record.generation == b.record.generation)
        };
        let now = self.replica.book.durable.clone();
        let usable: Vec<usize> = (0..self.copies.len()).filter(|i| same(&self.copies[*i].durable, &now)).collect();
        if usable.is_empty() {
            return;
        }
        let copy = &self.copies[*self.chance.pick(&usable)];
        let (disk, durable) = (copy.disk.fork(), copy.durable.clone());
        self.replica.crash(&mut self.stage, Crash::Killed, true);
        disk.crash(Crash::Killed);
        disk.set_capacity(self.temper.capacity);
        let newest = newest_on(&disk);
        let is_whole_host = self.chance.percent(50);
        if is_whole_host {
            self.replica.book.durable = durable;
        }
        self.replica.exchange_disk(disk);
        self.stage.coverage.met(Kind::Fault, "PutBack");
        let record = self.replica.book.durable.as_ref().filter(|_| is_whole_host).map(|d| d.record.clone());
        self.stage.judge.put_back(newest, record.as_ref());
        self.after_replica();
    }

    fn look_around(&mut self) {
        if let Some(report) = self.primary.report(&self.stage) {
            let interval = self.interval();
            let mut report = report;
            if self.stage.makes(Mutation::HealthAlwaysOk) {
                report.health = understudy_model::Health::Ok;
            }
            self.stage.judge.check_health(&report, interval);
        }
        self.stage.agenda.after(Millis(700), Happening::Look);
    }

    /// The judge, with all that it has seen.
    pub fn judge(&self) -> &Judge {
        &self.stage.judge
    }

    /// The present.
    pub fn now(&self) -> Timestamp {
        self.stage.now()
    }

    /// The trace.
    pub fn trace(&self) -> &Trace {
        &self.stage.trace
    }

    /// The faults that struck, in order.
    pub fn struck(&self) -> &[Fault] {
        &self.struck
    }

    /// What was met.
    pub fn coverage(&self) -> Coverage {
        let mut coverage = self.stage.coverage.clone();
        for (rule, looks) in self.stage.judge.checks() {
            coverage.met_often(Kind::Rule, rule.to_string(), *looks);
        }
        coverage
    }

    /// Where it stands at the primary.
    pub fn record(&self) -> Option<&Record> {
        self.primary.book.record()
    }

    pub(crate) fn broken(&mut self, rule: Rule, what: String) {
        self.stage.judge.broken(rule, what);
    }
}

/// The newest cut that a store on this disk opens to.
fn newest_on(disk: &MemFiles) -> Option<understudy_model::CutDigest> {
    let options = StoreOptions { reserve: 0, receive_floor: 0, ..StoreOptions::default() };
    let store = Store::open(std::sync::Arc::new(disk.fork()), options).ok()?;
    let vm = store.list().into_iter().next()?;
    vm.newest().map(|cut| cut.id.digest)
}

impl ReplicaHost {
    fn exchange_disk(&mut self, disk: MemFiles) {
        let visits = self.hook.visits();
        self.faulty = FaultyFiles::over_memory(&disk);
        self.hook = std::sync::Arc::new(replica::Hook::with_visits(disk.clone(), visits));
        self.disk = disk;
    }
}
