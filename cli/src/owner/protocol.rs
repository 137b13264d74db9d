//! What a `clip mount` and an owner say to each other: one JSON line each way, over the socket and over the readiness pipe.

use std::{
    ffi::OsString,
    io::{BufRead, Read as _, Write},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clip_engine::registry::Login;
use clip_fuse::MountOptions;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::{
    background::BackgroundWish,
    settings::{OwnerSettings, OwnerWish},
};
use crate::resolve::{Difference, EngineWish, MountPlan, Whence};

/// Raised when a message changes its meaning.
pub const PROTOCOL: u32 = 4;
/// Bytes of one message at most. Source: execve(2) bounds an environment, which a mount brings along, by 6 MiB; the rest is room for escapes.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// What an owner is started with, on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Of the program that starts it.
    pub protocol: u32,
    /// Absolute.
    #[serde(with = "path")]
    pub cache_dir: PathBuf,
    /// The engine.
    pub wish: EngineWish,
    /// Everything else.
    pub settings: OwnerSettings,
}

/// How the start went, on its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "started")]
pub enum Started {
    /// It listens.
    Ready,
    /// Another process holds the cache directory.
    Busy {
        /// In words.
        message: String,
    },
    /// It cannot serve.
    Failed {
        /// In words.
        message: String,
    },
}

/// What is asked of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// Serve this mount.
    Mount(Box<MountRequest>),
}

/// One mount, complete: all paths absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// Of the asking program.
    pub protocol: u32,
    /// The `.clip`.
    #[serde(with = "path")]
    pub clip: PathBuf,
    /// Where.
    #[serde(with = "path")]
    pub mountpoint: PathBuf,
    /// The asking process's mount namespace: the owner must be in the same.
    pub mount_namespace: u64,
    /// What was typed about the engine.
    pub wish: EngineWish,
    /// What was typed about the rest of the owner. Protocol 1 had none; the version is looked at first.
    #[serde(default)]
    pub owner_wish: OwnerWish,
    /// Who asks the registry: passwords and the asker's environment, for which the socket is the only way. Protocol 3 had none.
    #[serde(default = "Login::anonymous", with = "super::login_wire")]
    pub login: Login,
    /// `--source`
    #[serde(with = "optional_path")]
    pub source: Option<PathBuf>,
    /// `--store-ref`
    pub store_ref: Option<String>,
    /// How it is mounted.
    pub options: MountWire,
    /// `--stats`
    #[serde(with = "optional_path")]
    pub stats: Option<PathBuf>,
    /// What to do beside serving it. Protocol 2 had none.
    #[serde(default)]
    pub background: BackgroundWish,
    /// Also answer when the mount has ended; and detach it when the asker is gone.
    pub wait: bool,
}

/// [`MountOptions`] in transit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountWire {
    fsname: String,
    suid: bool,
    dev: bool,
    exec: bool,
    allow_other: bool,
    contexts: Vec<String>,
    session_threads: usize,
    read_ahead_kb: u32,
}

impl From<&MountOptions> for MountWire {
    fn from(options: &MountOptions) -> Self {
        Self {
            fsname: options.fsname.clone(),
            suid: options.suid,
            dev: options.dev,
            exec: options.exec,
            allow_other: options.allow_other,
            contexts: options.contexts.clone(),
            session_threads: options.session_threads,
            read_ahead_kb: options.read_ahead_kb,
        }
    }
}

impl From<&MountWire> for MountOptions {
    fn from(wire: &MountWire) -> Self {
        let mut options = MountOptions::new(wire.fsname.clone());
        options.suid = wire.suid;
        options.dev = wire.dev;
        options.exec = wire.exec;
        options.allow_other = wire.allow_other;
        options.contexts.clone_from(&wire.contexts);
        options.session_threads = wire.session_threads;
        options.read_ahead_kb = wire.read_ahead_kb;
        options
    }
}

impl MountRequest {
    /// The request that carries `plan`.
    pub fn from_plan(plan: &MountPlan, wait: bool) -> Self {
        Self {
            protocol: PROTOCOL,
            clip: plan.clip.clone(),
            mountpoint: plan.mountpoint.clone(),
            mount_namespace: super::mount_namespace(),
            wish: plan.wish.clone(),
            owner_wish: plan.owner_wish.clone(),
            login: plan.login.clone(),
            source: plan.whence.source.clone(),
            store_ref: plan.whence.store_ref.as_ref().map(ToString::to_string),
            options: MountWire::from(&plan.options),
            stats: plan.stats.clone(),
            background: plan.background.clone(),
            wait,
        }
    }

    /// Where the layers are read from, besides what the `.clip` records.
    pub fn whence(&self) -> Result<Whence> {
        let store_ref = self.store_ref.as_deref().map(str::parse).transpose()?;
        Ok(Whence { source: self.source.clone(), store_ref })
    }
}

/// What an owner answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub enum Reply {
    /// The mount answers.
    Mounted {
        /// The owner.
        pid: u32,
    },
    /// A mount that was waited for has ended.
    Ended,
    /// It did not work.
    Refused {
        /// In words, causes included.
        message: String,
    },
    /// The engine runs with other options.
    Differs {
        /// Each of them.
        differences: Vec<Difference>,
    },
    /// The owner is on its way out: try again, perhaps as the next owner.
    Leaving {
        /// Why, when that may take a while.
        reason: String,
    },
}

