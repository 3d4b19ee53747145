//! The suite: what users rely on, through the real binaries.

mod errors; // bad input gets one line, its status, and loses nothing
mod harness;
mod kinds; // every kind goes through scan and restore, and works inside
mod man; // --help and the man pages agree
mod pipelines; // real programs, and the tools in a row
mod services; // nothing of fdrestore's own is left in COMMAND
