//! Pictures in.
pub mod demo;
