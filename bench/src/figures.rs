//! The measurements. Each makes its own cache directory and registry, so none finds the bytes of another.

use std::{
    fs::File,
    hint::black_box,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clip_indexer::{IndexOptions, Indexed, index_image, progress::NoProgress};
use clip_tests::{
    clip::{Clip, text},
    faults::Server,
    process::Running,
};

use crate::{
    corpus::{Corpus, LARGE, TAG},
    report::Figure,
};

/// Runs of what takes milliseconds.
const SHORT_RUNS: usize = 7;
/// Runs of what takes seconds.
const LONG_RUNS: usize = 3;
/// The `--span-size` of every figure.
const SPAN: u64 = 1 << 20;

/// A corpus that is served, and indexed.
pub struct Bench {
    corpus: Corpus,
    server: Server,
}

fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let started = Instant::now();
    let outcome = work()?;
    Ok((outcome, started.elapsed()))
}

impl Bench {
    /// Serves `corpus`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(corpus: Corpus) -> Result<Self> {
        Ok(Self { server: Server::start(&corpus.layout)?, corpus })
    }

    /// Of the corpus.
    #[must_use]
    pub fn work(&self) -> &str {
        &self.corpus.work
    }

    fn reference(&self) -> String {
        self.server.reference("bench", TAG)
    }

    fn index_in_process(&self) -> Result<Indexed> {
        let options = IndexOptions::new(self.reference().parse()?);
        Ok(index_image(&options, &NoProgress)?)
    }

    /// Index rate in MB/s of stream bytes, against zlib-rs inflating the same blobs from memory on one core.
    ///
    /// # Errors
    /// clip's own.
    pub fn index_rate(&self) -> Result<Vec<Figure>> {
        let mut runs = Vec::new();
        for _ in 0..LONG_RUNS {
            let (indexed, time) = timed(|| self.index_in_process())?;
            ensure!(indexed.summary.stream_bytes == self.corpus.stream_bytes, "the index is of other bytes");
            runs.push(megabytes_per_second(self.corpus.stream_bytes, time));
        }
        let floor = inflate_rate(&self.corpus.blobs)?;
        let figure = Figure::of_runs("index", &mut runs, "MB/s", "stream bytes, from a loopback registry");
        Ok(vec![figure.beside("zlib-rs inflate of the same bytes, one core", floor)])
    }

    /// Length of the `.clip` per file and per MiB.
    ///
    /// # Errors
    /// clip's own.
    pub fn clip_size(&self) -> Result<Vec<Figure>> {
        let summary = self.index_in_process()?.summary;
        let (clip, windows) = (summary.clip_bytes as f64, summary.windows_bytes as f64);
        let mib = self.corpus.stream_bytes as f64 / f64::from(1 << 20);
        let note = format!("{} bytes for {} files in {mib:.0} MiB; {windows:.0} of them windows", summary.clip_bytes, self.corpus.files);
        Ok(vec![
            Figure::new(".clip per file", (clip - windows) / self.corpus.files as f64, "B", format!("without windows; {note}")),
            Figure::new(".clip per MiB of stream", clip / mib, "B", note)
                .beside("a raw 32 KiB window a checkpoint", f64::from(1 << 15) * f64::from(1 << 20) / SPAN as f64),
        ])
    }

    fn indexed_file(&self, clip: &Clip) -> Result<PathBuf> {
        clip.index(&self.reference(), "bench", &[])
    }

    /// From starting `clip mount` to the first answered stat, with a new owner and with one that is there.
    ///
    /// # Errors
    /// clip's own.
    pub fn mount_time(&self) -> Result<Vec<Figure>> {
        let (mut first, mut again, mut joined, mut spawn) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SHORT_RUNS {
            let clip = Clip::new();
            let file = self.indexed_file(&clip)?;
            spawn.push(milliseconds(timed(|| clip.ok(&["--version"]))?.1));
            let (mount, time) = timed(|| mount_and_stat(&clip, &file))?;
            first.push(milliseconds(time));
            let (second, time) = timed(|| mount_and_stat(&clip, &file))?;
            joined.push(milliseconds(time));
            drop((mount, second));
            clip.wait_for_servers()?;
            let (mount, time) = timed(|| mount_and_stat(&clip, &file))?;
            again.push(milliseconds(time));
            drop(mount);
            clip.wait_for_servers()?;
        }
        spawn.sort_by(f64::total_cmp);
        let floor = spawn[spawn.len() / 2];
        Ok(vec![
            Figure::of_runs("clip mount to first stat", &mut first, "ms", "new image: the index is expanded and checked")
                .beside("clip --version", floor),
            Figure::of_runs("clip mount to first stat, known image", &mut again, "ms", "new owner").beside("clip --version", floor),
            Figure::of_runs("clip mount to first stat, second mount", &mut joined, "ms", "joins the owner").beside("clip --version", floor),
        ])
    }

    /// Cold 4 KiB reads, one a span, in a random order: p50 and p99; and what they fetched.
    ///
    /// # Errors
    /// clip's own.
    pub fn random_reads(&self) -> Result<Vec<Figure>> {
        let clip = Clip::new();
        let file = self.indexed_file(&clip)?;
        let mount = clip.mount(&file, &[])?;
        let large = File::open(mount.path(LARGE))?;
        self.server.forget();
        let mut times = Vec::new();
        let mut buffer = [0; 4096];
        for offset in shuffled_offsets(self.corpus.large.len() as u64) {
            let (_, time) = timed(|| Ok(large.read_exact_at(&mut buffer, offset)?))?;
            let start = usize::try_from(offset)?;
            ensure!(buffer == self.corpus.large[start..start + 4096], "a wrong byte at {offset}");
            times.push(milliseconds(time));
        }
        let (requests, bytes) = self.fetched();
        let reads = times.len();
        times.sort_by(f64::total_cmp);
        let floor = self.ranged_get_time()?;
        let note = format!("cold, loopback registry, {reads} reads, one a span");
        Ok(vec![
            Figure::new("4 KiB read, p50", times[reads / 2], "ms", note.clone())
                .beside("a 256 KiB ranged GET on an open connection", floor),
            Figure::new("4 KiB read, p99", times[reads * 99 / 100], "ms", note.clone()),
            Figure::new("4 KiB read, requests per read", requests as f64 / reads as f64, "", note.clone()).beside("one", 1.0),
            Figure::new("4 KiB read, bytes fetched per byte read", bytes as f64 / (reads * 4096) as f64, "", note),
        ])
    }

    /// A sequential read of the large file: cold, from clip's cache, from the kernel's.
    ///
    /// # Errors
    /// clip's own.
    pub fn sequential_reads(&self) -> Result<Vec<Figure>> {
        let len = self.corpus.large.len() as u64;
        let (mut cold, mut cached, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        let (mut requests, mut bytes) = (0, 0);
        for _ in 0..LONG_RUNS {
            let clip = Clip::new();
            let file = self.indexed_file(&clip)?;
            self.server.forget();
            let mount = clip.mount(&file, &[])?;
            cold.push(megabytes_per_second(len, self.read_large(&mount.path(LARGE))?));
            (requests, bytes) = self.fetched();
            warm.push(megabytes_per_second(len, self.read_large(&mount.path(LARGE))?));
            mount.umount()?;
            clip.wait_for_servers()?;
            let mount = clip.mount(&file, &[])?;
            cached.push(megabytes_per_second(len, self.read_large(&mount.path(LARGE))?));
        }
        let plain = tempfile::NamedTempFile::new()?;
        plain.as_file().write_all(&self.corpus.large)?;
        let disk = megabytes_per_second(len, self.read_large(plain.path())?);
        let note = format!("{} MB", len / 1_000_000);
        Ok(vec![
            Figure::of_runs("sequential read, cold", &mut cold, "MB/s", format!("{note}, loopback registry"))
                .beside("zlib-rs inflate of the same bytes, one core", inflate_rate(&self.corpus.blobs)?),
            Figure::of_runs("sequential read, clip's cache", &mut cached, "MB/s", format!("{note}, new owner: every span is verified"))
                .beside("a plain file in the page cache", disk),
            Figure::of_runs("sequential read, page cache", &mut warm, "MB/s", note.clone()).beside("a plain file in the page cache", disk),
            Figure::new("sequential read, requests per MiB", requests as f64 / (len as f64 / f64::from(1 << 20)), "", note.clone()),
            Figure::new("sequential read, bytes fetched per byte read", bytes as f64 / len as f64, "", note).beside(
                "compressed size of the image",
                self.corpus.blobs.iter().map(Vec::len).sum::<usize>() as f64 / self.corpus.stream_bytes as f64,
            ),
        ])
    }

    /// Peak memory of `clip index`, and of the process that serves a mount whose large file was read.
    ///
    /// # Errors
    /// clip's own.
    pub fn peak_memory(&self) -> Result<Vec<Figure>> {
        let clip = Clip::new();
        let output = clip.path("memory.clip");
        let mut command = clip.command(&["index", &self.reference(), "-o", text(&output)?, "--quiet"]);
        let mut running = Running::start(command.stdin(Stdio::null()))?;
        let mut index = 0.0;
        while running.is_alive() {
            index = peak_mib(running.0.id()).unwrap_or(index).max(index);
            std::thread::sleep(Duration::from_millis(3));
        }
        ensure!(running.wait(Duration::from_secs(1))?.success(), "clip index failed");
        let mount = clip.mount(&output, &[])?;
        self.read_large(&mount.path(LARGE))?;
        let serving = clip.servers().into_iter().filter_map(peak_mib).fold(0.0, f64::max);
        let stream = self.corpus.stream_bytes as f64 / f64::from(1 << 20);
        Ok(vec![
            Figure::new("peak memory of clip index", index, "MiB", "VmHWM").beside("the layer streams", stream),
            Figure::new("peak memory of clip mount", serving, "MiB", "VmHWM after a cold sequential read; maps of the cache count")
                .beside("the layer streams", stream),
        ])
    }

    /// Blob requests and their body bytes since the server last forgot.
    fn fetched(&self) -> (u64, u64) {
        let seen = self.server.seen();
        let blobs = seen.iter().filter(|seen| seen.is_blob());
        blobs.fold((0, 0), |(requests, bytes), seen| (requests + 1, bytes + seen.served))
    }

    fn read_large(&self, path: &Path) -> Result<Duration> {
        let mut buffer = vec![0; 1 << 20];
        let mut file = File::open(path)?;
        let (total, time) = timed(|| {
            let mut total = 0;
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(total),
                    len => {
                        ensure!(buffer[..len] == self.corpus.large[total..total + len], "a wrong byte after {total}");
                        total += len;
                    }
                }
            }
        })?;
        ensure!(total == self.corpus.large.len(), "{total} bytes of {}", self.corpus.large.len());
        Ok(time)
    }

    /// The median time of a 256 KiB ranged GET, about what a span of the corpus is, on one open connection.
    fn ranged_get_time(&self) -> Result<f64> {
        let digest = &self.corpus.layout.layer_digests(TAG)?[0];
        let reference = self.reference();
        let (host, _) = reference.split_once('/').context("a host")?;
        let mut stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        let (mut times, mut body) = (Vec::new(), vec![0; 256 << 10]);
        for number in 0..20 {
            let first = number * 1000;
            let last = first + body.len() - 1;
            let (_, time) = timed(|| {
                write!(stream, "GET /v2/test/bench/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={first}-{last}\r\n\r\n")?;
                read_head(&mut stream)?;
                Ok(stream.read_exact(&mut body)?)
            })?;
            times.push(milliseconds(time));
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

fn mount_and_stat<'a>(clip: &'a Clip, file: &Path) -> Result<clip_tests::clip::Mount<'a>> {
    let mount = clip.mount(file, &[])?;
    mount.path(LARGE).metadata()?;
    Ok(mount)
}

