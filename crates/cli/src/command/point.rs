//! `understudy point`

use understudy_daemon::faces::rest::types;

use super::Session;
use super::replication::RELATIONSHIPS;
use crate::arguments::Point;
use crate::client::{path, read};
use crate::failure::Failure;
use crate::show;

impl Session {
    pub(super) async fn point(&self, verb: Point) -> Result<(), Failure> {
        let Point::List { name } = verb;
        let answer = self.client.get(&path(RELATIONSHIPS, &name, "/points")).await?;
        self.tell(&answer, || {
            let points: Vec<types::Point> = read(&answer)?;
            if points.is_empty() {
                println!("Nothing of VM {name} has been received yet.");
                return Ok(());
            }
            let row = |p: types::Point| {
                let kept = if p.is_newest { "newest state" } else { "recovery point" };
                let (taken, stored) = (show::time(&p.cut.taken_at), show::bytes(p.stored_bytes));
                vec![p.id, taken, p.consistency, kept.to_owned(), stored, p.cut.number.to_string()]
            };
            let header = ["POINT", "TAKEN", "CONSISTENCY", "WHAT", "STORED", "CUT"];
            show::table(&header, points.into_iter().map(row).collect());
            Ok(())
        })
    }
}
