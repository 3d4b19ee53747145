#![forbid(unsafe_code)]
//! fdscan
fn main() {}
