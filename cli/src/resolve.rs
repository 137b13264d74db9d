//! Arguments and environment to configs: every default that depends on the machine or the user is decided here.

mod option_list;

use std::{
    ffi::OsStr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clip_engine::{
    DiskIo, EngineConfig,
    registry::{ClientConfig, Login, PlainHttp, ProxyVariables, Reference, Typed},
};
use clip_format::storage_info::Source;
use clip_fuse::MountOptions;
use clip_indexer::OutputPlace;
use serde::{Deserialize, Serialize};

use self::option_list::apply_ours;
use crate::{
    args::{ClientArgs, Creds, MountArgs, ReadArgs},
    clip_input,
    deadlines::Deadlines,
    exit::UsageError,
    owner::{
        background::{BackgroundWish, Fill},
        settings::OwnerWish,
    },
    password,
    regular_file::{ca_path, read_regular},
    values::typed_time,
};

/// Source: containerd's documentation, and what its packages set.
const HOSTS_DIR_DEFAULT: &str = "/etc/containerd/certs.d";

/// How registries are spoken to, and given up after `read_timeout` without progress. Relative paths become absolute, since an owner works
/// in `/`.
pub fn client_config(args: &ClientArgs, read_timeout: Option<Duration>) -> Result<ClientConfig> {
    let mut config = ClientConfig {
        plain_http: if args.plain_http { PlainHttp::Always } else { PlainHttp::Loopback },
        ca_file: args.ca.as_deref().map(ca_path).transpose()?,
        hosts_dir: hosts_dir(args)?.or_else(default_hosts_dir),
        proxies: ProxyVariables::from_environment(),
        ..ClientConfig::default()
    };
    let read_timeout = read_timeout.unwrap_or(config.patience);
    args.deadlines.check(read_timeout)?;
    args.deadlines.apply(&mut config, read_timeout);
    Ok(config)
}

/// Who asks registries, as typed and by the environment. `registry` is whom `--creds` are for, `None` when no registry is asked; it is only
/// looked up where they are given. Reads standard input or the terminal where that was asked for, so call it once.
pub fn login(args: &ClientArgs, registry: impl FnOnce() -> Result<Option<String>>) -> Result<Login> {
    let usage = |text: &str| Err(UsageError(text.to_owned()).into());
    let typed = match (&args.creds, &args.authfile, args.no_creds) {
        (None, None, false) => Typed::Nothing,
        (None, None, true) => Typed::Anonymous,
        (None, Some(path), false) => {
            let path = absolute(path)?;
            check_auth_file(&path).with_context(|| format!("--authfile {}", path.display()))?;
            Typed::AuthFile(path)
        }
        (Some(creds), None, false) => match registry()? {
            Some(registry) => typed_password(creds, args.password_stdin, registry)?,
            None => return usage("--creds: no registry is asked, the layers are on this machine"),
        },
        _ => return usage("--creds, --authfile and --no-creds: give one of them"),
    };
    Ok(Login { typed, ..Login::of_process() })
}

/// What is no such file would be told at the first answer that wants credentials: hours later perhaps, or never. What is in it is not
/// quoted.
fn check_auth_file(path: &Path) -> Result<()> {
    let text = read_regular(path)?;
    let parsed = serde_json::from_slice::<std::collections::BTreeMap<String, serde::de::IgnoredAny>>(&text);
    parsed.map(drop).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        anyhow::anyhow!("expected a JSON object as docker login writes it, found something else at line {line}, column {column}")
    })
}

fn typed_password(creds: &Creds, from_stdin: bool, registry: String) -> Result<Typed> {
    let usage = |text: &str| UsageError(text.to_owned());
    if creds.user.is_empty() {
        return Err(usage("--creds: expected USER or USER:PASSWORD, found no user").into());
    }
    let password = match (&creds.password, from_stdin) {
        (Some(_), true) => return Err(usage("--password-stdin: --creds has a password already").into()),
        (Some(password), false) => {
            tracing::warn!(
                "--creds USER:PASSWORD: others can read it in the list of processes; give --creds USER --password-stdin, or --authfile"
            );
            password.clone()
        }
        (None, true) => password::from_stdin()?,
        (None, false) => password::from_terminal(&format!("password of {} at {registry}: ", creds.user))?,
    };
    Ok(Typed::Password { registry, user: creds.user.clone(), password })
}

/// The registry that the layers of `clip` are read from; `None` when they are on this machine.
pub fn registry_of(clip: &Path, whence: &Whence) -> Result<Option<String>> {
    match &whence.store_ref {
        Some(reference) => Ok(Some(reference.registry.clone())),
        None => Ok(match clip_input::read_storage_info(clip)?.source {
            Source::Registry { registry, .. } => Some(registry),
            Source::Local { .. } => None,
        }),
    }
}

