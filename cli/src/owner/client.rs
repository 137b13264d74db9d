//! From a `clip mount` to the owner: find it, or become its starter, hand the mount over, hear how it went.

mod foreground;

pub use foreground::Foreground;

use std::{
    ffi::OsStr,
    fs::{DirBuilder, File, OpenOptions},
    io::{BufReader, ErrorKind},
    os::fd::AsFd,
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
use clip_engine::check_cache_dir;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};
use serde::Serialize;

use super::{
    SocketPath,
    peer::Peer,
    protocol::{self, MountRequest, PROTOCOL, Reply, Request, Start, Started},
};
use crate::{
    resolve::{Difference, MountPlan},
    values::typed_time,
};

/// How long an owner that leaves, or a command that reads through the cache, is waited for. Source: leaving takes milliseconds;
/// this is what a person waits before wanting to know why.
const JOIN_MAX: Duration = Duration::from_secs(10);
/// Between questions. Source: an owner takes 5-30 ms from its lock to its socket (strace of a start), so a mount that meets it there
/// waits for one or two rounds.
const RETRY_EVERY: Duration = Duration::from_millis(10);
/// How long an owner may take to answer, or to start. Source: judgement: both take milliseconds; a new index of the largest images is
/// expanded in seconds, on a slow and busy disk in some tens of them. An image that is opened for the first time waits
/// for those before it, behind a large one until that is expanded; nothing else of the same owner makes either wait.
const ANSWER_MAX: Duration = Duration::from_secs(120);
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
    // Before anything is sent, and before a log is opened there.
    check_cache_dir(&plan.cache_dir)?;
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

/// True when a process of this user listens on the cache directory's socket.
pub fn owner_listens(cache_dir: &Path) -> bool {
    check_cache_dir(cache_dir).is_ok() && connect(cache_dir).is_ok_and(|stream| stream.is_some())
}

/// The cache directory exists; a new one is this user's alone.
pub fn create_cache_dir(cache_dir: &Path) -> Result<()> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(cache_dir);
    created.map_err(|error| {
        let why = if cache_dir.exists() { "it is no directory".to_owned() } else { format!("it cannot be created: {error}") };
        anyhow::anyhow!("cache directory {}: {why}; give another with --cache-dir", cache_dir.display())
    })
}

/// A connection to the owner, which is a process of this user, or root's: a request brings a login and an environment along.
fn connect(cache_dir: &Path) -> Result<Option<UnixStream>> {
    let context = || format!("socket in {}", cache_dir.display());
    let socket = SocketPath::in_dir(cache_dir).with_context(context)?;
    let stream = match connect_within(socket.path(), ANSWER_MAX) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) if is_timeout_kind(&error) => bail!("{}", silent_text(cache_dir, ANSWER_MAX)),
        Err(error) => return Err(error).with_context(context),
    };
    let listens = Peer::of(&stream).with_context(context)?;
    if !listens.is_trusted() {
        bail!("the socket in {} is of {listens}, which gets nothing from here; use another --cache-dir", cache_dir.display());
    }
    Ok(Some(stream))
}

/// `WouldBlock` when the socket's queue stays full: its owner is stopped.
fn connect_within(path: &Path, within: Duration) -> std::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(within))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn exchange(plan: &MountPlan, wait: bool) -> Result<Exchange> {
    let Some(mut stream) = connect(&plan.cache_dir)? else { return Ok(Exchange::Nobody) };
    let request = Request::Mount(Box::new(MountRequest::from_plan(plan, wait)));
    let mut from = BufReader::new(stream.try_clone()?);
    let gone = || Ok(Exchange::Leaving(String::new()));
    let silent = |error: &anyhow::Error| is_timeout(error).then(|| silent_text(&plan.cache_dir, ANSWER_MAX));
    match ask(&mut stream, &mut from, &request, ANSWER_MAX) {
        Ok(Some(Reply::Mounted { .. })) => Ok(Exchange::Taken(HandedOver { from, mountpoint: plan.mountpoint.clone() })),
        Ok(Some(Reply::Leaving { reason })) => Ok(Exchange::Leaving(reason)),
        Ok(Some(Reply::Refused { message })) => bail!("{message}"),
        Ok(Some(Reply::Differs { differences })) => bail!("{}", differences_text(&plan.cache_dir, &differences)),
        Ok(Some(other)) => bail!("the owner of {} answered {other:?}", plan.cache_dir.display()),
        Ok(None) => gone(),
        Err(error) => match silent(&error) {
            Some(text) => bail!("{text}"),
            None if error.is::<std::io::Error>() => gone(),
            None => Err(error).context("the owner's answer"),
        },
    }
}

