//! `understudy peer`

use std::io::{BufRead, Read};

use anyhow::Context;
use understudy_daemon::faces::rest::types;

use super::Session;
use crate::arguments::Peer;
use crate::client::{path, read};
use crate::failure::Failure;
use crate::show;

const PEERS: &str = "/api/v1/peers";

/// Longest line read as a token; real ones are far shorter.
const TOKEN_MAX: u64 = 64 << 10;

impl Session {
    pub(super) async fn peer(&self, verb: Peer) -> Result<(), Failure> {
        match verb {
            Peer::Invite => self.peer_invite().await,
            Peer::Join { token } if token == "-" => self.peer_join(read_line()?).await,
            Peer::Join { token } => self.peer_join(token).await,
            Peer::List => self.peer_list().await,
            Peer::Test { peer } => {
                let answer = self.client.act(&path(PEERS, &peer, "/test")).await?;
                self.carry(answer, &format!("{peer} was reached, and both hosts trust each other.")).await
            }
            Peer::Remove { peer } => self.peer_remove(&peer).await,
        }
    }

    /// The token alone goes to standard output, so that a script can take it.
    async fn peer_invite(&self) -> Result<(), Failure> {
        let answer = self.client.act(&format!("{PEERS}/invite")).await?;
        self.tell(&answer, || {
            let made: types::InviteAnswer = read(&answer)?;
            println!("{}", made.token);
            eprintln!(
                "Serves once, until {}. On the other host: understudy peer join TOKEN",
                show::time(&made.expires_at)
            );
            Ok(())
        })
    }

    async fn peer_join(&self, token: String) -> Result<(), Failure> {
        let answer = self.client.post(&format!("{PEERS}/join"), &types::PeerJoin { token }).await?;
        self.tell(&answer, || {
            let joined: types::PeerAnswer = read(&answer)?;
            println!("Joined {}. VMs can now be replicated to it: understudy replication create", joined.peer.name);
            Ok(())
        })
    }

    async fn peer_list(&self) -> Result<(), Failure> {
        let answer = self.client.get(PEERS).await?;
        self.tell(&answer, || {
            let peers: Vec<types::Peer> = read(&answer)?;
            if peers.is_empty() {
                println!("No host is trusted. On the replica: understudy peer invite");
                return Ok(());
            }
            show::table(&["NAME", "IDENTITY", "ADDRESSES", "MAY REPLICATE HERE", "CONNECTIONS", "VMS"], rows(peers));
            Ok(())
        })
    }

    async fn peer_remove(&self, peer: &str) -> Result<(), Failure> {
        let answer = self.client.delete(&path(PEERS, peer, "")).await?;
        self.tell(&answer, || {
            let removed: types::PeerRemovedAnswer = read(&answer)?;
            println!("{} is no longer trusted.", removed.name);
            if !removed.relationships.is_empty() {
                let count = show::count(removed.relationships.len(), "relationship");
                println!("{count} with it will stand still until it is trusted again or they are removed.");
            }
            Ok(())
        })
    }
}

/// A token that must not stand in a list of processes.
fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    std::io::stdin().lock().take(TOKEN_MAX).read_line(&mut line).context("cannot read the token")?;
    Ok(line.trim().to_owned())
}

fn rows(peers: Vec<types::Peer>) -> Vec<Vec<String>> {
    let row = |p: types::Peer| {
        let may = if p.may_replicate_here { "yes" } else { "no" };
        let (connections, vms) = (p.connections.to_string(), p.relationships.len().to_string());
        vec![p.name, show::short(&p.id), p.addresses.join(" "), may.to_owned(), connections, vms]
    };
    peers.into_iter().map(row).collect()
}
