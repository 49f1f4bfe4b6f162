//! Hosts that come to trust each other.

use anyhow::Result;
use understudy_e2e::Pair;

#[test]
fn two_hosts_trust_each_other_across_crashes_and_an_invitation_serves_once() -> Result<()> {
    let mut pair = Pair::start_with(|config| config.allow("invitation presented by a host was refused"))?;
    for (site, other) in [(&pair.primary, "replica"), (&pair.replica, "primary")] {
        let peers = site.json(&["peer", "list"])?;
        assert_eq!(peers.as_array().map(Vec::len), Some(1), "{peers}");
        assert_eq!(peers[0]["name"], other);
    }
    for _ in 0..2 {
        pair.primary.kill()?;
        pair.primary.up()?;
        pair.replica.stop()?;
        pair.replica.up()?;
    }
    assert_eq!(pair.primary.json(&["peer", "list"])?[0]["name"], "replica");
    assert_eq!(pair.replica.json(&["peer", "list"])?[0]["name"], "primary");

    let token = pair.invite()?;
    pair.primary.text(&["peer", "join", &token])?;
    assert!(pair.primary.text(&["peer", "join", &token]).is_err(), "an invitation served twice");
    pair.stop()
}
