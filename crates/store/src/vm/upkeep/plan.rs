//! Chooses the next step of upkeep. Decides from the manifest alone and touches nothing.
//!
//! ```text
//! base ── 1 ── 2 ── 3 ── 4* ── 5 ── 6 ── 7 ── 8*      * must stay: a point, the newest, in use
//!         └─── commit ───┘     └── merge into 8 ─┘
//! ```
//!
//! - The base no longer stands for a point: the lowest link is committed into it, one by one, up to the first cut
//!   that must stay. The newest link is left as it is.
//! - Links that lead to a kept cut are merged into one.
//! - Links above the last kept cut, which no point has closed yet, are merged by tiers: as soon as [`FAN_IN`]
//!   neighbours of one level are there, they become one of the next level. So a cycle's data is rewritten once per
//!   level and not once per cycle, and the chain stays short between two points.
//!
//! Nothing at or below a cut in use is touched, and no damaged link: its neighbours stay readable by themselves.

use std::ops::Range;

use understudy_model::DiskId;

use crate::manifest::{Height, Link, Manifest, Object};
use crate::paths::FileNumber;

/// Neighbours of one level that become one: with 1 s between cuts and 1 h between points three levels, and a chain of
/// at most 48 links.
pub(crate) const FAN_IN: usize = 16;
/// Most links merged at once: bounds open files and memory.
pub(crate) const MERGE_MAX: usize = 32;

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Commit the lowest link into the base.
    Commit,
    /// Merge these links, by index.
    Merge { links: Range<usize> },
}

impl Plan {
    /// Bytes that the step would take at most, for telling an operator.
    pub(crate) fn bytes(&self, m: &Manifest) -> u64 {
        match self {
            Plan::Commit => m.links[0].runs.iter().filter(|r| r.file.is_some()).count() as u64 * STUB_BYTES,
            Plan::Merge { links } => m.links[links.clone()].iter().map(Link::len).sum(),
        }
    }
}

/// A stub is an empty run: a few clusters of tables.
const STUB_BYTES: u64 = 1 << 20;

/// The next step, if any. `in_use` is the greatest height that somebody reads; `room` the bytes that are free.
pub(crate) fn plan(m: &Manifest, in_use: Option<Height>, room: u64) -> Option<Plan> {
    if in_use.is_none() && may_commit(m) {
        return Some(Plan::Commit);
    }
    let first = in_use.unwrap_or(0);
    let groups = groups(m, first);
    let merge = groups.into_iter().find_map(|group| choose(m, group))?;
    Some(Plan::Merge { links: fitting(m, merge, room) })
}

fn may_commit(m: &Manifest) -> bool {
    // The newest link stays: it is what an extended replica or a repeated handshake asks for.
    m.links.len() >= 2 && !m.is_open(0) && !is_damaged(m, &m.links[0]) && !is_base_damaged(m, &m.links[0])
}

fn is_base_damaged(m: &Manifest, link: &Link) -> bool {
    let of_link = |disk: DiskId| link.runs.iter().any(|r| r.disk == disk && r.file.is_some());
    m.damage.iter().any(|d| matches!(d.object, Object::Base { disk } if of_link(disk)))
}

fn is_damaged(m: &Manifest, link: &Link) -> bool {
    let has = |disk: DiskId, number: FileNumber| link.files().any(|(d, f)| (d, f.number) == (disk, number));
    m.damage.iter().any(|d| matches!(d.object, Object::Run { disk, number } if has(disk, number)))
}

/// Neighbours above `first` of which only the last must stay; without damaged ones.
fn groups(m: &Manifest, first: Height) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut start = first;
    for i in first..m.links.len() {
        if is_damaged(m, &m.links[i]) {
            out.push(start..i);
            start = i + 1;
        } else if m.is_open(i + 1) {
            out.push(start..i + 1);
            start = i + 1;
        }
    }
    out.push(start..m.links.len());
    out
}

fn choose(m: &Manifest, group: Range<usize>) -> Option<Range<usize>> {
    let last = group.end.checked_sub(1).filter(|last| *last >= group.start)?;
    let closed = m.links[last].record.kept || m.failover_on(m.links[last].record.digest());
    if closed {
        return (group.len() >= 2).then(|| group.start..group.end.min(group.start + MERGE_MAX));
    }
    // The newest link is left out: the next cycle is being built on it, and closes or extends the group.
    let newest = m.top() == Some(last + 1);
    tier(&m.links, group.start..if newest { last } else { group.end })
}

/// The first neighbours of one level that are enough for the next.
fn tier(links: &[Link], group: Range<usize>) -> Option<Range<usize>> {
    let mut start = group.start;
    for i in group.clone() {
        if links[i].level != links[start].level {
            start = i;
        }
        if i + 1 - start == FAN_IN {
            return Some(start..i + 1);
        }
    }
    None
}

