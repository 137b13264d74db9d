//! The command line as typed; the options of each command are in the file of its name. Defaults that depend on the machine or the
//! user are filled in by `resolve`.

mod cat;
mod demo;
mod doctor;
mod extract;
mod index;
mod inspect;
mod ls;
mod mount;
mod mount_helper;
mod reading;
mod record;
mod run_as;
mod runtime_spec;
mod umount;
mod verify;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{
    log::{Times, parse_level},
    owner::settings::LOG_LEVEL_DEFAULT,
};

pub use cat::CatArgs;
pub use demo::DemoArgs;
pub use doctor::DoctorArgs;
pub use extract::ExtractArgs;
pub use index::{IndexArgs, WindowsArg};
pub use inspect::InspectArgs;
pub use ls::LsArgs;
pub use mount::MountArgs;
pub use mount_helper::MountHelperArgs;
pub use reading::{ClientArgs, Creds, ReadArgs};
pub use record::RecordArgs;
pub use runtime_spec::{Net, RuntimeSpecArgs};
pub use umount::UmountArgs;
pub use verify::VerifyArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0      done; also a foreground mount that was told to stop by a signal
  1      failed, in whole or in part; the reason is on stderr
  2      the command line cannot be used
  141    whoever read the output closed it before its end, as if ended by SIGPIPE
  128+N  ended by signal N: 129 SIGHUP, 130 SIGINT, 143 SIGTERM
  mount.clip follows mount(8): 0 mounted, 1 command line, 32 mount failed

Environment:
  CLIP_LOG         log level or filter: error, warn (default; info in the process that serves mounts), info, debug, clip_engine=debug
  CLIP_CACHE_DIR   as --cache-dir
  SSL_CERT_FILE, SSL_CERT_DIR            certificate authorities instead of the system's
  HTTP_PROXY, HTTPS_PROXY, NO_PROXY      proxies, as curl and containerd read them; of a mount those of its owner

Credentials are looked for in this order when a registry wants some: --no-creds, --creds or --authfile; then in
  CLIP_REGISTRY_USER_<HOST>, CLIP_REGISTRY_PASS_<HOST>
                       HOST in upper case, with _ for every character but letters and digits
  CLIP_OCI_AUTH        {\"HOST\": {\"username\": ..., \"password\": ...}}, or {\"HOST\": {\"token\": ...}}
  REGISTRY_AUTH_FILE   as --authfile, but it may be missing; without it
                       $XDG_RUNTIME_DIR/containers/auth.json or /run/containers/UID/auth.json,
                       $XDG_CONFIG_HOME/containers/auth.json or ~/.config/containers/auth.json,
                       $DOCKER_CONFIG/config.json or ~/.docker/config.json
  In a file credHelpers and credsStore are asked first, then auths.

Start here:
  clip demo                              see it work, without network or registry
  clip index debian:12 -o debian.clip    index an image once
  clip mount debian.clip /mnt/debian     mount it; files are fetched when they are read
  clip umount /mnt/debian";

/// Start containers from large OCI images in seconds: index once, mount at once, fetch what is read.
#[derive(Debug, Parser)]
#[command(name = "clip", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// Log level or filter (error, warn, info, debug, trace), also of the background process that a mount starts; wins over CLIP_LOG
    #[arg(long, global = true, value_name = "LEVEL", value_parser = parse_level)]
    pub log_level: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command each.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Index an OCI image: writes a .clip, which holds metadata only
    Index(IndexArgs),
    /// Mount a .clip; returns when it can be read and serves in the background
    Mount(MountArgs),
    /// Unmount a clip mount, live or dead
    Umount(UmountArgs),
    /// Run a command in an image and write which parts it needs, in order: an access profile
    Record(RecordArgs),
    /// Show what a .clip holds: header, sections, layers, counts, config; or an access profile
    Inspect(InspectArgs),
    /// List files of a .clip, without mounting it
    Ls(LsArgs),
    /// Write files of a .clip to standard output, fetching what they need
    Cat(CatArgs),
    /// Unpack a .clip, or one path of it, into a directory
    Extract(ExtractArgs),
    /// Check a .clip, and with --remote every byte of every layer
    Verify(VerifyArgs),
    /// Print the config.json with which runc runs the image, and the overlay mount line
    RuntimeSpec(RuntimeSpecArgs),
    /// Say what of this machine works, and how to mend what does not
    Doctor(DoctorArgs),
    /// Show everything at work on a sample image, without network or registry
    Demo(DemoArgs),
    /// The background process of a cache directory; started by `clip mount`
    #[command(hide = true)]
    Owner {
        /// For people who read process lists; the settings come on standard input.
        #[arg(long)]
        cache_dir: Option<PathBuf>,
    },
    /// The process in which `clip record` runs its command
    #[command(hide = true)]
    RecordContainer {
        /// Where its settings are.
        scratch: PathBuf,
    },
    /// What mount(8) calls.
    #[command(
        hide = true,
        name = "mount.clip",
        disable_help_flag = true,
        about = "What mount(8) calls for file system type clip; also as argv[0] `mount.clip`"
    )]
    MountHelper {
        /// As mount(8) gives them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<std::ffi::OsString>,
    },
}

