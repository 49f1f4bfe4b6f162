//! The simulator itself: that it is deterministic, finds what is planted, and that seeds which once failed do not.

use understudy_sim::campaign::{run_seed, run_with};
use understudy_sim::mutation::{Mutation, find, quietly};
use understudy_sim::trace::Keep;

#[test]
fn a_seed_always_gives_the_same_trace() {
    for seed in 0..10 {
        let (first, second) = (run_seed(seed, Keep::Digest), run_seed(seed, Keep::Recent));
        assert_eq!((first.digest, first.lines), (second.digest, second.lines), "seed {seed}");
        assert!(!second.recent.is_empty());
    }
}

/// Worlds in a debug build take some 50 ms; the campaign of CI runs thousands, with fresh seeds.
#[test]
fn worlds_of_a_hundred_seeds_keep_every_promise() {
    for seed in 0..100 {
        let verdict = run_seed(seed, Keep::Digest);
        assert!(verdict.violations.is_empty(), "{verdict}");
    }
}

#[test]
fn every_mistake_made_on_purpose_is_noticed() {
    let unnoticed: Vec<_> = quietly(|| Mutation::ALL.iter().filter(|m| find(**m).is_none()).collect());
    assert_eq!(unnoticed, Vec::<&Mutation>::new());
}

#[test]
fn a_mistake_is_laid_to_the_promise_it_breaks() {
    let rule = |mutation| find(mutation).map(|verdict| verdict.violations[0].rule.to_string());
    assert_eq!(rule(Mutation::AcknowledgeUnsealed).as_deref(), Some("I-01"));
    assert_eq!(rule(Mutation::MapDroppedEarly).as_deref(), Some("I-13"));
    assert_eq!(rule(Mutation::LiveDataSent).as_deref(), Some("I-04"));
    assert_eq!(rule(Mutation::AnyoneLetIn).as_deref(), Some("I-29"));
    assert_eq!(rule(Mutation::NewestPointDropped).as_deref(), Some("I-22"));
}

#[test]
fn a_seed_that_shows_a_mistake_keeps_every_promise_without_it() {
    let found = find(Mutation::MapsNotUnited).expect("it is noticed");
    assert!(run_with(found.seed, Keep::Digest, None).violations.is_empty());
}