/// Writes `message` as one line.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("encode a message")?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()?;
    Ok(())
}

/// The next message, or `None` when the other side has closed.
pub fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => match serde_json::from_slice(&line) {
            Ok(message) => Ok(Some(message)),
            // Only the place: serde's own message may quote a password.
            Err(error) => bail!("a message that this version of clip does not know (at byte {})", error.column()),
        },
        Some(_) if line.len() as u64 == LINE_BYTES_MAX => bail!("a message over {LINE_BYTES_MAX} bytes"),
        Some(_) => Ok(None),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for PathText {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => PathText::Text(text.to_owned()),
            None => PathText::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<PathText> for PathBuf {
    fn from(text: PathText) -> Self {
        match text {
            PathText::Text(text) => text.into(),
            PathText::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// A path as text, or as an array of its bytes where it is no UTF-8.
pub mod path {
    use super::{Deserialize as _, Deserializer, Path, PathBuf, PathText, Serialize as _, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        PathText::from(path).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        PathText::deserialize(deserializer).map(PathBuf::from)
    }
}

/// As [`path`], or nothing.
pub mod optional_path {
    use super::{Deserialize as _, Deserializer, PathBuf, PathText, Serialize as _, Serializer};

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(PathText::from).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<PathText>::deserialize(deserializer).map(|text| text.map(PathBuf::from))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::owner::background::Fill;
    use clip_engine::registry::{Environment, Secret, Typed};
    use std::time::Duration;

    fn request() -> MountRequest {
        MountRequest {
            protocol: PROTOCOL,
            clip: "/a b\n.clip".into(),
            mountpoint: PathBuf::from(OsString::from_vec(b"/mnt/\xff\xfe".to_vec())),
            mount_namespace: 7,
            wish: EngineWish { read_timeout: Some(Duration::from_millis(1500)), ca: Some("/ca.pem".into()), ..EngineWish::default() },
            owner_wish: OwnerWish {
                stop_timeout: Some(Duration::ZERO),
                log_level: Some("clip_fuse=debug".to_owned()),
                ..OwnerWish::default()
            },
            login: Login {
                typed: Typed::Password { registry: "h.x".to_owned(), user: "u".to_owned(), password: Secret::new("s3cret") },
                environment: Environment::from_pairs([("A", OsString::from("b=c")), ("B", OsString::from_vec(b"\xff".to_vec()))]),
                directory: "/cwd".into(),
                user_id: 7,
            },
            source: Some("/src".into()),
            store_ref: None,
            options: MountWire {
                fsname: "x".to_owned(),
                suid: true,
                dev: false,
                exec: true,
                allow_other: false,
                contexts: vec!["context=\"a,b\"".to_owned()],
                session_threads: 2,
                read_ahead_kb: 512,
            },
            stats: None,
            background: BackgroundWish { record: Some("/r".into()), fill: Fill::After, fill_rate: Some(7), ..BackgroundWish::default() },
            wait: true,
        }
    }

    /// What is sent is what is received, whatever bytes the paths have.
    #[test]
    fn messages_survive_the_wire() {
        let mut wire = Vec::new();
        let sent = Request::Mount(Box::new(request()));
        let reply = Reply::Differs { differences: vec![Difference { option: "--shards".into(), owner: "1".into(), asked: "2".into() }] };
        send(&mut wire, &sent).unwrap();
        send(&mut wire, &reply).unwrap();
        let mut from = wire.as_slice();
        assert_eq!(receive::<Request>(&mut from).unwrap(), Some(sent));
        assert_eq!(receive::<Reply>(&mut from).unwrap(), Some(reply));
        assert_eq!(receive::<Reply>(&mut from).unwrap(), None);
    }

    /// Every way of asking crosses the wire, and neither a request that is shown nor one that does not parse shows a password.
    #[test]
    fn logins_survive_the_wire_unseen() {
        for typed in [Typed::Nothing, Typed::Anonymous, Typed::AuthFile("/a.json".into())] {
            let sent = MountRequest { login: Login { typed, ..request().login }, ..request() };
            let mut wire = Vec::new();
            send(&mut wire, &sent).unwrap();
            assert_eq!(receive::<MountRequest>(&mut wire.as_slice()).unwrap(), Some(sent));
        }
        let mut wire = Vec::new();
        send(&mut wire, &request()).unwrap();
        let text = String::from_utf8(wire).unwrap();
        assert!(text.contains("s3cret") && !format!("{:?}", request()).contains("s3cret"));
        let broken = text.replace(r#""password":"s3cret""#, r#""password":["s3cret"]"#).replace(r#""user_id":7"#, r#""user_id":"s3cret""#);
        let error = format!("{:#}", receive::<MountRequest>(&mut broken.as_bytes()).unwrap_err());
        assert!(!error.contains("s3cret"), "{error}");
    }

    /// A message cut off is a closed connection; one that is no message, or without an end, is an error.
    #[test]
    fn bad_messages() {
        assert_eq!(receive::<Request>(&mut &b"{\"request\":"[..]).unwrap(), None);
        assert!(receive::<Request>(&mut &b"{\"request\":\"format-disk\"}\n"[..]).is_err());
        assert!(receive::<Request>(&mut vec![b' '; 20 << 20].as_slice()).is_err());
    }
}
