//! fdkit makes a descriptor table a file.
//!
//! The modules stand in the order in which data meets them, and arrows point one way only.

pub mod error;
pub mod sys;

pub mod image;

pub mod count;
pub mod diag;
pub mod filter;
pub mod holders;
pub mod network;
pub mod proc;
pub mod progress;
pub mod service;
pub mod shrink;
pub mod site;
pub mod stats;
pub mod store;
pub mod terminal;
pub mod text;

pub mod kind;

pub mod capture;
pub mod ctty;
pub mod freeze;
mod lock;
pub mod plan;
pub mod restore;
pub mod tree;

pub mod cli;
