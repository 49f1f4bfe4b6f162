//! Which cuts become recovery points, and which points go.

use understudy_model::settings::PointEvery;
use understudy_model::{Consistency, Cut, PointId, Settings, Timestamp};

/// A point as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its identity.
    pub id: PointId,
    /// When its disks were frozen, by the primary's clock. A label; order is the order of the list.
    pub taken_at: Timestamp,
    /// Whether nobody may drop it now: locked, or in use by a failover, test, export or forwarding.
    pub is_pinned: bool,
}

/// Whether the cut that is about to be sealed becomes a recovery point, given the last one kept.
///
/// The first cut is always one: before the span is over, it is the only thing to go back to. A clock that went
/// backwards counts as "due", so a jump can at worst add a point, never starve them.
pub fn is_point_due(settings: &Settings, last: Option<Timestamp>, cut: &Cut) -> bool {
    if settings.points == 0 {
        return false;
    }
    match (settings.point_every, last) {
        _ if cut.consistency != Consistency::Standard => true,
        (PointEvery::Cycle, _) | (_, None) => true,
        (PointEvery::Span(_), Some(last)) if cut.taken_at < last => true,
        (PointEvery::Span(span), Some(last)) => cut.taken_at - last >= span,
    }
}

/// The points to drop so that at most `settings.points` remain, oldest first. The newest state is no point of this
/// list and always stays. A pinned point stays and does not count.
pub fn surplus(settings: &Settings, oldest_first: &[Point]) -> Vec<PointId> {
    let free: Vec<_> = oldest_first.iter().filter(|p| !p.is_pinned).collect();
    let surplus = free.len().saturating_sub(usize::from(settings.points));
    free[..surplus].iter().map(|p| p.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use understudy_model::{CutDigest, CutNumber, CutRef, Generation, Millis};

    fn cut(at: u64) -> Cut {
        let id = CutRef { generation: Generation(1), number: CutNumber(at), digest: CutDigest([at as u8; 32]) };
        Cut { id, parent: CutDigest::ZERO, taken_at: Timestamp(at), consistency: Consistency::Standard }
    }

    fn settings(points: u16, every: PointEvery) -> Settings {
        Settings { points, point_every: every, ..Default::default() }
    }

    #[test]
    fn a_point_is_due_after_its_span_and_after_a_clock_that_went_back() {
        let hourly = settings(3, PointEvery::Span(Millis(100)));
        assert!(is_point_due(&hourly, None, &cut(5)));
        assert!(!is_point_due(&hourly, Some(Timestamp(5)), &cut(104)));
        assert!(is_point_due(&hourly, Some(Timestamp(5)), &cut(105)));
        assert!(is_point_due(&hourly, Some(Timestamp(500)), &cut(105)));
        assert!(is_point_due(&settings(1, PointEvery::Cycle), Some(Timestamp(104)), &cut(105)));
        assert!(!is_point_due(&settings(0, PointEvery::Cycle), None, &cut(105)));
    }

    #[test]
    fn an_application_consistent_cut_is_always_kept() {
        let hourly = settings(3, PointEvery::Span(Millis(100)));
        let cut = Cut { consistency: Consistency::Application, ..cut(6) };
        assert!(is_point_due(&hourly, Some(Timestamp(5)), &cut));
    }

    proptest! {
        #[test]
        fn pruning_takes_the_oldest_and_never_a_pinned_point(pins in proptest::collection::vec(any::<bool>(), 0..40), keep in 0u16..=24) {
            let points: Vec<_> = pins.iter().enumerate().map(|(i, pin)| Point {
                id: cut(i as u64).point(), taken_at: Timestamp(i as u64), is_pinned: *pin,
            }).collect();
            let dropped = surplus(&settings(keep, PointEvery::Cycle), &points);
            let left: Vec<_> = points.iter().filter(|p| !dropped.contains(&p.id)).collect();
            prop_assert!(points.iter().filter(|p| p.is_pinned).all(|p| !dropped.contains(&p.id)));
            let free: Vec<_> = left.iter().filter(|p| !p.is_pinned).collect();
            prop_assert_eq!(free.len(), pins.iter().filter(|p| !**p).count().min(usize::from(keep)));
            prop_assert!(free.iter().all(|p| points.iter().filter(|q| !q.is_pinned && q.taken_at > p.taken_at).all(|q| !dropped.contains(&q.id))));
        }
    }
}
