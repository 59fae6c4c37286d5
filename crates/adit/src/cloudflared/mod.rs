//! cloudflared's command line: the same words, flags, variables, files and exit codes (`tunnel-protocol.md §7`, §8.4).
//!
//! [`parse`] turns arguments into matches, [`resolve`] turns matches, environment and files into an [`Action`]. Nothing
//! here runs anything or reads a file by itself, so all of it is tested without a machine.

mod command;
mod error;
mod files;
mod resolve;
mod rules;
mod table;

pub(crate) use command::parse;
pub(crate) use error::CompatError;
pub(crate) use resolve::{Action, Environment, LogSettings, Resolved, resolve};
