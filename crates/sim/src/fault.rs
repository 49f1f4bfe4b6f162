//! What can go wrong, and how it strikes.

use understudy_model::Millis;
use understudy_store::CrashPoint;
use understudy_store::files::{Call, Fault as Failing, FaultPlan};

use crate::coverage::Kind;
use crate::judge::Excuse;
use crate::net::{End, Mangle, Outage, Weather};
use crate::primary::points::Point;
use crate::replica::Wish;
use crate::world::{Happening, Healing, World};

/// A kind of fault; what exactly happens is drawn when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is named for what happens; `strike` says how")]
pub enum Fault {
    Break,
    BreakAtByte,
    BlackHole,
    OneWay,
    Stall,
    Mangle,
    Replay,
    Inject,
    NewWeather,
    PrimaryCrash,
    PrimaryPoint,
    PrimaryPause,
    PrimaryFull,
    PrimaryPowerCut,
    QemuKilled,
    QemuRestarted,
    CutEnds,
    ReplicaCrash,
    ReplicaPoint,
    ReplicaAtChange,
    ReplicaAtRecord,
    ReplicaStop,
    ReplicaPause,
    ReplicaFull,
    DiskFails,
    DiskFull,
    DiskSlow,
    PutBack,
    ClockJump,
    BothPowerCut,
}

impl Fault {
    /// Every kind, and how often it comes in an even mixture.
    pub const KINDS: &[(Fault, u64)] = &[
        (Fault::Break, 4),
        (Fault::BreakAtByte, 8),
        (Fault::BlackHole, 2),
        (Fault::OneWay, 3),
        (Fault::Stall, 3),
        (Fault::Mangle, 3),
        (Fault::Replay, 3),
        (Fault::Inject, 2),
        (Fault::NewWeather, 2),
        (Fault::PrimaryCrash, 3),
        (Fault::PrimaryPoint, 16),
        (Fault::PrimaryPause, 1),
        (Fault::PrimaryFull, 2),
        (Fault::PrimaryPowerCut, 1),
        (Fault::QemuKilled, 1),
        (Fault::QemuRestarted, 1),
        (Fault::CutEnds, 3),
        (Fault::ReplicaCrash, 3),
        (Fault::ReplicaPoint, 40),
        (Fault::ReplicaAtChange, 8),
        (Fault::ReplicaAtRecord, 3),
        (Fault::ReplicaStop, 1),
        (Fault::ReplicaPause, 1),
        (Fault::ReplicaFull, 1),
        (Fault::DiskFails, 6),
        (Fault::DiskFull, 2),
        (Fault::DiskSlow, 2),
        (Fault::PutBack, 1),
        (Fault::ClockJump, 2),
        (Fault::BothPowerCut, 1),
    ];
}

fn points_of<P: Copy>(all: &[P], is_wanted: impl Fn(&P) -> bool) -> Vec<P> {
    all.iter().copied().filter(|point| is_wanted(point)).collect()
}

/// Longest outage and pause: longer than every timeout of the daemons.
const LONG: u64 = 90_000;

impl World {
    /// Draws a fault and lets it strike.
    pub(crate) fn strike(&mut self) {
        let Some(index) = self.chance.weighted(&self.temper.faults.clone()) else { return };
        let (fault, _) = Fault::KINDS[index];
        self.stage.say("fault", format_args!("{fault:?}"));
        self.struck.push(fault);
        self.stage.judge.fault_struck();
        // These may find nothing to work on.
        if !matches!(fault, Fault::PutBack | Fault::Replay | Fault::Inject) {
            self.stage.coverage.met(Kind::Fault, format!("{fault:?}"));
        }
        match fault {
            Fault::Break | Fault::BreakAtByte | Fault::BlackHole | Fault::OneWay | Fault::Stall => {
                self.strike_link(fault);
            }
            Fault::Mangle | Fault::Replay | Fault::Inject | Fault::NewWeather => self.strike_frames(fault),
            Fault::DiskFails | Fault::DiskFull | Fault::DiskSlow | Fault::PutBack => self.strike_disk(fault),
            Fault::ClockJump => self.jump_clocks(),
            Fault::QemuKilled | Fault::QemuRestarted | Fault::CutEnds => self.strike_guest(fault),
            _ => self.strike_host(fault),
        }
    }

    fn heal_later(&mut self, healing: Healing, shortest: u64, longest: u64) {
        let wait = Millis(self.chance.between(shortest, longest));
        self.stage.agenda.after(wait, Happening::Heal(healing));
    }

