#![forbid(unsafe_code)]
//! fdrestore
fn main() {}
