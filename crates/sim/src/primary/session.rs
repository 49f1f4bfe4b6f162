//! The sending end of an open session: requests and their answers, bulk frames, signs of life.

use std::collections::VecDeque;

use bytes::Bytes;
use understudy_engine::primary::{Event, Failure};
use understudy_model::{Millis, SessionNumber, Timestamp};
use understudy_wire::message::{Notice, Ping};
use understudy_wire::{Decoder, Frame, FrameKind, Message, VERSIONS};

use super::failure::{gone, refusal};
use crate::net::{ConnId, End};
use crate::stage::Stage;

/// How often we ask whether the other side is alive.
pub const PING_EVERY: Millis = Millis::from_secs(5);
/// Silence after which a connection is given up.
const SILENCE_MAX: Millis = Millis::from_secs(30);

/// Who asked for something, and so gets the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The transfer under way.
    Lane,
    /// Nobody waits for the answer.
    Nobody,
}

/// What came out of received bytes.
#[derive(Debug)]
pub enum Heard {
    /// The lane's question was answered.
    Answer(Result<Message, Failure>),
    /// The engine should know.
    Event(Event),
    /// The connection is of no use any more.
    Lost,
}

/// An open session.
pub struct Session {
    conn: ConnId,
    number: SessionNumber,
    decoder: Decoder,
    /// Questions, the first of which was sent; answers come in their order.
    asked: VecDeque<(Asker, Message)>,
    early_refusal: Option<Failure>,
    heard_at: Timestamp,
    pings: u64,
    sent: u64,
}

impl Session {
    /// Takes over a connection on which the session was granted.
    pub fn new(conn: ConnId, number: SessionNumber, decoder: Decoder, now: Timestamp) -> Self {
        Self { conn, number, decoder, asked: VecDeque::new(), early_refusal: None, heard_at: now, pings: 0, sent: 0 }
    }

    /// Its connection.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// Its number.
    pub fn number(&self) -> SessionNumber {
        self.number
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Fails if the target gave up.
    pub fn check(&self) -> Result<(), Failure> {
        self.early_refusal.clone().map_or(Ok(()), Err)
    }

    /// Asks. The answer comes as [`Heard::Answer`].
    pub fn request(&mut self, asker: Asker, message: Message, stage: &mut Stage) -> Result<(), Failure> {
        self.check()?;
        self.asked.push_back((asker, message));
        if self.asked.len() == 1 {
            self.send_question(stage);
        }
        Ok(())
    }

    fn send_question(&mut self, stage: &mut Stage) {
        if let Some((_, message)) = self.asked.front() {
            let frame = message.to_frame(VERSIONS.1, self.number.0);
            self.send(&frame, stage);
        }
    }

    /// Says something that has no answer.
    pub fn tell(&mut self, message: &Message, stage: &mut Stage) -> Result<(), Failure> {
        self.check()?;
        self.send(&message.to_frame(VERSIONS.1, self.number.0), stage);
        Ok(())
    }

    /// Whether data can be sent without waiting.
    pub fn has_room(&self, stage: &Stage) -> bool {
        stage.net.has_room(self.conn, End::Dialer)
    }

    /// Sends data.
    pub fn bulk(&mut self, kind: FrameKind, sequence: u64, payload: Bytes, stage: &mut Stage) -> Result<(), Failure> {
        self.check()?;
        self.send(&Frame { kind, version: VERSIONS.1, session: self.number.0, sequence, payload }, stage);
        Ok(())
    }

    fn send(&mut self, frame: &Frame, stage: &mut Stage) {
        let bytes = frame.to_bytes();
        self.sent += bytes.len() as u64;
        stage.net.send(self.conn, End::Dialer, bytes, &mut stage.agenda);
    }

    /// A sign of life is due; false if the other side has been silent for too long.
    pub fn ping(&mut self, stage: &mut Stage) -> bool {
        if stage.now() - self.heard_at > SILENCE_MAX {
            return false;
        }
        self.pings += 1;
        let ping = Message::Ping(Ping { token: self.pings });
        self.send(&ping.to_frame(VERSIONS.1, self.number.0), stage);
        true
    }

    /// Takes received bytes in.
    pub fn hear(&mut self, bytes: &[u8], stage: &mut Stage) -> Vec<Heard> {
        self.decoder.buffer().extend_from_slice(bytes);
        self.hear_frames(stage)
    }

    /// Takes in what came behind the handshake's last word.
    pub fn hear_frames(&mut self, stage: &mut Stage) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            match self.decoder.next_frame() {
                Ok(None) => return heard,
                Ok(Some(frame)) if frame.kind == FrameKind::Message => {
                    self.heard_at = stage.now();
                    let Ok(message) = Message::from_payload(&frame.payload) else {
                        heard.push(Heard::Lost);
                        return heard;
                    };
                    heard.extend(self.on_message(message, stage));
                }
                Ok(Some(_)) | Err(_) => {
                    heard.push(Heard::Lost);
                    return heard;
                }
            }
        }
    }

    fn on_message(&mut self, message: Message, stage: &mut Stage) -> Option<Heard> {
        match message {
            Message::Pong(_) => None,
            Message::Notice(notice) => event_of(notice).map(Heard::Event),
            Message::Refused(refused) if self.asked.is_empty() => {
                self.early_refusal.get_or_insert_with(|| refusal(&refused));
                None
            }
            answer => {
                let Some((asker, _)) = self.asked.pop_front() else { return Some(Heard::Lost) };
                self.send_question(stage);
                let answer = match answer {
                    Message::Refused(refused) => Err(refusal(&refused)),
                    answer => Ok(answer),
                };
                (asker == Asker::Lane).then_some(Heard::Answer(answer))
            }
        }
    }

    /// The failure of whoever still waits when the connection goes: an early refusal says more than its end.
    pub fn last_word(&self) -> Failure {
        self.early_refusal.clone().unwrap_or_else(gone)
    }
}

fn event_of(notice: Notice) -> Option<Event> {
    match notice {
        Notice::Suspended => Some(Event::PeerSuspended(true)),
        Notice::Resumed => Some(Event::PeerSuspended(false)),
        Notice::FailedOver { .. } => Some(Event::PeerFailedOver),
        Notice::Removed => Some(Event::PeerRemoved),
        Notice::Trouble { .. } | Notice::Unknown => None,
    }
}
