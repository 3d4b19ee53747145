#![forbid(unsafe_code)]
//! ttyctl
fn main() {}