/// `--hosts-dir`, absolute. Named and not there, it would leave out mirrors and certificates without a word.
fn hosts_dir(args: &ClientArgs) -> Result<Option<PathBuf>> {
    let Some(typed) = &args.hosts_dir else { return Ok(None) };
    if !typed.is_dir() {
        bail!("--hosts-dir {}: expected a directory with a directory for each registry, found none", typed.display());
    }
    absolute(typed).map(Some)
}

/// containerd's own, whether it is there already or not. Where this user may not look into it, as under some installers' `/etc/containerd`,
/// it is as good as not there.
fn default_hosts_dir() -> Option<PathBuf> {
    let dir = Path::new(HOSTS_DIR_DEFAULT);
    let is_closed = std::fs::read_dir(dir).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    (!is_closed).then(|| dir.to_owned())
}

/// `path` as seen from `/`, links untouched.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}: no absolute path", path.display()))
}

/// The cache directory: as typed, else the user's.
pub fn cache_dir(typed: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = typed {
        return absolute(dir);
    }
    let environment = |name: &str| std::env::var_os(name).filter(|value| Path::new(value).is_absolute());
    let root = rustix::process::geteuid().is_root();
    match default_cache_dir(root, environment("XDG_CACHE_HOME").as_deref(), environment("HOME").as_deref()) {
        Some(dir) => Ok(dir),
        None => bail!("no cache directory: neither XDG_CACHE_HOME nor HOME is set; give --cache-dir DIR"),
    }
}

fn default_cache_dir(root: bool, xdg: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/cache/clip"));
    }
    xdg.map(|dir| Path::new(dir).join("clip")).or_else(|| home.map(|dir| Path::new(dir).join(".cache/clip")))
}

/// What of the engine can be set from outside. `None`: not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineWish {
    /// `--shards`
    pub shards: Option<usize>,
    /// `--disk-io`
    pub disk_io: Option<DiskIo>,
    /// `--read-timeout`
    pub read_timeout: Option<Duration>,
    /// `--read-deadline`
    pub read_deadline: Option<Duration>,
    /// `--retries`, `--connect-timeout` ...
    #[serde(default)]
    pub deadlines: Deadlines,
    /// `--read-ahead`
    pub read_ahead: Option<u64>,
    /// `--memory-max`
    pub memory_max: Option<u64>,
    /// `--connections`
    pub connections: Option<usize>,
    /// `--connections-per-layer`
    pub connections_per_layer: Option<usize>,
    /// `--plain-http`
    pub plain_http: bool,
    /// `--ca`, absolute
    #[serde(with = "crate::owner::protocol::optional_path")]
    pub ca: Option<PathBuf>,
    /// `--hosts-dir`, absolute. Protocol 3 had none.
    #[serde(default, with = "crate::owner::protocol::optional_path")]
    pub hosts_dir: Option<PathBuf>,
}

impl EngineWish {
    /// What was typed.
    pub fn from_args(args: &ReadArgs) -> Result<Self> {
        args.client.deadlines.check(args.read_timeout.unwrap_or(ClientConfig::default().patience))?;
        Ok(Self {
            shards: args.shards,
            disk_io: args.disk_io,
            read_timeout: args.read_timeout,
            read_deadline: args.read_deadline,
            deadlines: args.client.deadlines.clone(),
            read_ahead: args.read_ahead,
            memory_max: args.memory_max,
            connections: args.connections,
            connections_per_layer: args.connections_per_layer,
            plain_http: args.client.plain_http,
            ca: args.client.ca.as_deref().map(ca_path).transpose()?,
            hosts_dir: hosts_dir(&args.client)?,
        })
    }

    /// The engine's settings: wishes, else defaults; proxies are those of this process's environment. It has no credentials of its own: an
    /// owner works for whoever mounts.
    pub fn to_config(&self, cache_dir: PathBuf) -> EngineConfig {
        let mut config = EngineConfig::new(cache_dir);
        config.shards = self.shards.unwrap_or(config.shards);
        config.disk_io = self.disk_io.unwrap_or(config.disk_io);
        config.read_timeout = self.read_timeout.unwrap_or(config.read_timeout);
        config.read_deadline = self.read_deadline;
        config.read_ahead_bytes_max = self.read_ahead.unwrap_or(config.read_ahead_bytes_max);
        config.set_memory_max(self.memory_max.unwrap_or(config.memory_max()));
        config.connections_max = self.connections.unwrap_or(config.connections_max);
        config.connections_per_layer_max = self.connections_per_layer.unwrap_or(config.connections_per_layer_max);
        if self.plain_http {
            config.client.plain_http = PlainHttp::Always;
        }
        config.client.ca_file.clone_from(&self.ca);
        config.client.hosts_dir = self.hosts_dir.clone().or_else(default_hosts_dir);
        config.client.proxies = ProxyVariables::from_environment();
        config.client.login = Login::anonymous();
        self.deadlines.apply(&mut config.client, config.read_timeout);
        config
    }

