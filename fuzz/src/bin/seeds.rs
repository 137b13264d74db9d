//! Writes the seed corpora: `seeds GOLDEN_DIR CORPUS_DIR`.

use std::{fs, path::Path};

use clip_format::{
    checkpoints::{Checkpoints, Span, SpanStart, WindowRange},
    clip_file::ClipFile,
    units::{CompressedOffset, StreamOffset},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [golden, corpus] = arguments.as_slice() else { return Err("usage: seeds GOLDEN_DIR CORPUS_DIR".into()) };
    for entry in fs::read_dir(golden)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        seeds(Path::new(corpus), &name, &fs::read(&path)?)?;
    }
    Ok(())
}

fn seeds(corpus: &Path, name: &str, clip: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let file = ClipFile::parse(clip)?;
    put(corpus, "header", name, clip)?;
    put(corpus, "erofs", name, &file.index()?)?;
    put(corpus, "storage_info", name, &file.storage_info()?.to_bytes()?)?;
    put(corpus, "checkpoints", name, &two_layers()?)?;
    Ok(())
}

/// Checkpoints for the two layers that the target opens them with.
fn two_layers() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let span = |start, compressed, stream| Span {
        start,
        compressed: CompressedOffset(compressed),
        stream: StreamOffset(stream),
        digest: [stream as u8; 32],
    };
    let deflate = |bit_offset, offset, len| SpanStart::Deflate { bit_offset, window: WindowRange { offset, len } };
    let gzip = vec![
        span(SpanStart::Member, 0, 0),
        span(deflate(5, 0, 900), 130_000, 1 << 20),
        span(SpanStart::Chained, 130_000, 3 << 19),
        span(deflate(0, 900, 800), 260_000, 2 << 20),
    ];
    let plain = vec![span(SpanStart::Plain, 0, 0), span(SpanStart::Plain, 1 << 20, 1 << 20)];
    Ok(Checkpoints::encode(&[gzip, plain])?)
}

fn put(corpus: &Path, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let dir = corpus.join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(format!("golden-{name}")), bytes)
}
