//! `clip umount`

use anyhow::Result;
use clip_fuse::mount::{Detach, umount};

use crate::{
    args::UmountArgs,
    exit::{Outcome, report},
    resolve,
};

/// Every directory of `args` is unmounted, or what prevents it has been printed.
pub fn run(args: &UmountArgs) -> Result<Outcome> {
    let detach = if args.lazy { Detach::Lazily } else { Detach::IfIdle };
    let mut outcome = Outcome::Good;
    for dir in &args.dirs {
        let done = resolve::mountpoint(dir).and_then(|dir| Ok(umount(&dir, detach)?));
        if let Err(error) = done {
            report(&error);
            outcome = Outcome::Bad;
        }
    }
    Ok(outcome)
}
