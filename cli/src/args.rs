//! The command line as typed. Defaults that depend on the machine or the user are filled in by `resolve`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clip_engine::{DiskIo, registry::Reference};
use clip_format::storage_info::Platform;
use clip_indexer::ImageRef;

use crate::log::Times;
use crate::owner::settings::LOG_LEVEL_DEFAULT;
use crate::values::{parse_count, parse_duration, parse_size, parse_span_size, parse_timeout};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  the command line cannot be used
  mount.clip follows mount(8): 0 mounted, 1 command line, 32 mount failed

Environment:
  CLIP_LOG         log level or filter: error, warn (default), info, debug, clip_engine=debug
  CLIP_CACHE_DIR   as --cache-dir
  DOCKER_CONFIG    directory of docker's config.json with registry credentials (default ~/.docker)

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
    #[arg(long, global = true, value_name = "LEVEL")]
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
    /// Show what a .clip holds: header, sections, layers, counts, config
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
            Command::Mount(args) if args.foreground => Times::Shown,
            _ => Times::Hidden,
        }
    }

    /// The log level when neither --log-level nor CLIP_LOG is given.
    pub fn log_level(&self) -> &'static str {
        match self {
            Command::Owner { .. } => LOG_LEVEL_DEFAULT,
            Command::Mount(args) if args.foreground => LOG_LEVEL_DEFAULT,
            // These print every error themselves.
            Command::Cat(_) | Command::Extract(_) | Command::Verify(_) | Command::RuntimeSpec(_) => {
                "warn,clip_engine::job=error,clip_engine::fetch=error"
            }
            _ => "warn",
        }
    }
}

/// `clip index`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  clip index debian:12 -o debian.clip
  clip index --platform linux/arm64 ghcr.io/owner/image@sha256:... -o image.clip
  clip index oci:layout:latest --store-ref registry.example/image:1 -o image.clip
  clip index --json --quiet localhost:5000/torch -o torch.clip")]
pub struct IndexArgs {
    /// The image: in a registry, a layout or an archive.
    #[arg(
        value_name = "REF",
        help = "NAME[:TAG][@DIGEST] as docker takes it, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]"
    )]
    pub image: ImageRef,
    /// The .clip to write; replaced at once when it is whole, untouched on failure
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Which image of a multi-platform one, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, value_parser = parse_platform)]
    pub platform: Option<Platform>,
    /// Distance of the checkpoints: what one small read decodes at least (64KiB to 64MiB) [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_span_size)]
    pub span_size: Option<u64>,
    /// Which decompressor state to keep. `sparse`: the few bytes that later data refers to, so that reading can start at every
    /// checkpoint. `none`: none of it; the .clip then holds no byte of any file, but a layer can only be entered at its start,
    /// at the start of a gzip member or after a full flush, so that a read may have to decode far
    #[arg(long, value_enum, default_value_t)]
    pub windows: WindowsArg,
    /// Read the layers from here when mounted; its manifest must hold every layer of REF
    #[arg(long, value_name = "REF")]
    pub store_ref: Option<Reference>,
    /// Layers indexed side by side [default: number of cores]
    #[arg(short, long, value_name = "N", value_parser = parse_count)]
    pub jobs: Option<usize>,
    /// How registries are spoken to.
    #[command(flatten)]
    pub client: ClientArgs,
    /// No progress on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// A summary as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// `--windows`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WindowsArg {
    /// Keep what later data refers to.
    #[default]
    Sparse,
    /// Keep none.
    None,
}

/// How registries are spoken to.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientArgs {
    /// Speak plain HTTP to every registry [default: to loopback only]
    #[arg(long)]
    pub plain_http: bool,
    /// More trusted certificate authorities, PEM, besides the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Everything about reading layers: for mount, cat, extract, verify, runtime-spec and doctor.
#[derive(Clone, Debug, Default, Args)]
pub struct ReadArgs {
    /// Where fetched bytes are kept, shared by every image with the same layers
    /// [default: /var/cache/clip for root, else $XDG_CACHE_HOME/clip or ~/.cache/clip]
    #[arg(long, value_name = "DIR", env = "CLIP_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// How registries are spoken to.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Where the local layout or archive that was indexed is now
    #[arg(long, value_name = "PATH")]
    pub source: Option<PathBuf>,
    /// Read the layers from this repository instead of the recorded one
    #[arg(long, value_name = "REF")]
    pub store_ref: Option<Reference>,
    /// Engine threads [default: number of cores, at most 8]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub shards: Option<usize>,
    /// A read fails after this long without progress towards it [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub read_timeout: Option<Duration>,
    /// A read fails after this long, progress or not [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub read_deadline: Option<Duration>,
    /// Largest read-ahead of a sequential reader, 0 for none [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub read_ahead: Option<u64>,
    /// How the cache is written: auto (io_uring where allowed), uring or pool [default: auto]
    #[arg(long, value_name = "HOW", value_parser = parse_disk_io)]
    pub disk_io: Option<DiskIo>,
}

