//! From a `clip mount` to the owner: find it, or become its starter, hand the mount over, hear how it went.

use std::{
    ffi::OsStr,
    fs::{DirBuilder, File, OpenOptions},
    io::{BufReader, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        net::UnixStream,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    SocketPath,
    protocol::{self, MountRequest, PROTOCOL, Reply, Request, Start, Started},
};
use crate::resolve::{Difference, MountPlan};

/// How long an owner that leaves, or a command that reads through the cache, is waited for. Source: leaving takes milliseconds;
/// this is what a person waits before wanting to know why.
const JOIN_MAX: Duration = Duration::from_secs(10);
/// Between questions. Source: an owner takes 5-30 ms from its lock to its socket (strace of a start), so a mount that meets it there
/// waits for one or two rounds.
const RETRY_EVERY: Duration = Duration::from_millis(10);
/// A log file over this is set aside as `.old` when an owner starts.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// A mount that an owner has taken.
pub struct HandedOver {
    from: BufReader<UnixStream>,
    mountpoint: PathBuf,
}

impl HandedOver {
    /// Returns when the mount has ended; an error when the owner has died.
    pub fn wait(mut self) -> Result<()> {
        match protocol::receive(&mut self.from) {
            Ok(Some(Reply::Ended)) => Ok(()),
            _ => bail!("the owner of {} has died; clip umount {0} clears it", self.mountpoint.display()),
        }
    }
}

/// How a request to the owner's socket ended.
enum Exchange {
    Taken(HandedOver),
    /// There is no owner.
    Nobody,
    /// There is one that takes no mounts any more.
    Leaving(String),
}

/// The owner serves the mount of `plan`; it was there already, or has been started. With `wait` the connection stays, see
/// [`HandedOver::wait`].
pub fn hand_over(plan: &MountPlan, wait: bool) -> Result<HandedOver> {
    create_cache_dir(&plan.cache_dir)?;
    let give_up = Instant::now() + JOIN_MAX;
    let mut started = false;
    loop {
        let why = match exchange(plan, wait)? {
            Exchange::Taken(handed_over) => return Ok(handed_over),
            Exchange::Leaving(reason) => reason,
            Exchange::Nobody => match start_owner(plan)? {
                // It listens: no pause before it is asked. One that ends at once is not started over and over without one.
                Started::Ready if !std::mem::replace(&mut started, true) => continue,
                Started::Ready => String::new(),
                Started::Busy { message } => message,
                Started::Failed { message } => bail!("{message}"),
            },
        };
        if Instant::now() >= give_up {
            let why = if why.is_empty() { "no owner would take the mount".to_owned() } else { why };
            bail!("cache directory {}: {why}; wait for it or use another --cache-dir", plan.cache_dir.display());
        }
        std::thread::sleep(RETRY_EVERY);
    }
}

/// True when a process listens on the cache directory's socket.
pub fn owner_listens(cache_dir: &Path) -> bool {
    connect(cache_dir).is_ok_and(|stream| stream.is_some())
}

/// The cache directory exists; a new one is this user's alone.
pub fn create_cache_dir(cache_dir: &Path) -> Result<()> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(cache_dir);
    created.map_err(|error| {
        let why = if cache_dir.exists() { "it is no directory".to_owned() } else { format!("it cannot be created: {error}") };
        anyhow::anyhow!("cache directory {}: {why}; give another with --cache-dir", cache_dir.display())
    })
}

fn connect(cache_dir: &Path) -> Result<Option<UnixStream>> {
    let context = || format!("socket in {}", cache_dir.display());
    let socket = SocketPath::in_dir(cache_dir).with_context(context)?;
    match UnixStream::connect(socket.path()) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error).with_context(context),
    }
}

