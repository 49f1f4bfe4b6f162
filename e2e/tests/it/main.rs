//! Real daemons, real guests.

mod pairing;
