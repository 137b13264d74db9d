//! One file a command.

pub mod cat;
pub mod demo;
pub mod doctor;
pub mod extract;
pub mod index;
pub mod inspect;
pub mod ls;
pub mod mount;
pub mod mount_helper;
pub mod owner;
pub mod record;
pub mod runtime_spec;
pub mod umount;
pub mod verify;

use anyhow::Result;

use crate::{
    args::{Command, MountArgs, RecordArgs},
    exit::Outcome,
};

/// Runs one command. `log_level` as typed: for a background process that the command starts.
pub fn run(command: Command, log_level: Option<String>) -> Result<Outcome> {
    match command {
        Command::Index(args) => index::run(&args),
        Command::Mount(args) => mount::run(&MountArgs { log_level, ..args }),
        Command::Umount(args) => umount::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::RuntimeSpec(args) => runtime_spec::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Record(args) => record::run(&RecordArgs { log_level, ..args }),
        Command::RecordContainer { scratch } => record::container::run(&scratch),
        Command::Owner { .. } => owner::run(),
        Command::MountHelper { rest } => {
            let argv: Vec<_> = std::iter::once("mount.clip".into()).chain(rest).collect();
            match mount_helper::run(&argv) {
                0 => Ok(Outcome::Good),
                code => std::process::exit(i32::from(code)),
            }
        }
    }
}