fn exchange(plan: &MountPlan, wait: bool) -> Result<Exchange> {
    let Some(mut stream) = connect(&plan.cache_dir)? else { return Ok(Exchange::Nobody) };
    let mut from = BufReader::new(stream.try_clone()?);
    let request = Request::Mount(Box::new(MountRequest::from_plan(plan, wait)));
    let gone = || Ok(Exchange::Leaving(String::new()));
    if protocol::send(&mut stream, &request).is_err() {
        return gone();
    }
    match protocol::receive(&mut from) {
        Ok(Some(Reply::Mounted { .. })) => Ok(Exchange::Taken(HandedOver { from, mountpoint: plan.mountpoint.clone() })),
        Ok(Some(Reply::Leaving { reason })) => Ok(Exchange::Leaving(reason)),
        Ok(Some(Reply::Refused { message })) => bail!("{message}"),
        Ok(Some(Reply::Differs { differences })) => bail!("{}", differences_text(&plan.cache_dir, &differences)),
        Ok(Some(other)) => bail!("the owner of {} answered {other:?}", plan.cache_dir.display()),
        Ok(None) => gone(),
        Err(error) if error.is::<std::io::Error>() => gone(),
        Err(error) => Err(error).context("the owner's answer"),
    }
}

fn differences_text(cache_dir: &Path, differences: &[Difference]) -> String {
    let each = differences
        .iter()
        .map(|difference| format!("{} is {} there, {} was asked for", difference.option, difference.owner, difference.asked));
    format!(
        "cache directory {} is served with other options: {}; leave the option out, unmount what is served, or use another --cache-dir",
        cache_dir.display(),
        each.collect::<Vec<_>>().join(", ")
    )
}

/// Starts an owner: this program again, with a readiness pipe, nothing of the caller's terminal, and the log file as stderr.
fn start_owner(plan: &MountPlan) -> Result<Started> {
    let program = std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let log_file = plan.owner_wish.log_file(&plan.cache_dir);
    let mut command = Command::new(program);
    command
        .arg0("clip")
        .args(plan.owner_wish.log_level.iter().map(|level| format!("--log-level={level}")))
        .args(["owner", &format!("--cache-dir={}", plan.cache_dir.display())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(open_log(&log_file)?);
    // It may live for months and work for others; what this mount needs goes over the socket.
    for (secret, _) in std::env::vars_os().filter(|(name, _)| is_secret(name)) {
        command.env_remove(secret);
    }
    let mut child = command.spawn().context("start the background process")?;
    let start = Start {
        protocol: PROTOCOL,
        cache_dir: plan.cache_dir.clone(),
        wish: plan.wish.clone(),
        settings: plan.owner_wish.in_background(&plan.cache_dir),
    };
    let told = child.stdin.take().map(|mut stdin| protocol::send(&mut stdin, &start));
    let answer = child.stdout.take().map(|stdout| protocol::receive::<Started>(&mut BufReader::new(stdout)));
    if let (Some(Ok(())), Some(Ok(Some(started)))) = (told, answer) {
        if started != Started::Ready {
            let _ = child.wait();
        }
        return Ok(started);
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    bail!("the background process ended before it was ready ({status}); see {}", log_file.display())
}

/// Whether the environment variable `name` holds a password.
fn is_secret(name: &OsStr) -> bool {
    name == "CLIP_OCI_AUTH" || name.as_encoded_bytes().starts_with(b"CLIP_REGISTRY_PASS_")
}

fn open_log(path: &Path) -> Result<File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() > LOG_BYTES_MAX) {
        let _ = std::fs::rename(path, path.with_extension("log.old"));
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.open(path).with_context(|| format!("log file {} cannot be written; give another --cache-dir or --log-file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount with other engine options is told which, what is in force and what it asked for.
    #[test]
    fn differences_are_named() {
        let difference = Difference { option: "--shards".to_owned(), owner: "2".to_owned(), asked: "4".to_owned() };
        let text = differences_text(Path::new("/c"), &[difference]);
        assert!(text.contains("--shards is 2 there, 4 was asked for"), "{text}");
    }
}