    /// Every wish that `config` does not fulfil.
    pub fn differences(&self, config: &EngineConfig) -> Vec<Difference> {
        let path = |path: &Option<PathBuf>| path.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
        let mut found = Vec::new();
        let mut compare = |option: &str, asked: Option<String>, owner: String| {
            if let Some(asked) = asked.filter(|asked| *asked != owner) {
                found.push(Difference { option: option.to_owned(), owner, asked });
            }
        };
        compare("--shards", self.shards.map(|count| count.to_string()), config.shards.to_string());
        compare("--disk-io", self.disk_io.map(disk_io_text), disk_io_text(config.disk_io));
        compare("--read-timeout", self.read_timeout.map(typed_time), typed_time(config.read_timeout));
        compare("--read-deadline", self.read_deadline.map(typed_time), config.read_deadline.map_or("never".to_owned(), typed_time));
        for (option, asked, owner) in self.deadlines.compared(&config.client) {
            compare(option, asked, owner);
        }
        compare("--read-ahead", self.read_ahead.map(|bytes| bytes.to_string()), config.read_ahead_bytes_max.to_string());
        compare("--memory-max", self.memory_max.map(|bytes| bytes.to_string()), config.memory_max().to_string());
        compare("--connections", self.connections.map(|count| count.to_string()), config.connections_max.to_string());
        let per_layer = config.connections_per_layer_max.to_string();
        compare("--connections-per-layer", self.connections_per_layer.map(|count| count.to_string()), per_layer);
        let plain = if config.client.plain_http == PlainHttp::Always { "yes" } else { "no" };
        compare("--plain-http", self.plain_http.then(|| "yes".to_owned()), plain.to_owned());
        compare("--ca", self.ca.as_ref().map(|_| path(&self.ca)), path(&config.client.ca_file));
        compare("--hosts-dir", self.hosts_dir.as_ref().map(|_| path(&self.hosts_dir)), path(&config.client.hosts_dir));
        found
    }
}

fn disk_io_text(disk_io: DiskIo) -> String {
    match disk_io {
        DiskIo::Auto => "auto",
        DiskIo::Uring => "uring",
        DiskIo::Pool => "pool",
    }
    .to_owned()
}

/// One option that a running owner does not have as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// As typed on the command line.
    pub option: String,
    /// In force.
    pub owner: String,
    /// Asked for.
    pub asked: String,
}

/// Where the layers are read from, when not where the `.clip` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whence {
    /// `--source`, absolute
    pub source: Option<PathBuf>,
    /// `--store-ref`
    pub store_ref: Option<Reference>,
}

/// What was typed about where the layers are.
pub fn whence(args: &ReadArgs) -> Result<Whence> {
    if args.source.is_some() && args.store_ref.is_some() {
        return Err(UsageError("--source and --store-ref: give one of them, the layers are read from one place".to_owned()).into());
    }
    Ok(Whence { source: args.source.as_deref().map(absolute).transpose()?, store_ref: args.store_ref.clone() })
}

/// Everything of one mount, absolute and complete.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The `.clip`, links resolved.
    pub clip: PathBuf,
    /// The mountpoint, links resolved.
    pub mountpoint: PathBuf,
    /// Whose owner serves it.
    pub cache_dir: PathBuf,
    /// What was typed about the engine.
    pub wish: EngineWish,
    /// Where the layers are.
    pub whence: Whence,
    /// Who asks for them.
    pub login: Login,
    /// How it is mounted.
    pub options: MountOptions,
    /// Where counters go.
    pub stats: Option<PathBuf>,
    /// What is done beside serving it.
    pub background: BackgroundWish,
    /// What was typed about the rest of the owner.
    pub owner_wish: OwnerWish,
    /// Serve from this process.
    pub foreground: bool,
}

/// What to do with an option that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// An error.
    Refuse,
    /// mount(8)'s `-s`.
    Ignore,
}