/// `clip mount`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The first mount of a cache directory starts a background process that serves it and every later one of that directory; it leaves \
after the last umount. Options of reading (--shards, --read-timeout ...), --stop-timeout, --log-file and --log-level belong to that process: \
a later mount that gives another value is refused, one that gives none joins with the values in force.

Signals to that process: SIGTERM or SIGINT once: detach every mount, serve open files until idle or --stop-timeout; twice: end \
all connections. SIGUSR1: write --stats.

Examples:
  clip mount debian.clip /mnt/debian
  clip mount --foreground --stats stats.json debian.clip /mnt/debian
  clip mount -o nosuid,nodev,fsname=debian debian.clip /mnt/debian
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
    /// option of this command without its dashes
    #[arg(short = 'o', value_name = "LIST", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// After the first SIGTERM or SIGINT: how long open files are still served [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub stop_timeout: Option<Duration>,
    /// Write counters as JSON to this file on SIGUSR1 and at the end of the mount
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Where the background process logs [default: owner.log in the cache directory]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Threads that read requests of this mount [default: number of cores, at most 4]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub session_threads: Option<usize>,
    /// The kernel's own read-ahead for this mount; only root can set it
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub kernel_read_ahead: Option<u64>,
}

/// `clip umount`
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Detach now, serve files that are open until they are closed
    #[arg(short, long)]
    pub lazy: bool,
}

/// `clip inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `clip ls`
#[derive(Debug, Args)]
#[command(after_help = "\
Names with control characters or bytes that are no UTF-8 are escaped (\\n, \\x1b) when standard output is a \
terminal or with -l; -0 gives them raw, each ended by NUL.

Examples:
  clip ls debian.clip /etc
  clip ls -lR debian.clip
  clip ls -R0 debian.clip / | xargs -0 -n1 echo")]
pub struct LsArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Paths in the image [default: /]
    #[arg(value_name = "PATH")]
    pub paths: Vec<std::ffi::OsString>,
    /// Mode, links, owner, size or device, time, name and target
    #[arg(short = 'l', long)]
    pub long: bool,
    /// Directories and everything below, one full path a line
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Directories themselves, not their entries
    #[arg(short, long)]
    pub directory: bool,
    /// Raw names, each ended by NUL
    #[arg(short = '0', long, conflicts_with = "long")]
    pub null: bool,
}

/// `clip cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Regular files in the image; symbolic links are followed
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<std::ffi::OsString>,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `clip extract`
#[derive(Debug, Args)]
#[command(after_help = "\
DIR becomes the image's root directory (or PATH, when that is a directory; a file is put into DIR under its own name). Modes, \
times, symbolic and hard links and holes are kept; owners, devices and extended attributes when run as root. Nothing is ever \
written outside DIR, whatever the .clip says.

Examples:
  clip extract debian.clip rootfs
  clip extract debian.clip etc /etc")]
pub struct ExtractArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Where to; made if missing, must be empty without --force
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What to unpack [default: /]
    #[arg(value_name = "PATH")]
    pub path: Option<std::ffi::OsString>,
    /// Unpack over what DIR holds: files are replaced, directories merged
    #[arg(long)]
    pub force: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `clip verify`
