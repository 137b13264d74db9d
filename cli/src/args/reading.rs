//! What every command that reads layers takes.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use clip_engine::{
    DiskIo,
    registry::{Reference, Secret},
};

use crate::{
    deadlines::Deadlines,
    values::{parse_count, parse_memory, parse_size, parse_timeout},
};

/// How registries are spoken to.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientArgs {
    /// Speak plain HTTP to every registry [default: to loopback only]
    #[arg(long)]
    pub plain_http: bool,
    /// More trusted certificate authorities, PEM, besides the system's. With it a registry on loopback is asked in TLS if it speaks that
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Mirrors, certificates and proxies of registries, as containerd keeps them: REGISTRY/hosts.toml
    /// [default: /etc/containerd/certs.d, if it is there]
    #[arg(long, value_name = "DIR")]
    pub hosts_dir: Option<PathBuf>,
    /// Who asks the registry of this image. A password that is not here is asked for on the terminal, or read with --password-stdin; one that
    /// is here can be read by everybody in the list of processes
    #[arg(long, value_name = "USER[:PASSWORD]", value_parser = parse_creds, conflicts_with_all = ["authfile", "no_creds"])]
    pub creds: Option<Creds>,
    /// The password of --creds USER is on standard input
    #[arg(long, requires = "creds")]
    pub password_stdin: bool,
    /// Credentials are in this file, as docker login and podman login write it, and nowhere else [default: REGISTRY_AUTH_FILE; else where podman
    /// and docker keep them]
    #[arg(long, value_name = "FILE", conflicts_with = "no_creds")]
    pub authfile: Option<PathBuf>,
    /// Ask registries without any credentials
    #[arg(long)]
    pub no_creds: bool,
    /// How long they are waited for.
    #[command(flatten)]
    pub deadlines: Deadlines,
}

/// `--creds`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Creds {
    /// Before the first colon.
    pub user: String,
    /// After it.
    pub password: Option<Secret>,
}

/// Takes every text, since clap shows one that is refused.
fn parse_creds(text: &str) -> Result<Creds, std::convert::Infallible> {
    let (user, password) = text.split_once(':').map_or((text, None), |(user, password)| (user, Some(password)));
    Ok(Creds { user: user.to_owned(), password: password.map(Secret::new) })
}

/// Everything about reading layers: for mount, record, cat, extract, verify, runtime-spec and doctor.
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
    /// A read fails after this long without progress towards it; until then what may pass is tried again [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub read_timeout: Option<Duration>,
    /// A read fails after this long, progress or not [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub read_deadline: Option<Duration>,
    /// Largest read-ahead of a sequential reader, 0 for none [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub read_ahead: Option<u64>,
    /// Bytes that are held while they are fetched and written: 4/5 decoded, 1/5 compressed; 16MiB at least [default: 320MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory_max: Option<u64>,
    /// Requests under way at a time to all registries together; a quarter is kept for reads that wait [default: 16]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub connections: Option<usize>,
    /// Requests under way at a time for one layer; a quarter is kept for reads that wait [default: 4]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub connections_per_layer: Option<usize>,
    /// How the cache is written: auto (io_uring where allowed), uring or pool [default: auto]
    #[arg(long, value_name = "HOW", value_parser = parse_disk_io)]
    pub disk_io: Option<DiskIo>,
}

/// `auto`, `uring` or `pool`
fn parse_disk_io(text: &str) -> Result<DiskIo, String> {
    match text {
        "auto" => Ok(DiskIo::Auto),
        "uring" => Ok(DiskIo::Uring),
        "pool" => Ok(DiskIo::Pool),
        _ => Err(format!("expected auto, uring or pool, found {text:?}")),
    }
}
