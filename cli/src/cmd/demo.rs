//! `clip demo`: everything at work on a sample image, without network or registry.

mod reading;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clip_engine::{Engine, EngineConfig, Image, ImageOptions, registry::Login};
use clip_fuse::{
    MountOptions, Mounted,
    mount::{Detach, umount},
};
use clip_indexer::{ImageRef, IndexOptions, index_image, progress::NoProgress, write_clip};

use crate::{
    args::DemoArgs,
    demo::{
        image::{Expected, Owner, REPOSITORY, SampleImage, XATTR},
        registry::{Registry, Served},
    },
    exit::{Outcome, chain_text},
    interrupt::{self, ScratchDir},
    values::{size, time},
};
use reading::Reading;

/// The demo has run and removed what it made; an error says which step went wrong.
pub fn run(args: &DemoArgs) -> Result<Outcome> {
    let scratch = ScratchDir::new("clip-demo-").context("temporary directory (TMPDIR)")?;
    let result = Demo::start(scratch.path()).and_then(|demo| demo.play(args));
    if args.keep {
        say(&format!("kept: {}", scratch.keep().display()))?;
    }
    result?;
    say("Everything read was what the image holds. Next: clip index IMAGE -o FILE.clip && clip mount FILE.clip DIR")?;
    Ok(Outcome::Good)
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

struct Demo {
    sample: SampleImage,
    registry: Registry,
    dir: PathBuf,
}

/// What one step cost.
struct Cost {
    began: Instant,
    served: Served,
}

impl Demo {
    fn start(dir: &Path) -> Result<Self> {
        say("clip demo: a sample image, a registry in this process, an index, a mount; everything is removed at the end\n")?;
        let began = Instant::now();
        let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let sample = SampleImage::new(owner).context("make the sample image")?;
        let registry = Registry::start(sample.objects.clone()).context("start the demo's registry")?;
        let made = format!(
            "{} layers, {} of tar, {} compressed, served at {}",
            sample.layers,
            size(sample.stream_bytes),
            size(sample.compressed_bytes),
            registry.address()
        );
        say(&format!("{:<32} {:>9} {:>9} {:>11}", "step", "time", "requests", "fetched"))?;
        say(&format!("{:<32} {:>9} {:>9} {:>11}   {made}", "make the image", time(began.elapsed()), "", ""))?;
        Ok(Self { sample, registry, dir: dir.to_owned() })
    }

    fn begin(&self) -> Cost {
        Cost { began: Instant::now(), served: self.registry.served() }
    }

    fn end(&self, cost: &Cost, step: &str, note: &str) -> Result<Served> {
        let taken = cost.began.elapsed();
        let now = self.registry.served();
        let used = Served { requests: now.requests - cost.served.requests, bytes: now.bytes - cost.served.bytes };
        say(&format!("{step:<32} {:>9} {:>9} {:>11}   {note}", time(taken), used.requests, size(used.bytes)))?;
        Ok(used)
    }

    fn play(&self, args: &DemoArgs) -> Result<()> {
        let clip = self.index().context("index the sample image")?;
        let engine = Engine::start(self.engine_config()).context("start the engine")?;
        let image = engine.open_image(&clip, &ImageOptions::default()).context("open the index")?;
        let mut reading = self.mount(args, &image)?;
        self.walk(&reading).context("compare the tree")?;
        let cost = self.begin();
        let bytes = self.read_start_files(&reading).context("read the files of a start")?;
        let first = self.end(&cost, "read what a start needs", &format!("{} in {} files", size(bytes), self.sample.start_files.len()))?;
        let cost = self.begin();
        let bytes = self.read_all(&reading).context("read every file")?;
        self.end(&cost, "read everything", &format!("{}, every digest right", size(bytes)))?;
        reading = self.again(reading, &image)?;
        let cost = self.begin();
        self.read_all(&reading).context("read every file again")?;
        let warm = self.end(&cost, "read everything again", "from the cache")?;
        reading.end()?;
        ensure!(warm.requests == 0, "the second read asked the registry {} times, expected the cache to answer", warm.requests);
        let share = 100.0 * first.bytes as f64 / self.sample.compressed_bytes as f64;
        say(&format!("\nThe start fetched {share:.0} % of the image; what was read once was not fetched again."))
    }

    fn engine_config(&self) -> EngineConfig {
        let mut config = EngineConfig::new(self.dir.join("cache"));
        // The user's own credentials have no place here.
        config.client.login = Login::anonymous();
        config
    }

    fn index(&self) -> Result<PathBuf> {
        let image: ImageRef = format!("{}/{REPOSITORY}:latest", self.registry.address()).parse()?;
        let mut options = IndexOptions::new(image);
        options.client = self.engine_config().client;
        let cost = self.begin();
        let indexed = index_image(&options, &NoProgress)?;
        let path = self.dir.join("demo.clip");
        write_clip(&path, &indexed.clip)?;
        let note = format!("{} for {} files: metadata only", size(indexed.summary.clip_bytes), indexed.summary.files);
        self.end(&cost, "clip index", &note)?;
        Ok(path)
    }

    /// A mount, or, where this machine cannot, the library, and why.
    fn mount(&self, args: &DemoArgs, image: &Arc<Image>) -> Result<Reading> {
        if args.no_mount {
            say("not mounted (--no-mount): reading through the library")?;
            return Ok(Reading::library(image));
        }
        let at = self.dir.join("mnt");
        std::fs::create_dir_all(&at)?;
        let cost = self.begin();
        match mount_at(image, &at) {
            Ok(reading) => {
                self.end(&cost, "clip mount", "ready to be read")?;
                Ok(reading)
            }
            Err(error) => {
                say(&format!("this machine cannot mount ({}); `clip doctor` says how to mend that", chain_text(&error)))?;
                say("reading through the library instead")?;
                Ok(Reading::library(image))
            }
        }
    }

    /// The same image mounted anew, so that the kernel's own cache is gone.
    fn again(&self, reading: Reading, image: &Arc<Image>) -> Result<Reading> {
        let Some(at) = reading.mountpoint() else { return Ok(reading) };
        reading.end()?;
        let cost = self.begin();
        let reading = mount_at(image, &at).context("mount again")?;
        self.end(&cost, "umount, mount again", "")?;
        Ok(reading)
    }

    /// Names, modes, links, whiteouts and the extended attribute: all without a byte from the registry.
    fn walk(&self, reading: &Reading) -> Result<()> {
        let cost = self.begin();
        for (path, expected) in &self.sample.expected {
            reading.check(path, expected).with_context(|| path.clone())?;
        }
        reading.check_xattr("app/tagged", XATTR.0, XATTR.1.as_bytes())?;
        let used = self.end(&cost, "compare names and attributes", &format!("{} paths", self.sample.expected.len()))?;
        ensure!(used.requests == 0, "metadata asked the registry {} times, expected none", used.requests);
        Ok(())
    }

    fn read_start_files(&self, reading: &Reading) -> Result<u64> {
        let files = self.sample.start_files.iter().filter_map(|path| self.sample.expected.get_key_value(path));
        files.map(|(path, expected)| read_and_compare(reading, path, expected)).sum()
    }

    fn read_all(&self, reading: &Reading) -> Result<u64> {
        self.sample.expected.iter().map(|(path, expected)| read_and_compare(reading, path, expected)).sum()
    }
}

/// Bytes read; nothing for what is no regular file.
fn read_and_compare(reading: &Reading, path: &str, expected: &Expected) -> Result<u64> {
    let Expected::File { size, blake3, .. } = expected else { return Ok(0) };
    let bytes = reading.contents(path).with_context(|| path.to_owned())?;
    ensure!(bytes.len() as u64 == *size, "{path}: expected {size} bytes, found {}", bytes.len());
    let found = blake3::hash(&bytes);
    ensure!(found.as_bytes() == blake3, "{path}: expected BLAKE3 {}, found {found}", hex::encode(blake3));
    Ok(bytes.len() as u64)
}

fn mount_at(image: &Arc<Image>, at: &Path) -> Result<Reading> {
    let mounted: Mounted = clip_fuse::mount(Arc::clone(image), at, &MountOptions::new("clip-demo".to_owned()))?;
    let path = at.to_owned();
    let registered = interrupt::on_interrupt(move || {
        let _ = umount(&path, Detach::Lazily);
    });
    Ok(Reading::mounted(mounted, registered))
}
