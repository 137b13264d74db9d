//! A mount must not cost by the number of files: one image of a million against one of a hundred.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use clip_format::header::Header;
use clip_indexer::write_clip;

use super::{end, mount, stat_hash};
use crate::{
    corpus::image_of_files,
    measure::{Findings, SameWork, timed},
    registry::Registry,
    report::{Figure, Temperature, Unit, milliseconds},
    setup::{self, Scale, Setup},
};

const FEW: usize = 100;
const MANY: usize = 1_000_000;
const MANY_TINY: usize = 2_000;
/// Milliseconds more, and times zstd's own time. Source: the project's own bars.
const MORE_BAR: f64 = 5.0;
const FIRST_BAR: f64 = 1.3;
/// The expanded index of a large image is hashed in the background after it was opened: that must not fall into the next measurement.
/// Source: 150 MB at over 1 GB/s on a busy core.
const SETTLE: Duration = Duration::from_millis(250);

const ZSTD: &str = "zstd decompresses the index section in memory";

/// An image, and where it was expanded.
struct Expanded {
    clip: PathBuf,
    bytes: Vec<u8>,
    cache: tempfile::TempDir,
    mountpoint: tempfile::TempDir,
    work: SameWork,
}

/// Adds times to the first stat of a large and a small tree: the first mount ever, and with an expanded index.
///
/// # Errors
/// Every kind.
pub(super) fn measure(setup: &Setup, findings: &mut Findings) -> Result<()> {
    let many = if setup.scale == Scale::Tiny { MANY_TINY } else { MANY };
    let dir = setup.fresh_dir()?;
    let (mut large, mut small) = (Expanded::new(setup, dir.path(), many)?, Expanded::new(setup, dir.path(), FEW)?);
    let (mut first, mut zstd, mut later, mut floor, mut more) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setup.runs {
        large.cache = setup.fresh_dir()?;
        zstd.push(milliseconds(large.decompress()?));
        first.push(milliseconds(large.first_stat(many)?));
        std::thread::sleep(SETTLE);
        // The first of a pair finds colder caches of the processor: each is it once.
        let pairs = [(small.first_stat(FEW)?, large.first_stat(many)?)];
        std::thread::sleep(SETTLE);
        let other = large.first_stat(many)?;
        std::thread::sleep(SETTLE);
        for (few, many) in pairs.into_iter().chain([(small.first_stat(FEW)?, other)]) {
            floor.push(milliseconds(few));
            later.push(milliseconds(many));
            more.push(milliseconds(many) - milliseconds(few));
        }
    }
    let work = large.work.hash();
    let what = format!("engine start, first open ever of an image of {many} files, mount, first stat");
    let figure = Figure::new("mount.million.first", &what, Unit::Milliseconds, &first).floor(ZSTD, &zstd).bar_of_ratio(FIRST_BAR);
    findings.figures.push(figure.temperature(Temperature::Cold).work(&work));
    let what = format!("engine start, mount with an expanded index of {many} files, first stat");
    let figure =
        Figure::new("mount.million.expanded", &what, Unit::Milliseconds, &later).floor(&format!("the same with {FEW} files"), &floor);
    findings.figures.push(figure.temperature(Temperature::Warm).work(&work));
    let what = format!("what {many} files cost over {FEW} in that");
    findings.figures.push(Figure::new("mount.million.more", &what, Unit::Milliseconds, &more).bar_of_value(MORE_BAR).work(&work));
    Ok(())
}

impl Expanded {
    fn new(setup: &Setup, dir: &Path, files: usize) -> Result<Self> {
        let registry = Registry::of_image(&image_of_files(files, 0, setup.packing())?)?;
        let (clip, bytes) = (dir.join(format!("{files}.clip")), setup::index(&registry.image_reference())?.clip);
        write_clip(&clip, &bytes)?;
        Ok(Self { clip, bytes, cache: setup.fresh_dir()?, mountpoint: setup.fresh_dir()?, work: SameWork::default() })
    }

    fn decompress(&self) -> Result<Duration> {
        let section = Header::from_bytes(&self.bytes)?.index;
        let start = usize::try_from(section.position)?;
        let stored = &self.bytes[start..start + usize::try_from(section.stored_len)?];
        let (took, index) = timed(|| Ok(zstd::bulk::decompress(stored, usize::try_from(section.raw_len)?)?))?;
        ensure!(index.len() as u64 == section.raw_len, "expected {} bytes of index, found {}", section.raw_len, index.len());
        Ok(took)
    }

    fn first_stat(&mut self, files: usize) -> Result<Duration> {
        let last = files - 1;
        let path = self.mountpoint.path().join(format!("d{:05}/f{last:07}", last / 100));
        let (took, (mounted, _engine)) = timed(|| {
            let (engine, image) = setup::open(self.cache.path(), &self.clip)?;
            let mounted = mount(image, self.mountpoint.path())?;
            self.work.check("the first stat", stat_hash(&fs::metadata(path)?))?;
            Ok((mounted, engine))
        })?;
        end(mounted)?;
        Ok(took)
    }
}
