//! `clip mount`

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::ReadArgs;
use crate::{
    owner::background::Fill,
    values::{parse_count, parse_duration, parse_rate, parse_size},
};

/// `clip mount`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The first mount of a cache directory starts a background process that serves it and every later one of that directory; it leaves \
after the last umount. Options of reading (--shards, --read-timeout ...), --stop-timeout, --log-file and --log-level belong to \
that process: a later mount that gives another value is refused, one that gives none joins with the values in force.

Signals to that process: SIGTERM, SIGINT or SIGHUP once: detach every mount, serve open files until idle or --stop-timeout; \
twice: end all connections. SIGUSR1: log the counters and write every mount's --stats.

Examples:
  clip mount debian.clip /mnt/debian
  clip mount --foreground --stats stats.json debian.clip /mnt/debian
  clip mount --profile python.profile --fill after --fill-rate 50M python.clip /mnt/python
  clip mount -o nosuid,nodev,fsname=debian debian.clip /mnt/debian
  clip mount --authfile /etc/clip/auth.json app.clip /mnt/app
  mount -t clip /images/debian.clip /mnt/debian -o plain-http,cache-dir=/data/clip
  /etc/fstab:  /images/debian.clip  /mnt/debian  clip  _netdev,nofail,read-timeout=1m  0 0")]
pub struct MountArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// An existing directory; a dead clip mount there is cleared first
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
    /// Serve from this process until the umount; when the cache directory has an owner already, hand the mount over and wait
    #[arg(short, long)]
    pub foreground: bool,
    /// Others than you may enter (root: always); needs user_allow_other in /etc/fuse.conf
    #[arg(long)]
    pub allow_other: bool,
    /// Options as mount(8) takes them: suid, dev, exec and their opposites, fsname=, allow_other, context= ...; and every long
    /// option of this command without its dashes, foreground only here and not in mount(8)
    #[arg(short = 'o', value_name = "LIST", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// After the first SIGTERM, SIGINT or SIGHUP: how long open files are still served [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub stop_timeout: Option<Duration>,
    /// Write counters as JSON to this file on SIGUSR1 and at the end of the mount; they count for the whole process that serves
    /// it, all its mounts together
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Write the order in which readers first need the image's parts to this file: an access profile. It is whole at any time, and
    /// complete once the mount has ended; what the kernel reads ahead counts as needed
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Fetch what this access profile says will be needed, ahead of the readers; wins over one embedded in the .clip
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Do not replay the profile that is embedded in the .clip
    #[arg(long)]
    pub no_profile: bool,
    /// Fetch the whole image in the background, behind every reader: never, once the profile is replayed and no read of the process
    /// has waited for 2 s, or from the start [default: none]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub fill: Option<Fill>,
    /// Compressed bytes a second that --fill may fetch [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub fill_rate: Option<u64>,
    /// Where the background process logs [default: owner.log in the cache directory]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Threads that read requests of this mount [default: number of cores, at most 4]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub session_threads: Option<usize>,
    /// The kernel's own read-ahead for this mount; only root can set it
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub kernel_read_ahead: Option<u64>,
    /// `--log-level`, which every command has, for the process that serves the mount.
    #[arg(skip)]
    pub log_level: Option<String>,
}

impl MountArgs {
    /// What `clip mount` with these names and nothing else is.
    pub fn new(clip: PathBuf, dir: PathBuf, read: ReadArgs) -> Self {
        Self {
            clip,
            dir,
            read,
            foreground: false,
            allow_other: false,
            options: Vec::new(),
            stop_timeout: None,
            stats: None,
            record: None,
            profile: None,
            no_profile: false,
            fill: None,
            fill_rate: None,
            log_file: None,
            session_threads: None,
            kernel_read_ahead: None,
            log_level: None,
        }
    }

    /// Whether this process will log as an owner does. The lists are only looked at, not understood: what an option means is decided
    /// where the mount is planned.
    pub fn in_foreground(&self) -> bool {
        self.foreground || self.options.iter().any(|list| list.split(',').any(|option| option == "foreground"))
    }
}
