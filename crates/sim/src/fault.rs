//! What can go wrong, and how it strikes.

use understudy_model::Millis;
use understudy_store::CrashPoint;
use understudy_store::files::{Call, Fault as Failing, FaultPlan};

use crate::judge::Excuse;
use crate::net::{End, Mangle, Outage, Weather};
use crate::primary::points::Point;
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
        (Fault::PrimaryPoint, 10),
        (Fault::PrimaryPause, 1),
        (Fault::PrimaryFull, 2),
        (Fault::PrimaryPowerCut, 1),
        (Fault::QemuKilled, 1),
        (Fault::QemuRestarted, 1),
        (Fault::CutEnds, 3),
        (Fault::ReplicaCrash, 3),
        (Fault::ReplicaPoint, 12),
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
                self.stage.net.weather().mangle = Some((mangle, to, self.chance.below(8) as u32));
            }
            Fault::Replay => _ = self.stage.net.replay(&mut self.stage.agenda),
            Fault::Inject => {
                self.stage.judge.excuse(Excuse::MessageAltered);
                self.stage.net.inject(&mut self.stage.agenda);
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
            Fault::PrimaryPoint => self.stage.trap.arm(*self.chance.pick(Point::ALL), nth),
            Fault::PrimaryPause => self.primary_paused = self.stage.now() + Millis(self.chance.between(5_000, LONG)),
            Fault::PrimaryFull => {
                self.primary.book.is_full = true;
                self.heal_later(Healing::PrimaryFull, 1_000, 20_000);
            }
            Fault::PrimaryPowerCut => self.cut_primary_power(),
            Fault::ReplicaPoint => self.replica.hook.arm(*self.chance.pick(CrashPoint::ALL), nth),
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
