//! The binary `clip`: index an OCI image once, then mount it at once.
//!
//! `args` is what was typed, `resolve` turns that and the environment into configs, `cmd` has one file a command, `owner` is the
//! process that serves every mount of one cache directory. Nothing here knows how bytes are fetched or decoded.
#![deny(clippy::undocumented_unsafe_blocks)]

mod accounts;
mod args;
mod clip_input;
mod cmd;
mod deadlines;
mod demo;
mod display;
mod exit;
mod interrupt;
mod log;
mod output;
mod owner;
mod password;
mod pieces;
mod profile_input;
mod regular_file;
mod resolve;
mod values;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Parser;

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    if argv.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == "mount.clip")) {
        return cmd::mount_helper::main(&argv);
    }
    let args = match args::Cli::try_parse_from(argv) {
        Ok(args) => args,
        Err(error) => return exit::usage(&error),
    };
    match log::start(args.log_level.as_deref(), args.command.log_level(), args.command.log_times()) {
        Ok(()) => exit::finish(cmd::run(args.command, args.log_level)),
        Err(error) => exit::finish(Err(error.into())),
    }
}