/// The answer to `request`, which must be there within `within`; later ones may take any time. `None`: the owner has closed.
fn ask(to: &mut UnixStream, from: &mut BufReader<UnixStream>, request: &impl Serialize, within: Duration) -> Result<Option<Reply>> {
    to.set_write_timeout(Some(within))?;
    to.set_read_timeout(Some(within))?;
    protocol::send(to, request)?;
    let reply = protocol::receive(from)?;
    to.set_read_timeout(None)?;
    Ok(reply)
}

fn is_timeout(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(is_timeout_kind)
}

fn is_timeout_kind(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// What to do about an owner that hangs; a mount that it finishes later it takes away again, since nobody waits for it.
fn silent_text(cache_dir: &Path, waited: Duration) -> String {
    let pid = std::fs::read_to_string(cache_dir.join("owner.lock")).unwrap_or_default();
    format!(
        "the owner of {} (pid {}) has not answered for {}; see its log, or use another --cache-dir",
        cache_dir.display(),
        pid.trim(),
        typed_time(waited)
    )
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
    let pipe = child.stdout.take();
    if pipe.as_ref().is_some_and(|pipe| !is_readable_within(pipe, ANSWER_MAX)) {
        let _ = child.kill().and_then(|()| child.wait());
        bail!("the background process was not ready after {} and is ended; see {}", typed_time(ANSWER_MAX), log_file.display());
    }
    let answer = pipe.map(|pipe| protocol::receive::<Started>(&mut BufReader::new(pipe)));
    if let (Some(Ok(())), Some(Ok(Some(started)))) = (told, answer) {
        if started != Started::Ready {
            let _ = child.wait();
        }
        return Ok(started);
    }
    let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    bail!("the background process ended before it was ready ({status}); see {}", log_file.display())
}

/// False: for `within` nothing came, nor the end.
fn is_readable_within(from: &impl AsFd, within: Duration) -> bool {
    let by = Instant::now() + within;
    loop {
        let mut polled = [PollFd::new(from, PollFlags::IN)];
        let left = Timespec::try_from(by.saturating_duration_since(Instant::now())).ok();
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(0) => return false,
            Err(Errno::INTR) => {}
            // What cannot be waited for is read, and says why.
            Ok(_) | Err(_) => return true,
        }
    }
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A mount with other engine options is told which, what is in force and what it asked for.
    #[test]
    fn differences_are_named() {
        let difference = Difference { option: "--shards".to_owned(), owner: "2".to_owned(), asked: "4".to_owned() };
        let text = differences_text(Path::new("/c"), &[difference]);
        assert!(text.contains("--shards is 2 there, 4 was asked for"), "{text}");
    }

    /// Claim: an owner that neither answers nor closes is waited for no longer than was said; so is one that never says how its start went,
    /// and one whose socket's queue is full.
    #[test]
    fn a_silent_owner_is_given_up() {
        let (mut client, owner) = UnixStream::pair().unwrap();
        let mut from = BufReader::new(client.try_clone().unwrap());
        let error = ask(&mut client, &mut from, &"hello", Duration::from_millis(50)).unwrap_err();
        assert!(is_timeout(&error), "{error:#}");
        assert!(!is_readable_within(&client, Duration::from_millis(50)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _waits = connect_within(&path, ANSWER_MAX).unwrap();
        assert!(is_timeout_kind(&connect_within(&path, Duration::from_millis(50)).unwrap_err()));
        drop(owner);
        assert!(is_readable_within(&client, ANSWER_MAX));
        assert!(!is_timeout(&ask(&mut client, &mut from, &"hello", ANSWER_MAX).unwrap_err()));
    }
}
