//! The library of fdkit, which captures descriptor tables as images and restores them.
//!
//! A module uses only modules above it in the list of CONTRIBUTING.md.

pub mod error;
pub mod filter;
pub mod messages;
pub mod names;
pub mod placement;
pub mod sandbox;
pub mod seccomp;
pub mod sys;
pub mod text;
pub mod word_enum;

pub mod image;
pub mod operation;

pub mod cli;
pub mod terminal;

pub mod proc;

pub mod kind;

pub mod capture;
pub mod ctty;
mod lock;
pub mod plan;
pub mod table;
pub mod tree;