/// Reads up to the empty line, byte by byte: the body must stay in the socket.
fn read_head(stream: &mut TcpStream) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(())
}

/// MB/s of zlib-rs over `blobs`, into a buffer that stays in the core's cache.
fn inflate_rate(blobs: &[Vec<u8>]) -> Result<f64> {
    let mut buffer = vec![0; 256 << 10];
    let (total, time) = timed(|| {
        let mut total = 0;
        for blob in blobs {
            let mut decoder = flate2::read::MultiGzDecoder::new(&blob[..]);
            loop {
                match decoder.read(&mut buffer)? {
                    0 => break,
                    len => total += black_box(&buffer[..len]).len() as u64,
                }
            }
        }
        Ok(total)
    })?;
    Ok(megabytes_per_second(total, time))
}

/// One offset in each second span, in an order that no read-ahead guesses; the same at every run.
fn shuffled_offsets(len: u64) -> Vec<u64> {
    let mut offsets: Vec<u64> = (0..len / (2 * SPAN)).map(|place| place * 2 * SPAN + (place * 40_503) % (SPAN / 4096) * 4096).collect();
    let count = offsets.len();
    for place in 0..count {
        offsets.swap(place, (place * 2_654_435_761) % count);
    }
    offsets
}

/// VmHWM of a process, while it lives.
fn peak_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