#[derive(Debug, Args)]
#[command(after_help = "\
Without --remote: header, checksums of all sections, the whole structure of the index, every checkpoint and window. With \
--remote also every span of every layer: fetched, decoded and compared with its BLAKE3, into a temporary cache directory \
(needs the image's size on disk) or the one given.")]
pub struct VerifyArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Fetch and check every span of every layer
    #[arg(long)]
    pub remote: bool,
    /// The result as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `clip runtime-spec`
#[derive(Debug, Args)]
#[command(after_help = "\
config.json goes to standard output, the overlay mount line to stderr; with --print-mount the line goes to standard output and \
no config.json is written.

Example, as root:
  clip mount debian.clip /mnt/debian && mkdir -p c/upper c/work c/rootfs
  clip runtime-spec debian.clip -- /bin/echo hello > c/config.json
  sh -c \"$(clip runtime-spec debian.clip --print-mount --bundle c --mountpoint /mnt/debian)\"
  runc run --bundle c hello; umount c/rootfs; clip umount /mnt/debian")]
pub struct RuntimeSpecArgs {
    /// The .clip
    #[arg(value_name = "FILE.clip")]
    pub clip: PathBuf,
    /// Run this instead of the image's entrypoint and command
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    /// root.path of the config.json, relative to the bundle
    #[arg(long, default_value = "rootfs", value_name = "DIR")]
    pub rootfs: PathBuf,
    /// The bundle directory, for the mount line: upper, work and rootfs are in it
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Where the .clip is mounted, for the mount line [default: where it is mounted now]
    #[arg(long, value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,
    /// Print the overlay mount line instead of config.json
    #[arg(long)]
    pub print_mount: bool,
    /// private: an empty network namespace; host: the host's
    #[arg(long, value_enum, default_value_t)]
    pub net: Net,
    /// Add or replace an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Run as this user, and group, instead of the image's.
    #[arg(short, long, help = "Run as this user instead of the image's: USER[:GROUP], names or numbers")]
    pub user: Option<String>,
    /// Working directory instead of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The process has a terminal
    #[arg(short, long)]
    pub terminal: bool,
    /// The root is read-only
    #[arg(long)]
    pub read_only: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `--net`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// A new, empty network namespace.
    #[default]
    Private,
    /// The host's network.
    Host,
}

/// `clip doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also check the registry of this .clip or image reference
    #[arg(value_name = "FILE.clip|REF")]
    pub target: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Everything about reading.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `clip demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Do not mount; read through the library
    #[arg(long)]
    pub no_mount: bool,
    /// Leave the temporary directory and say where it is
    #[arg(long)]
    pub keep: bool,
}

/// What mount(8) hands to `mount.clip`.
#[derive(Debug, Parser)]
#[command(
    name = "mount.clip",
    version,
    after_help = "Called by mount(8): mount -t clip FILE.clip DIR -o OPTIONS. See `clip mount --help` for the options."
)]
pub struct MountHelperArgs {
    /// The .clip
    pub source: PathBuf,
    /// The mountpoint
    pub dir: PathBuf,
    /// Tolerate unknown options
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Do everything but mount
    #[arg(short = 'f')]
    pub fake: bool,
    /// No /etc/mtab; nothing to do
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Say what is done
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Mount in another mount namespace; not supported
    #[arg(short = 'N', value_name = "NS")]
    pub namespace: Option<PathBuf>,
    /// Options of mount(8) and of clip mount
    #[arg(short = 'o', value_name = "LIST", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// The file system type
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}

/// `OS/ARCH[/VARIANT]`
pub fn parse_platform(text: &str) -> Result<Platform, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let bad = || format!("expected OS/ARCH[/VARIANT] such as linux/arm64/v8, found {text:?}");
    if parts.iter().any(|part| part.is_empty()) {
        return Err(bad());
    }
    match parts[..] {
        [os, architecture] => Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: None }),
        [os, architecture, variant] => {
            Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: Some(variant.to_owned()) })
        }
        _ => Err(bad()),
    }
}

/// `auto`, `uring` or `pool`
pub fn parse_disk_io(text: &str) -> Result<DiskIo, String> {
    match text {
        "auto" => Ok(DiskIo::Auto),
        "uring" => Ok(DiskIo::Uring),
        "pool" => Ok(DiskIo::Pool),
        _ => Err(format!("expected auto, uring or pool, found {text:?}")),
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

    /// Platforms have two or three parts, none empty.
    #[test]
    fn platforms() {
        assert_eq!(parse_platform("linux/arm64/v8").unwrap().variant.as_deref(), Some("v8"));
        for bad in ["", "linux", "linux/", "a/b/c/d"] {
            assert!(parse_platform(bad).is_err(), "{bad}");
        }
    }

    /// An option with a bad value is a usage error that names the option.
    #[test]
    fn bad_values_name_the_option() {
        let error = Cli::try_parse_from(["clip", "mount", "--read-timeout", "0", "a.clip", "/mnt"]).unwrap_err();
        assert!(error.to_string().contains("--read-timeout"), "{error}");
    }
}