/// The plan for what was typed.
pub fn mount_plan(args: &MountArgs, unknown: Unknown) -> Result<MountPlan> {
    let clip = std::fs::canonicalize(&args.clip).with_context(|| format!("{}: cannot be opened", args.clip.display()))?;
    let mountpoint = mountpoint(&args.dir).map_err(|error| match args.dir.symlink_metadata() {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => anyhow::anyhow!("{error}; create it first (mkdir -p)"),
        _ => error,
    })?;
    let mut args = args.clone();
    let log_level = args.log_level.clone();
    let mut options = MountOptions::new(clip.display().to_string());
    for list in std::mem::take(&mut args.options) {
        for rest in options.apply(&list).map_err(|error| UsageError(error.to_string()))? {
            match apply_ours(&mut args, &rest) {
                Ok(true) => {}
                Ok(false) if unknown == Unknown::Ignore => tracing::warn!("mount option {rest:?} is unknown and ignored"),
                Ok(false) => return Err(UsageError(format!("mount option {rest:?} is unknown; see clip mount --help")).into()),
                Err(reason) => return Err(UsageError(format!("mount option {:?}: {reason}", shown(&rest))).into()),
            }
        }
    }
    if (options.suid || options.dev) && !rustix::process::geteuid().is_root() {
        tracing::warn!("suid and dev: only a mount by root has them; this one is nosuid,nodev");
    }
    options.allow_other |= args.allow_other;
    options.session_threads = args.session_threads.unwrap_or(options.session_threads);
    if let Some(bytes) = args.kernel_read_ahead {
        options.read_ahead_kb = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
    }
    let cache_dir = cache_dir(args.read.cache_dir.as_deref())?;
    if args.foreground && args.log_level != log_level {
        return Err(UsageError("log-level within -o is for the background process; give a foreground mount --log-level".to_owned()).into());
    }
    let whence = whence(&args.read)?;
    Ok(MountPlan {
        login: login(&args.read.client, || registry_of(&clip, &whence))?,
        clip,
        mountpoint,
        wish: EngineWish::from_args(&args.read)?,
        whence,
        options,
        stats: args.stats.as_deref().map(|path| output_file("--stats", path)).transpose()?,
        background: background_wish(&args)?,
        owner_wish: owner_wish(&args)?,
        foreground: args.foreground,
        cache_dir,
    })
}

fn owner_wish(args: &MountArgs) -> Result<OwnerWish> {
    if args.foreground && args.log_file.is_some() {
        return Err(UsageError("--log-file is for the background process; a foreground mount logs to standard error".to_owned()).into());
    }
    let log_file = args.log_file.as_deref().map(absolute).transpose()?;
    Ok(OwnerWish { stop_timeout: args.stop_timeout, log_file, log_level: args.log_level.clone() })
}

/// `dir` with links resolved. A dead mount cannot be looked at: then its parent is.
pub fn mountpoint(dir: &Path) -> Result<PathBuf> {
    let error = match std::fs::canonicalize(dir) {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    let dead = error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error());
    let whole = absolute(dir)?;
    match (dead, whole.parent(), whole.file_name()) {
        (true, Some(parent), Some(name)) => {
            Ok(std::fs::canonicalize(parent).with_context(|| format!("mountpoint {}", dir.display()))?.join(name))
        }
        _ if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("mountpoint {}: expected an existing directory, found nothing", dir.display())
        }
        _ => Err(error).with_context(|| format!("mountpoint {}", dir.display())),
    }
}

fn background_wish(args: &MountArgs) -> Result<BackgroundWish> {
    if args.no_profile && args.profile.is_some() {
        return Err(UsageError("--profile and --no-profile: give one of them".to_owned()).into());
    }
    let fill = args.fill.unwrap_or_default();
    if fill == Fill::None && args.fill_rate.is_some() {
        return Err(UsageError("--fill-rate: give --fill now or --fill after with it".to_owned()).into());
    }
    Ok(BackgroundWish {
        record: args.record.as_deref().map(|path| output_file("--record", path)).transpose()?,
        profile: args.profile.as_deref().map(absolute).transpose()?,
        no_profile: args.no_profile,
        fill,
        fill_rate: args.fill_rate,
    })
}

/// `path`, absolute, in a directory that is there: said when the mount is asked for, not when what goes there is lost. The process that
/// will write it must not wait for somebody to read. A last symbolic link is followed now and not when it writes, maybe as root and
/// days later.
fn output_file(option: &str, path: &Path) -> Result<PathBuf> {
    let path = absolute(path)?;
    if !path.parent().is_some_and(Path::is_dir) || path.is_dir() {
        bail!("{option} {}: expected a file name in an existing directory", path.display());
    }
    if std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_fifo()) {
        bail!("{option} {}: expected a file name, found a FIFO", path.display());
    }
    match OutputPlace::find(&path).with_context(|| option.to_owned())? {
        OutputPlace::File(place) => Ok(place),
        OutputPlace::Stream(device) => std::fs::canonicalize(&device).with_context(|| format!("{option} {}", device.display())),
    }
}

/// `option` for a message: what may be a password is left out.
fn shown(option: &str) -> &str {
    if option.starts_with("creds=") { "creds" } else { option }
}

#[cfg(test)]
mod tests;