    fn strike_link(&mut self, fault: Fault) {
        let now = self.stage.now();
        let long = self.chance.percent(20);
        let until = now + Millis(self.chance.between(500, if long { LONG } else { 15_000 }));
        let to = *self.chance.pick(&[End::Dialer, End::Dialer, End::Listener]);
        let outage = match fault {
            Fault::Break => return self.stage.net.break_all(&mut self.stage.agenda),
            Fault::BreakAtByte => {
                self.stage.net.weather().breaks = self.chance.between(1, 4) as u32;
                // The next connections break; without a new one nothing would.
                return self.stage.net.break_all(&mut self.stage.agenda);
            }
            Fault::BlackHole => Outage { conn: None, to: None, until },
            Fault::OneWay => Outage { conn: None, to: Some(to), until },
            _ => Outage { conn: self.stage.net.newest(), to: Some(to).filter(|_| long), until },
        };
        self.stage.net.weather().begin(outage);
    }

    fn strike_frames(&mut self, fault: Fault) {
        match fault {
            Fault::Mangle => {
                let mangle = *self.chance.pick(&Mangle::ALL);
                let to = *self.chance.pick(&[End::Listener, End::Listener, End::Dialer]);
                // What a message says may be believed; what data says is checked.
                self.stage.judge.excuse(Excuse::MessageAltered);
                self.stage.coverage.met(Kind::Mangle, format!("{mangle:?}"));
                self.stage.net.weather().mangle = Some((mangle, to, self.chance.below(8) as u32));
            }
            Fault::Replay => {
                if self.stage.net.replay(&mut self.stage.agenda).is_some() {
                    self.stage.coverage.met(Kind::Fault, "Replay");
                    self.stage.judge.repeats_begin();
                }
            }
            Fault::Inject => {
                self.stage.judge.excuse(Excuse::MessageAltered);
                if self.stage.net.inject(&mut self.stage.agenda).is_some() {
                    self.stage.coverage.met(Kind::Fault, "Inject");
                    self.stage.judge.repeats_begin();
                }
            }
            _ => {
                let drawn = Weather::draw(&mut self.chance);
                let weather = self.stage.net.weather();
                (weather.delay, weather.jitter, weather.rate) = (drawn.delay, drawn.jitter, drawn.rate);
                weather.detours = drawn.detours;
            }
        }
    }

    fn strike_host(&mut self, fault: Fault) {
        let nth = self.chance.between(1, 3) as u32;
        match fault {
            Fault::PrimaryCrash => self.crash_primary(true),
            Fault::PrimaryPoint => self.trap_primary(nth),
            Fault::PrimaryPause => self.primary_paused = self.stage.now() + Millis(self.chance.between(5_000, LONG)),
            Fault::PrimaryFull => {
                self.primary.book.is_full = true;
                self.heal_later(Healing::PrimaryFull, 1_000, 20_000);
            }
            Fault::PrimaryPowerCut => self.cut_primary_power(),
            Fault::ReplicaPoint => self.trap_replica(nth),
            Fault::ReplicaAtChange => self.replica.disk.power_off_after(self.chance.below(60)),
            Fault::ReplicaAtRecord => self.replica.book.dies_at = Some((nth, self.chance.percent(50))),
            Fault::ReplicaStop => {
                self.replica.stop(&mut self.stage);
                self.start_replica_later();
            }
            Fault::ReplicaPause => self.replica_paused = self.stage.now() + Millis(self.chance.between(5_000, LONG)),
            Fault::ReplicaFull => {
                self.replica.book.is_full = true;
                self.heal_later(Healing::ReplicaFull, 1_000, 20_000);
            }
            Fault::BothPowerCut => {
                self.cut_primary_power();
                self.crash_replica();
            }
            _ => self.crash_replica(),
        }
    }

    /// In some worlds a daemon dies within the initial replication, which is over before most faults strike.
    pub(crate) fn trap_beginnings(&mut self) {
        let nth = self.chance.between(1, 2) as u32;
        match self.chance.below(8) {
            0 => {
                let points = points_of(Point::ALL, |p| p.name().starts_with("initial/"));
                self.stage.trap.arm(*self.chance.pick(&points), nth);
            }
            1 => {
                let points = points_of(CrashPoint::ALL, |p| p.name().starts_with("initial/"));
                self.replica.hook.arm(*self.chance.pick(&points), nth);
            }
            _ => {}
        }
    }

