//! A mount that a process of its own serves, so that server and client share nothing but the kernel.
//!
//! The child reads commands, a line each, and answers each with a line of JSON; it leaves, and takes its mount away, when its standard
//! input ends.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clip_engine::{Engine, EngineConfig, Image};
use clip_format::{clip_file::ClipFile, units::LayerIndex};
use clip_fuse::{MountOptions, Mounted};

use crate::{
    args::Shape,
    machine,
    origin::Origin,
    trivial::{TrivialMount, TrivialTree},
};

/// What serves the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Server {
    /// clip's engine and file system, through their libraries.
    Clip,
    /// The trivial file system, over the same cache directory.
    Trivial,
}

/// What a serving child needs.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// What serves.
    server: Server,
    /// The index.
    clip: PathBuf,
    /// A cache directory; for the trivial file system one that is full.
    cache: PathBuf,
    /// An empty directory.
    mountpoint: PathBuf,
}

const FILL: &str = "fill";
const REMOUNT: &str = "remount";
const DONE: &str = "done";

/// What one read of the fill takes. Source: it must stay under `clip_engine::image::READ_BYTES_MAX`.
const FILL_BYTES: u64 = 8 << 20;
/// What writing the cache may take after the last byte was read. Source: chosen; reaching it is an error.
const WRITTEN_WITHIN: Duration = Duration::from_secs(120);

enum Serving {
    Clip { image: Arc<Image>, mounted: Option<Mounted>, _engine: Engine },
    Trivial { tree: Arc<TrivialTree>, mounted: Option<TrivialMount> },
}

/// Serves until standard input ends.
///
/// # Errors
/// Every kind.
pub fn run(args: &ServeArgs) -> Result<()> {
    let mut serving = match args.server {
        Server::Clip => {
            let info = ClipFile::parse(&std::fs::read(&args.clip)?)?.storage_info()?;
            let engine = Engine::start(EngineConfig::new(args.cache.clone()))?;
            let image = engine.open_image(&args.clip, &Origin::new(&info, None, &Shape::default())?.image_options()?)?;
            Serving::Clip { image, mounted: None, _engine: engine }
        }
        Server::Trivial => Serving::Trivial { tree: Arc::new(TrivialTree::new(&args.clip, &args.cache)?), mounted: None },
    };
    serving.remount(&args.mountpoint)?;
    answer()?;
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            FILL => serving.fill()?,
            REMOUNT => serving.remount(&args.mountpoint)?,
            other => bail!("expected {FILL} or {REMOUNT}, found {other:?}"),
        }
        answer()?;
    }
    serving.unmount()
}

fn answer() -> Result<()> {
    println!("{DONE}");
    Ok(std::io::stdout().flush()?)
}

impl Serving {
    /// A new mount of the same tree: the kernel knows no name and no page of it, the server keeps what it has.
    fn remount(&mut self, mountpoint: &Path) -> Result<()> {
        self.unmount()?;
        let options = MountOptions::new("clip-bench".to_owned());
        match self {
            Self::Clip { image, mounted, .. } => *mounted = Some(clip_fuse::mount(image.clone(), mountpoint, &options)?),
            Self::Trivial { tree, mounted } => *mounted = Some(TrivialMount::new(tree.clone(), mountpoint, &options)?),
        }
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        match self {
            Self::Clip { mounted, .. } => mounted.take().map_or(Ok(()), crate::measure::mount::end),
            Self::Trivial { mounted, .. } => {
                drop(mounted.take());
                Ok(())
            }
        }
    }

    /// Every byte of every layer is in the cache file, and verified.
    fn fill(&self) -> Result<()> {
        let Self::Clip { image, .. } = self else { return Ok(()) };
        let mut buffer = vec![0; FILL_BYTES as usize];
        let pieces = |layer: usize, len: u64| (0..len).step_by(FILL_BYTES as usize).map(move |at| (layer, at, (at + FILL_BYTES).min(len)));
        let layers: Vec<u64> = image.checkpoints().layers().iter().map(|table| table.stream_size()).collect();
        for (layer, start, end) in layers.iter().enumerate().flat_map(|(layer, len)| pieces(layer, *len)) {
            image.read_exact_at(LayerIndex(u16::try_from(layer)?), start, &mut buffer[..(end - start) as usize])?;
        }
        // Readers are answered before the cache is written.
        let deadline = Instant::now() + WRITTEN_WITHIN;
        for (layer, start, end) in layers.iter().enumerate().flat_map(|(layer, len)| pieces(layer, *len)) {
            while image.present(LayerIndex(u16::try_from(layer)?), start..end).is_none() {
                ensure!(Instant::now() < deadline, "the cache was not written within {WRITTEN_WITHIN:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }
}

/// A serving child. Dropping it ends it, and its mount.
pub struct Served {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    mountpoint: PathBuf,
}

impl Served {
    /// Starts `server` over `clip` and `cache`. Returns when `mountpoint` answers.
    ///
    /// # Errors
    /// The child's, which says why on standard error.
    pub fn start(server: Server, clip: &Path, cache: &Path, mountpoint: &Path) -> Result<Self> {
        let name = match server {
            Server::Clip => "clip",
            Server::Trivial => "trivial",
        };
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["child", "serve", name]).args([clip, cache, mountpoint]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("run {command:?}"))?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take().context("a child without standard output")?);
        let mut served = Self { child, commands, answers: BufReader::new(answers), mountpoint: mountpoint.to_owned() };
        served.wait()?;
        Ok(served)
    }

    /// Where.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What the child has spent on a core so far.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).context("a child without a pid")?;
        Ok(machine::cpu_time_of(pid)?.own)
    }

    /// Brings every byte of every layer into the cache, verified.
    ///
    /// # Errors
    /// The child's.
    pub fn fill(&mut self) -> Result<()> {
        self.ask(FILL)
    }

    /// Mounts anew, by the same process: the kernel's caches of the mount are cold, the server's own are warm.
    ///
    /// # Errors
    /// The child's.
    pub fn remount(&mut self) -> Result<()> {
        self.ask(REMOUNT)
    }

    fn ask(&mut self, what: &str) -> Result<()> {
        writeln!(self.commands.as_mut().context("a serving child that was ended")?, "{what}")?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("read what a serving child says")?;
        ensure!(line.trim_end() == DONE, "a serving child failed; it says why above");
        Ok(())
    }

    /// Ends the child and its mount.
    ///
    /// # Errors
    /// When it failed.
    pub fn end(mut self) -> Result<()> {
        self.commands = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "a serving child ended with {status}");
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.commands = None;
        // Either it was waited for already, or its input is at an end and it leaves.
        let _ = self.child.wait();
    }
}
