//! Real daemons, real guests.

mod copy;
mod guest_devices;
mod guest_foreign;
mod guest_guard;
mod guest_resize;
mod guest_restart;
mod guest_resync;
mod guest_seeded;
mod kills;
mod pairing;
mod protect;
mod refusals;