impl Command {
    /// Whether the log of this command shows the time.
    pub fn log_times(&self) -> Times {
        match self {
            Command::Owner { .. } => Times::Shown,
            Command::Mount(args) if args.in_foreground() => Times::Shown,
            _ => Times::Hidden,
        }
    }

    /// The log level when neither --log-level nor CLIP_LOG is given.
    pub fn log_level(&self) -> &'static str {
        match self {
            Command::Owner { .. } => LOG_LEVEL_DEFAULT,
            Command::Mount(args) if args.in_foreground() => LOG_LEVEL_DEFAULT,
            // These print every error themselves.
            Command::Cat(_) | Command::Extract(_) | Command::Verify(_) | Command::RuntimeSpec(_) => {
                "warn,clip_engine::job=error,clip_engine::fetch=error"
            }
            // Whoever watches is told why nothing moves.
            Command::Index(args) if !args.quiet => "warn,clip_engine::registry::retry=info",
            _ => "warn",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory as _;

    /// clap's own consistency check of every command and option.
    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
        MountHelperArgs::command().debug_assert();
    }

    /// Everything that mount(8) puts before or after the two names is taken.
    #[test]
    fn mount_helper_takes_what_mount_gives() {
        let argv = ["mount.clip", "/a.clip", "/mnt", "-sfnv", "-o", "rw,plain-http", "-t", "clip"];
        let args = MountHelperArgs::try_parse_from(argv).unwrap();
        assert!(args.sloppy && args.fake && args.no_mtab && args.verbose == 1);
        assert_eq!(args.options, ["rw,plain-http"]);
    }

    /// Everything after `--` is the container's command, dashes and all.
    #[test]
    fn runtime_spec_command_follows_two_dashes() {
        let cli = Cli::try_parse_from(["clip", "runtime-spec", "a.clip", "--net", "host", "--", "sh", "-c", "true"]).unwrap();
        let Command::RuntimeSpec(args) = cli.command else { panic!("another command") };
        assert_eq!(args.command, ["sh", "-c", "true"]);
        assert_eq!(args.net, Net::Host);
    }

    /// Every command that reaches a registry takes every deadline.
    #[test]
    fn every_command_takes_every_deadline() {
        let deadlines =
            "--read-timeout 5s --retries 3 --connect-timeout 1s --tls-timeout 1s --first-byte-timeout 1s --stall-timeout 1s --min-rate 0";
        for command in ["index x -o y", "mount x y", "record x", "cat x y", "extract x y", "verify x", "runtime-spec x", "doctor x"] {
            let argv = ["clip"].into_iter().chain(command.split(' ')).chain(deadlines.split(' '));
            assert!(Cli::try_parse_from(argv).is_ok(), "{command}");
        }
    }

    /// An option with a bad value is a usage error that names the option.
    #[test]
    fn bad_values_name_the_option() {
        let error = Cli::try_parse_from(["clip", "mount", "--read-timeout", "0", "a.clip", "/mnt"]).unwrap_err();
        assert!(error.to_string().contains("--read-timeout"), "{error}");
    }
}
