//! From nothing to an open session: connect, greet, ask.

use understudy_engine::primary::{Failure, TargetReport, Token};
use understudy_model::{self as model, CutNumber, Generation, Millis, RelationshipId, SessionNumber};
use understudy_wire::message::{Open, Opened, Relationship, Settings};
use understudy_wire::{Decoder, Message, target};

use super::failure::{bug, failure, gone, refusal, unexpected};
use super::session::Session;
use crate::net::{Arrived, ConnId, End};
use crate::stage::Stage;

/// Time a handshake may take in all.
pub const HANDSHAKE: Millis = Millis::from_secs(20);

/// A session that is being opened.
pub struct Dial {
    /// Names the outcome.
    pub token: Token,
    /// The connection.
    pub conn: ConnId,
    wanted: Wanted,
    decoder: Decoder,
    is_greeted: bool,
}

/// What is asked for.
pub struct Wanted {
    /// Which relationship.
    pub relationship: RelationshipId,
    /// Our generation.
    pub generation: Generation,
    /// Number for the session.
    pub session: SessionNumber,
    /// Current settings.
    pub settings: model::Settings,
}

/// What a handshake came to, once it has.
pub type Outcome = Result<(Session, TargetReport), Failure>;

impl Dial {
    /// Begins to connect.
    pub fn begin(token: Token, wanted: Wanted, stage: &mut Stage) -> Self {
        let conn = stage.net.dial(&mut stage.agenda);
        Self { token, conn, wanted, decoder: Decoder::new(), is_greeted: false }
    }

    /// Goes on with what came; the outcome ends the handshake.
    pub fn on_arrival(&mut self, arrived: Arrived, stage: &mut Stage) -> Option<Outcome> {
        match arrived {
            Arrived::Connected => {
                self.say(&Message::Hello(target::hello("understudy-sim", "primary")), stage);
                None
            }
            Arrived::Bytes(bytes) => {
                self.decoder.buffer().extend_from_slice(&bytes);
                self.read(stage)
            }
            Arrived::Refused | Arrived::Closed | Arrived::Accepted => Some(Err(gone())),
        }
    }

    fn read(&mut self, stage: &mut Stage) -> Option<Outcome> {
        loop {
            let frame = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(err) => return Some(Err(failure(model::ErrorKind::Retry, &err).with_link_lost())),
            };
            let outcome = match Message::from_payload(&frame.payload) {
                Ok(message) => self.on_message(message, stage),
                Err(err) => Some(Err(failure(model::ErrorKind::Bug, &err))),
            };
            if outcome.is_some() {
                return outcome;
            }
        }
    }

    fn on_message(&mut self, message: Message, stage: &mut Stage) -> Option<Outcome> {
        match message {
            Message::Refused(refused) => Some(Err(refusal(&refused))),
            Message::Welcome(welcome) if !self.is_greeted => match target::choose_version(&welcome) {
                Ok(_) => {
                    self.is_greeted = true;
                    self.ask(stage);
                    None
                }
                Err(err) => Some(Err(failure(model::ErrorKind::Refused, &err))),
            },
            Message::Opened(opened) if self.is_greeted => Some(self.opened(&opened, stage)),
            other => Some(Err(unexpected(&other))),
        }
    }

    fn ask(&mut self, stage: &mut Stage) {
        let open = Message::Open(Open {
            relationship: Relationship::from(self.wanted.relationship),
            generation: self.wanted.generation.0,
            session: self.wanted.session.0,
            settings: Settings::from(&self.wanted.settings),
        });
        self.say(&open, stage);
    }

    fn opened(&mut self, opened: &Opened, stage: &mut Stage) -> Outcome {
        let report = report(opened)?;
        let decoder = std::mem::take(&mut self.decoder);
        Ok((Session::new(self.conn, self.wanted.session, decoder, stage.now()), report))
    }

    fn say(&self, message: &Message, stage: &mut Stage) {
        let bytes = message.to_frame(0, 0).to_bytes();
        stage.net.send(self.conn, End::Dialer, bytes, &mut stage.agenda);
    }
}

fn report(opened: &Opened) -> Result<TargetReport, Failure> {
    let newest = opened.newest.as_ref().map(model::CutRef::try_from).transpose();
    let newest = newest.map_err(|err| bug(&err.to_string()))?;
    let base = opened.base.as_ref().map(|base| {
        let positions = base.positions.iter().map(Into::into).collect();
        (CutNumber(base.attempt), positions)
    });
    Ok(TargetReport { newest, base, is_suspended: opened.suspended })
}
