//! Creating a relationship: the replica is asked for a place, then the record is written.

use understudy_engine::primary::{Failure, Record};
use understudy_model::Millis;
use understudy_wire::message::{Disk, Prepare, Relationship, Settings};
use understudy_wire::{Decoder, Message, target};

use super::failure::{gone, refusal, unexpected};
use crate::net::{Arrived, ConnId, End};
use crate::stage::Stage;

/// Time after which an answer is not waited for any longer.
pub const PATIENCE: Millis = Millis::from_secs(20);

/// A place is being asked for.
pub struct Create {
    /// The connection.
    pub conn: ConnId,
    record: Record,
    decoder: Decoder,
}

impl Create {
    /// Begins to connect.
    pub fn begin(record: Record, stage: &mut Stage) -> Self {
        let conn = stage.net.dial(&mut stage.agenda);
        Self { conn, record, decoder: Decoder::new() }
    }

    /// Goes on with what came; the outcome is the record to write.
    pub fn on_arrival(&mut self, arrived: Arrived, stage: &mut Stage) -> Option<Result<Record, Failure>> {
        match arrived {
            Arrived::Connected => {
                self.say(&Message::Hello(target::hello("understudy-sim", "primary")), stage);
                None
            }
            Arrived::Bytes(bytes) => {
                self.decoder.buffer().extend_from_slice(&bytes);
                while let Ok(Some(frame)) = self.decoder.next_frame() {
                    let outcome = match Message::from_payload(&frame.payload) {
                        Ok(message) => self.on_message(message, stage),
                        Err(_) => Some(Err(gone())),
                    };
                    if outcome.is_some() {
                        return outcome;
                    }
                }
                None
            }
            _ => Some(Err(gone())),
        }
    }

    fn on_message(&mut self, message: Message, stage: &mut Stage) -> Option<Result<Record, Failure>> {
        match message {
            Message::Welcome(_) => {
                let prepare = Message::Prepare(Box::new(Prepare {
                    relationship: Relationship::from(self.record.id),
                    generation: self.record.generation.0,
                    name: "vm".to_owned(),
                    disks: self.record.disks.iter().map(Disk::from).collect(),
                    settings: Settings::from(&self.record.settings),
                }));
                self.say(&prepare, stage);
                None
            }
            Message::Done => Some(Ok(self.record.clone())),
            Message::Refused(refused) => Some(Err(refusal(&refused))),
            other => Some(Err(unexpected(&other))),
        }
    }

    fn say(&self, message: &Message, stage: &mut Stage) {
        let bytes = message.to_frame(0, 0).to_bytes();
        stage.net.send(self.conn, End::Dialer, bytes, &mut stage.agenda);
    }
}
