//! What replication of a VM did and how old its replica was meanwhile (`GetReplicationStatistics[Ex]`,
//! `ResetReplicationStatistics[Ex]`).
//!
//! How old: right before a cycle is acknowledged, the replica's newest state is as old as it ever gets in that cycle, and it is
//! that of the cycle before. One such age for each cycle is the ledger; its median and 99th percentile say what was kept.

use understudy_engine::stats::Stats;
use understudy_model::job::JobKind;
use understudy_model::{Health, Millis, Refusal, Timestamp};

use super::owner::Command;
use super::{Done, Operate, Operations, Permit, View, to_the_end};
use crate::catalogue::{CycleOutcome, CycleRecord};

/// Cycles of the ledger that are looked at: at intervals of 30 s, eight hours.
const LEDGER: u32 = 1000;

/// What is known since a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Counted since (wall clock): the service's start, or the last reset.
    pub since: Timestamp,
    /// Counted until (wall clock).
    pub until: Timestamp,
    /// How well it goes now.
    pub health: Health,
    /// Age of the replica's newest state, once for each cycle.
    pub ages: Ages,
}

/// How old the replica's newest state was before each cycle's acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ages {
    /// Cycles looked at.
    pub count: u64,
    /// Half of them were at most so old.
    pub p50: Option<Millis>,
    /// 99 of 100 were at most so old.
    pub p99: Option<Millis>,
    /// The oldest.
    pub max: Option<Millis>,
}

impl Operations {
    /// The statistics of a relationship, and its counters.
    pub async fn replication_statistics(
        &self,
        _permit: &Permit<View>,
        vm: &str,
        leg: u8,
    ) -> Result<(Statistics, Stats), Refusal> {
        let report = self.find_owner(vm, leg).await?.report();
        let cycles = self.parts.catalogue.cycles(report.id, LEDGER).await.map_err(|err| err.refusal())?;
        let statistics = Statistics {
            since: report.stats_since,
            until: self.parts.clock.wall(),
            health: report.health,
            ages: Ages::of(&cycles, report.stats_since),
        };
        Ok((statistics, report.stats))
    }

    /// Counts from now on.
    pub async fn replication_reset_statistics(
        &self,
        _permit: &Permit<Operate>,
        vm: &str,
        leg: u8,
    ) -> Result<Done, Refusal> {
        let owner = self.find_owner(vm, leg).await?;
        let ticket = self.parts.jobs.ticket(JobKind::ChangeState, Some(owner.id().vm));
        let this = self.clone();
        to_the_end(async move { this.ask(owner.as_ref(), Command::ResetStatistics, ticket).await.map(Done::from) })
            .await
    }
}

impl Ages {
    /// The ages of these cycles, newest first, as far as they ended after `since`.
    fn of(cycles: &[CycleRecord], since: Timestamp) -> Self {
        let acked: Vec<&CycleRecord> = cycles.iter().filter(|c| c.outcome == CycleOutcome::Acknowledged).collect();
        let pairs = acked.windows(2).filter(|pair| pair[0].ended_at >= since);
        let mut ages: Vec<Millis> = pairs.map(|pair| pair[0].ended_at - pair[1].taken_at).collect();
        ages.sort_unstable();
        let at = |percent: usize| ages.get((ages.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Self { count: ages.len() as u64, p50: at(50), p99: at(99), max: ages.last().copied() }
    }
}

#[cfg(test)]
mod tests {
    use understudy_model::{Consistency, CutNumber};

    use super::*;

    fn cycle(number: u64, taken_at: u64, ended_at: u64) -> CycleRecord {
        CycleRecord {
            cut: CutNumber(number),
            outcome: CycleOutcome::Acknowledged,
            consistency: Consistency::Standard,
            taken_at: Timestamp(taken_at),
            ended_at: Timestamp(ended_at),
            changed: 0,
            sent: 0,
            detail: String::new(),
        }
    }

    #[test]
    fn an_age_spans_from_the_cut_before_to_the_acknowledgement() {
        // Newest first: one slow cycle among a hundred quick ones.
        let mut cycles: Vec<CycleRecord> = (0..101).map(|n| cycle(n, n * 1000, n * 1000 + 100)).collect();
        cycles[60].ended_at = Timestamp(60_900);
        cycles.reverse();
        let ages = Ages::of(&cycles, Timestamp(0));
        assert_eq!((ages.count, ages.p50, ages.p99), (100, Some(Millis(1100)), Some(Millis(1100))));
        assert_eq!(ages.max, Some(Millis(1900)));
        assert_eq!(Ages::of(&cycles, Timestamp(95_000)).count, 6);
        assert_eq!(Ages::of(&cycles[..1], Timestamp(0)), Ages::default());
    }
}
