//! Real daemons, real guests.

mod guest_devices;
mod guest_foreign;
mod guest_guard;
mod guest_resize;
mod guest_restart;
mod pairing;
mod protect;