/// Fewer of them if space is short: two at least, since merging gives back more than it takes.
fn fitting(m: &Manifest, links: Range<usize>, room: u64) -> Range<usize> {
    let mut end = links.end;
    let size = |end: usize| m.links[links.start..end].iter().map(Link::len).sum::<u64>();
    while end > links.start + 2 && size(end) > room {
        end -= 1;
    }
    links.start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Base, BaseFile, Below, CutRecord, DamageRecord, RunFile, RunRecord};
    use understudy_model::{Consistency, Cut, CutDigest, CutNumber, CutRef, DiskSpec, Generation, Timestamp, VmId};
    use understudy_run::RunDigest;

    fn record(n: u8, kept: bool) -> CutRecord {
        let id = CutRef { generation: Generation(1), number: CutNumber(n.into()), digest: CutDigest([n; 32]) };
        let parent = CutDigest([n.saturating_sub(1); 32]);
        let cut = Cut { id, parent, taken_at: Timestamp(0), consistency: Consistency::Standard };
        let sizes = vec![(DiskId(0), 4096)];
        CutRecord { cut, follows: parent, kept, locked: false, definition: None, sizes }
    }

    /// A chain whose cuts are kept where there is a `*`; the first sign is the base.
    fn chain(signs: &str) -> Manifest {
        let spec = DiskSpec { id: DiskId(0), key: String::new(), size: 4096 };
        let mut m = Manifest::new(VmId(uuid::Uuid::nil()), Generation(1), &[spec]);
        let files = vec![BaseFile { disk: DiskId(0), size: 4096, stub: None }];
        let kept: Vec<bool> = signs.chars().map(|c| c == '*').collect();
        m.base = Some(Base { record: Some(record(1, kept[0])), files });
        for (i, kept) in kept.iter().enumerate().skip(1) {
            let n = i as u8 + 1;
            let file = RunFile { number: FileNumber(n.into()), len: 100, below: Below::Base };
            let run = RunRecord { disk: DiskId(0), cluster_bits: 12, digest: RunDigest([n; 32]), file: Some(file) };
            m.links.push(Link { record: record(n, *kept), level: 0, runs: vec![run] });
        }
        m
    }

    fn next(m: &Manifest) -> Option<Plan> {
        plan(m, None, u64::MAX)
    }

    fn merge(links: Range<usize>) -> Option<Plan> {
        Some(Plan::Merge { links })
    }

    #[test]
    fn the_lowest_link_is_committed_when_the_base_is_no_point() {
        assert_eq!(next(&chain("-*-")), Some(Plan::Commit));
        assert_eq!(next(&chain("---")), Some(Plan::Commit));
    }

    #[test]
    fn a_base_that_is_a_point_stays() {
        assert_eq!(next(&chain("**-")), None);
    }

    #[test]
    fn the_newest_link_is_not_committed() {
        assert_eq!(next(&chain("--")), None);
        assert_eq!(next(&chain("-*")), None);
    }

    #[test]
    fn links_that_lead_to_a_point_become_one() {
        assert_eq!(next(&chain("*--*-")), merge(0..3));
        assert_eq!(next(&chain("**-*-")), merge(1..3));
        assert_eq!(next(&chain("*--*")), merge(0..3));
    }

    #[test]
    fn open_links_wait_until_a_tier_is_full() {
        let signs = |n: usize| format!("*{}", "-".repeat(n));
        assert_eq!(next(&chain(&signs(FAN_IN))), None);
        assert_eq!(next(&chain(&signs(FAN_IN + 1))), merge(0..FAN_IN));
        let mut m = chain(&signs(FAN_IN + 1));
        m.links[0].level = 1;
        assert_eq!(next(&m), None, "one of another level does not count");
    }

    #[test]
    fn nothing_at_or_below_a_cut_in_use_is_touched() {
        let m = chain("---*--*-");
        assert_eq!(plan(&m, Some(1), u64::MAX), merge(1..3));
        assert_eq!(plan(&m, Some(3), u64::MAX), merge(3..6));
        assert_eq!(plan(&m, Some(4), u64::MAX), merge(4..6));
        assert_eq!(plan(&m, Some(7), u64::MAX), None);
    }

    #[test]
    fn damaged_links_are_left_alone_and_stay_apart() {
        let mut m = chain("*--*--*-");
        let object = Object::Run { disk: DiskId(0), number: FileNumber(3) };
        m.damage.push(DamageRecord { object, what: String::new(), covered: None });
        assert_eq!(next(&m), merge(3..6));
        m.damage[0].object = Object::Base { disk: DiskId(0) };
        m.base.as_mut().unwrap().record.as_mut().unwrap().kept = false;
        assert_eq!(next(&m), merge(0..3), "nothing is committed into a damaged base");
    }

    #[test]
    fn short_of_space_fewer_links_are_merged_at_once() {
        let m = chain("*-----*-");
        assert_eq!(plan(&m, None, 350), merge(0..3));
        assert_eq!(plan(&m, None, 0), merge(0..2));
    }

    #[test]
    fn plans_lead_to_a_short_chain_and_end() {
        let mut m = chain("-");
        let mut longest = 0;
        for n in 2..=250u8 {
            let template = chain(&"-".repeat(usize::from(n)));
            m.links.push(template.links.last().unwrap().clone());
            if n % 60 == 0 {
                m.links.last_mut().unwrap().record.kept = true;
            }
            while let Some(step) = next(&m) {
                carry_out(&mut m, step);
            }
            longest = longest.max(m.links.len());
        }
        assert!(longest <= 5 + 3 * FAN_IN, "{longest}");
        assert_eq!(m.heights().filter(|h| m.record(*h).unwrap().kept).count(), 4);
    }

    fn carry_out(m: &mut Manifest, step: Plan) {
        match step {
            Plan::Commit => {
                let link = m.links.remove(0);
                m.base.as_mut().unwrap().record = Some(link.record);
            }
            Plan::Merge { links } => {
                let level = m.links[links.clone()].iter().map(|l| l.level).max().unwrap() + 1;
                let follows = m.links[links.start].record.follows;
                m.links.drain(links.start..links.end - 1);
                m.links[links.start].level = level;
                m.links[links.start].record.follows = follows;
            }
        }
    }
}