    /// Places of the initial replication are left out once it is over.
    fn trap_primary(&mut self, nth: u32) {
        let is_begun = self.primary.book.record().is_some_and(|r| r.acked.is_some());
        let mut points = points_of(Point::ALL, |p| !is_begun || !p.name().starts_with("initial/"));
        // Cycles are seldom given up.
        points.extend([Point::AbortBeforeMerge; 2]);
        self.stage.trap.arm(*self.chance.pick(&points), nth);
    }

    fn trap_replica(&mut self, nth: u32) {
        let is_begun = self.replica.store().is_some_and(|vm| vm.newest().is_some());
        let mut points = points_of(CrashPoint::ALL, |p| !is_begun || !p.name().starts_with("initial/"));
        // Many worlds have nothing to merge or to commit.
        let seldom = points_of(CrashPoint::ALL, |p| p.name().starts_with("prune/") || p.name().starts_with("apply/"));
        points.extend([seldom.clone(), seldom].concat());
        points.extend(points_of(CrashPoint::ALL, |p| p.name().starts_with("receive/")));
        let point = *self.chance.pick(&points);
        // What happens often enough may happen a few times before; the rest is waited for once.
        let is_frequent = point.name().starts_with("receive/");
        self.replica.hook.arm(point, if is_frequent { nth } else { 1 });
        self.bring_about(point);
    }

    /// Operators fail over too rarely for a trap there to spring by itself.
    fn bring_about(&mut self, point: CrashPoint) {
        let take_over =
            if self.chance.percent(50) { Wish::FailOver } else { Wish::FailOverTo(self.chance.below(8) as usize) };
        let wishes: &[Wish] = match point {
            CrashPoint::FailoverRevertMid if self.chance.percent(50) => &[Wish::Test(0), Wish::EndTest],
            CrashPoint::FailoverRevertMid => &[take_over, Wish::Revert],
            CrashPoint::FailoverCommitBegin | CrashPoint::FailoverCommitMid | CrashPoint::FailoverCommitDone => {
                &[take_over, Wish::Commit]
            }
            _ if point.name().starts_with("failover/") => &[take_over],
            _ => return,
        };
        for (i, wish) in wishes.iter().enumerate() {
            let wait = Millis(300 * (i as u64 + 1) + self.chance.below(1_500));
            self.stage.agenda.after(wait, Happening::Wish(*wish));
        }
    }

    fn strike_guest(&mut self, fault: Fault) {
        match fault {
            Fault::CutEnds => self.primary.vm.end_cut("its scratch space hung"),
            Fault::QemuKilled => self.end_qemu(false),
            _ => self.end_qemu(true),
        }
    }

    fn strike_disk(&mut self, fault: Fault) {
        match fault {
            Fault::DiskFails => {
                let plan = FaultPlan {
                    call: *self.chance.pick(&Call::ALL),
                    fault: *self.chance.pick(&Failing::ALL),
                    nth: self.chance.between(1, 25),
                    for_ever: self.chance.percent(40),
                };
                self.stage.say("fault", format_args!("{plan:?}"));
                self.stage.coverage.met(Kind::DiskCall, format!("{:?}", plan.call));
                self.stage.coverage.met(Kind::DiskFault, format!("{:?}", plan.fault));
                self.replica.faulty.plan(Some(plan));
                self.stage.judge.reads_may_fail = true;
                self.heal_later(Healing::Disk, 1_000, 20_000);
            }
            Fault::DiskFull => {
                let left = self.chance.below(600 << 10);
                self.replica.disk.set_capacity(self.replica.disk.used() + left);
                self.heal_later(Healing::Capacity, 2_000, 30_000);
            }
            Fault::DiskSlow => {
                self.stage.slowness = 100;
                self.heal_later(Healing::Slowness, 2_000, 20_000);
            }
            _ => self.put_back(),
        }
    }

    fn jump_clocks(&mut self) {
        self.stage.judge.clocks_jumped();
        const YEARS: u64 = 10 * 365 * 86_400_000;
        let jump = |clock: u64, chance: &mut crate::chance::Chance| match chance.below(4) {
            0 => clock + YEARS,
            1 => clock.saturating_sub(3_600_000),
            2 => clock + 86_400_000,
            _ => 0,
        };
        self.stage.wall.primary = jump(self.stage.wall.primary, &mut self.chance);
        if self.chance.percent(50) {
            self.stage.wall.replica = jump(self.stage.wall.replica, &mut self.chance);
        }
    }
}
