#![forbid(unsafe_code)]
//! fdimg
fn main() {}
