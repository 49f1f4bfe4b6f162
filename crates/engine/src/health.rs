//! The rules behind health: one place for both sides. Several conditions may hold; the worst one counts.
//!
//! "Ok" is proof of progress and nothing else: the last acknowledged cut is at most two intervals old. Silence is
//! not health. The share of 20 % and the hour are those of Hyper-V's rules.

use understudy_model::{Health, Millis, State};

/// One reason why health is not ok.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// How bad it is.
    pub health: Health,
    /// What is the matter, in words, with what to do where that is known.
    pub text: String,
}

/// What health is judged by.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// State of the relationship.
    pub state: State,
    /// The relationship's interval.
    pub interval: Millis,
    /// Age of the newest acknowledged cut, if one is known since this process began.
    pub age: Option<Millis>,
    /// Time since this process began to watch.
    pub watched: Millis,
    /// Share of recently missed cycles in percent.
    pub missed_percent: u64,
    /// Why the last attempt failed, if it did.
    pub failure: Option<String>,
    /// Whether the other side is paused by its operator.
    pub peer_suspended: bool,
    /// Whether this is the receiving side.
    pub is_replica: bool,
}

/// Judges.
pub fn judge(v: &Vitals) -> (Health, Vec<Issue>) {
    if v.state == State::Disabled {
        return (Health::NotApplicable, Vec::new());
    }
    let mut issues = Vec::new();
    by_state(v, &mut issues);
    by_progress(v, &mut issues);
    let worst = issues.iter().map(|i| i.health).max().unwrap_or(Health::Ok);
    (worst, issues)
}

fn by_state(v: &Vitals, issues: &mut Vec<Issue>) {
    let mut say = |health, text: &str| issues.push(Issue { health, text: text.to_owned() });
    match v.state {
        State::Ready => say(Health::Warning, "initial replication has not been started"),
        State::InitialReplication => say(Health::Warning, "initial replication has not been completed"),
        State::Suspended | State::ResyncSuspended if v.is_replica => {
            say(Health::Critical, "replication is paused on this replica: resume it")
        }
        State::Suspended | State::ResyncSuspended => say(Health::Warning, "replication is paused: resume it"),
        State::Critical => {
            let cause = v.failure.as_deref().unwrap_or("replication is in error");
            say(Health::Critical, cause);
        }
        State::ResyncRequired => {
            let cause = v.failure.as_deref().unwrap_or("the two sides must be compared");
            say(Health::Critical, &format!("resynchronisation is required: {cause}"));
        }
        State::Resynchronizing => say(Health::Critical, "resynchronisation has not been completed"),
        State::FailedOver => say(Health::Warning, "failed over: commit or revert the failover"),
        _ => {}
    }
    if v.peer_suspended {
        say(Health::Critical, "replication is paused on the replica: resume it there");
    }
}

fn by_progress(v: &Vitals, issues: &mut Vec<Issue>) {
    if v.state != State::Replicating {
        return;
    }
    let limit = Millis(2 * v.interval.0);
    let age = v.age.unwrap_or(v.watched);
    let behind = age > limit || v.age.is_none();
    if let Some(failure) = &v.failure {
        let health = if age > limit { Health::Critical } else { Health::Warning };
        issues.push(Issue { health, text: failure.clone() });
    }
    if behind {
        let text = match v.age {
            Some(age) => format!("the newest acknowledged cut is {age} old, more than two intervals"),
            None => "no cycle was acknowledged since the service started".to_owned(),
        };
        issues.push(Issue { health: Health::Warning, text });
    }
    if v.missed_percent > 20 {
        let text = format!("{} % of the recent cycles were missed", v.missed_percent);
        issues.push(Issue { health: Health::Warning, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vitals() -> Vitals {
        Vitals {
            state: State::Replicating,
            interval: Millis(1000),
            age: Some(Millis(1500)),
            watched: Millis(60_000),
            missed_percent: 0,
            failure: None,
            peer_suspended: false,
            is_replica: false,
        }
    }

    #[test]
    fn only_proven_progress_is_ok() {
        assert_eq!(judge(&vitals()).0, Health::Ok);
        assert_eq!(judge(&Vitals { age: Some(Millis(2001)), ..vitals() }).0, Health::Warning);
        assert_eq!(judge(&Vitals { age: None, ..vitals() }).0, Health::Warning);
        assert_eq!(judge(&Vitals { missed_percent: 21, ..vitals() }).0, Health::Warning);
        let failure = Some("the link is down".to_owned());
        let late = Vitals { age: Some(Millis(2001)), failure, ..vitals() };
        assert_eq!(judge(&late).0, Health::Critical);
    }

    #[test]
    fn the_worst_condition_counts_and_each_is_named() {
        let v = Vitals { missed_percent: 50, peer_suspended: true, ..vitals() };
        let (health, issues) = judge(&v);
        assert_eq!((health, issues.len()), (Health::Critical, 2));
        assert_eq!(judge(&Vitals { state: State::Disabled, ..vitals() }), (Health::NotApplicable, vec![]));
    }

    #[test]
    fn a_pause_is_a_warning_on_the_primary_and_critical_on_the_replica() {
        let paused = Vitals { state: State::Suspended, ..vitals() };
        assert_eq!(judge(&paused).0, Health::Warning);
        assert_eq!(judge(&Vitals { is_replica: true, ..paused }).0, Health::Critical);
    }
}
