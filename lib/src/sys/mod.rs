//! The door to the kernel: what nix has no safe name for. One of the two rooms with `unsafe`.
#![allow(unsafe_code)]
