//! Where numbers are computed.

pub mod cpu;
