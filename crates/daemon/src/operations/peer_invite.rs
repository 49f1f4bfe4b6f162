//! Invites another host: makes the token that its administrator hands to `peer join`.

use understudy_model::Refusal;

use super::{Administer, Done, Operations, Permit, to_the_end};
use crate::audit::Act;
use crate::link::token::InviteToken;

impl Operations {
    /// Makes an invitation. The token is told once and stored nowhere.
    pub async fn peer_invite(&self, permit: &Permit<Administer>) -> Result<Done<InviteToken>, Refusal> {
        let (this, by) = (self.clone(), permit.by().to_owned());
        to_the_end(async move {
            let act = Act { by, act: "peer-invite", object: this.parts.about.name.clone(), detail: String::new() };
            let begun = this.parts.audit.begin(act).await?;
            match this.parts.pairing.invite().await {
                Ok(token) => {
                    begun.done().await;
                    Ok(Done::now(token))
                }
                Err(refusal) => {
                    begun.refused(&refusal).await;
                    Err(refusal)
                }
            }
        })
        .await
    }
}
