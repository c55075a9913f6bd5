//! What a device must offer, and the devices.

pub mod reference;

/// Runs batches on one device. Owned by the engine's thread.
pub trait Backend: Send {}
