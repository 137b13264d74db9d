//! Decoding from every checkpoint, with its sparse window, gives the bytes that plain decompression gives, whoever compressed the layer.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{io::Read, path::Path};

use clip_engine::inflate::{Inflate, Stop, Until};
use clip_format::{
    checkpoints::{SpanStart, SpanTable},
    limits::WINDOW_BYTES,
    storage_info::Codec,
    units::SpanIndex,
    windows::expand_window,
};
use clip_tests::{
    clip::Clip,
    faults::Server,
    images::{Compression, Headers, Layout, Member, TarWriter, debian, nasty},
    machine::{Need, lacks},
    registry::Registry,
    spans::{Parts, is_entry},
};
use serde_json::json;
use tempfile::TempDir;

/// A stream that has everything a compressor treats apart: noise, prose, zeros, repeats at all distances.
fn varied_stream() -> Vec<u8> {
    let mut far = nasty::noise(31, 40_000);
    far.extend(nasty::noise(31, 32_000));
    far.extend(nasty::prose(32, 300_000));
    let members = [
        Member::file("noise", nasty::noise(33, 3 << 20)),
        Member::file("prose", nasty::prose(34, 6 << 20)),
        Member::file("zeros", vec![0; 5 << 20]),
        Member::file("far", far.repeat(6)),
        Member::file("short-period", b"abcdefg".repeat(300_000)),
    ];
    TarWriter::stream(&members, Headers::Pax)
}

/// Decodes what lies between entry `entry` and the next one, as a reader does.
fn decode_from(table: &SpanTable, entry: SpanIndex, windows: &[u8], blob: &[u8]) -> Vec<u8> {
    let span = table.span(entry);
    let range = table.compressed_range(entry);
    let mut input = &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    let end = table.next_entry(entry).map_or(table.stream_size(), |next| table.span(next).stream.get());
    let mut output = vec![0; usize::try_from(end - span.stream.get()).unwrap()];
    let mut inflate = match span.start {
        SpanStart::Chained => panic!("not an entry"),
        SpanStart::Plain => return input[..output.len()].to_vec(),
        SpanStart::Member => Inflate::gzip(),
        SpanStart::Frame { .. } => {
            let mut frames = zstd::stream::read::Decoder::new(input).unwrap();
            frames.read_exact(&mut output).unwrap();
            return output;
        }
        SpanStart::Deflate { bit_offset, window } => {
            // An absent window is one of zeros, not one that nothing refers to: repeats of zeros look back into it.
            let window = expand_window(windows, window).unwrap().unwrap_or_else(|| Box::new([0; WINDOW_BYTES]));
            let first_byte = input[0];
            input = if bit_offset == 0 { input } else { &input[1..] };
            Inflate::raw(Some(&window), bit_offset, first_byte)
        }
    };
    let mut raw = matches!(span.start, SpanStart::Deflate { .. });
    let mut at = 0;
    while at < output.len() {
        let step = inflate.step(input, &mut output[at..], Until::Full).unwrap();
        input = &input[step.consumed..];
        at += step.produced;
        match step.stop {
            Stop::End => {
                // A raw stream leaves the member's trailer (CRC-32 and length) in the input.
                input = if raw { &input[8..] } else { input };
                raw = false;
                inflate.reset_gzip();
            }
            _ => assert!(step.consumed + step.produced > 0, "no progress at {at} of {} from entry {}", output.len(), entry.get()),
        }
    }
    output
}

/// Every entry of every layer of the `.clip` at `file`; returns how many.
fn check_every_entry(claim: &str, file: &Path, blob_of: impl Fn(&str) -> Vec<u8>) -> usize {
    let parts = Parts::read(file).unwrap();
    let mut entries = 0;
    for (info, table) in parts.storage_info.layers.iter().zip(parts.checkpoints.layers()) {
        let blob = blob_of(&info.digest.to_string());
        let mut stream = Vec::new();
        match info.codec {
            Codec::Gzip => flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut stream).map(drop).unwrap(),
            Codec::Zstd => zstd::stream::copy_decode(&blob[..], &mut stream).unwrap(),
            Codec::Plain => stream.clone_from(&blob),
        }
        assert_eq!(stream.len() as u64, info.stream_size);
        for span in (0..table.len()).map(SpanIndex).filter(|span| is_entry(&table.span(*span).start)) {
            let start = usize::try_from(table.span(span).stream.get()).unwrap();
            let found = decode_from(table, span, &parts.windows, &blob);
            let wrong = found.iter().zip(&stream[start..]).position(|(ours, theirs)| ours != theirs);
            assert_eq!(wrong, None, "{claim}: entry {} at stream offset {start} gives a wrong byte", span.get());
            entries += 1;
        }
    }
    entries
}

/// gzip at its three kinds of level, pigz (one member, and independent blocks), zlib-rs, sync-flushed and many-member streams; zstd and
/// pzstd, many frames, the seekable format.
#[test]
fn every_compressor_can_be_resumed() {
    let layout = Layout::scratch().unwrap();
    let stream = varied_stream();
    let mut cases = vec![
        ("zlib-rs -1", Compression::ZlibRs(1)),
        ("zlib-rs -6", Compression::ZlibRs(6)),
        ("zlib-rs stored", Compression::ZlibRs(0)),
        ("members", Compression::Members(333_333)),
        ("sync-flushed", Compression::SyncFlushed(100_000)),
        ("plain", Compression::Plain),
        ("zstd frames", Compression::Frames(90_000)),
        ("zstd larger frames", Compression::Frames(700_001)),
        ("zstd seekable", Compression::Seekable(128 << 10)),
    ];
    for (name, program) in [
        ("zstd -3", &["zstd", "-q", "-3"]),
        ("zstd -19", &["zstd", "-q", "-19"]),
        ("zstd --fast", &["zstd", "-q", "--fast"]),
        ("pzstd", &["pzstd", "-q", "-5"]),
    ] {
        if !lacks(&[Need::Tool(program[0])]) {
            cases.push((name, Compression::ZstdProgram(program)));
        }
    }
    for (name, program) in [
        ("gzip -1", &["gzip", "-1"]),
        ("gzip -6", &["gzip", "-6"]),
        ("gzip -9", &["gzip", "-9"]),
        ("pigz", &["pigz", "-6"]),
        ("pigz -i", &["pigz", "-i"]),
    ] {
        if !lacks(&[Need::Tool(program[0])]) {
            cases.push((name, Compression::Program(program)));
        }
    }
    for (name, compression) in cases {
        let tag = name.replace(' ', "");
        let layer = layout.layer(&stream, &compression).unwrap();
        layout.image(&tag, &[layer], json!({})).unwrap();
        let clip = Clip::new();
        let file = clip.index(&layout.reference(&tag), "one", &["--span-size", "256KiB"]).unwrap();
        let entries = check_every_entry(name, &file, |digest| std::fs::read(layout.blob_path(digest).unwrap()).unwrap());
        // The engine's own decoder too: an absent window is one of zeros, not none.
        clip.ok(&["verify", "--remote", clip_tests::clip::text(&file).unwrap()]).unwrap();
        // zlib-rs's fastest level writes one block however long the stream is, and zstd one frame; all others must offer places to enter.
        let is_one_piece = ["zlib-rs -1", "zstd -3", "zstd -19", "zstd --fast", "pzstd"].contains(&name);
        assert!(is_one_piece || entries * (512 << 10) >= stream.len() / 2, "{name}: only {entries} entries in {} bytes", stream.len());
    }
}

/// A real layer (a Debian base), compressed again by gzip at its three kinds of level and by pigz, at every entry of 1 MiB spans.
#[test]
fn a_real_layer_by_every_program_can_be_resumed() {
    if lacks(debian::NEEDS) || lacks(&[Need::Tool("gzip"), Need::Tool("pigz")]) {
        return;
    }
    let debian = debian::layout().unwrap();
    let blob = std::fs::read(debian.blob_path(&debian.layer_digests(debian::BASE).unwrap()[0]).unwrap()).unwrap();
    let mut stream = Vec::new();
    flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut stream).unwrap();
    let programs: [(&str, &'static [&'static str]); 4] =
        [("gzip-1", &["gzip", "-1"]), ("gzip-6", &["gzip", "-6"]), ("gzip-9", &["gzip", "-9"]), ("pigz", &["pigz"])];
    for (name, program) in programs {
        let layout = Layout::scratch().unwrap();
        let layer = layout.layer(&stream, &Compression::Program(program)).unwrap();
        layout.image(name, &[layer], json!({})).unwrap();
        let clip = Clip::new();
        let file = clip.index(&layout.reference(name), name, &[]).unwrap();
        let entries = check_every_entry(name, &file, |digest| std::fs::read(layout.blob_path(digest).unwrap()).unwrap());
        assert!(entries * (2 << 20) >= stream.len(), "{name}: only {entries} entries in {} bytes", stream.len());
    }
}

/// Go's gzip: layers that umoci wrote, at every entry of a Debian image of 1 MiB spans.
#[test]
fn layers_by_umoci_can_be_resumed() {
    if lacks(debian::NEEDS) {
        return;
    }
    let layout = debian::layout().unwrap();
    let server = Server::start(layout).unwrap();
    let clip = Clip::new();
    let file = clip.index(&server.reference("debian", debian::APP), "debian", &[]).unwrap();
    let entries = check_every_entry("umoci", &file, |digest| std::fs::read(layout.blob_path(digest).unwrap()).unwrap());
    assert!(entries > 100, "only {entries} entries");
}

/// Go's parallel gzip: what skopeo makes of a plain layer while it pushes it to a registry.
#[test]
fn layers_by_skopeo_can_be_resumed() {
    if lacks(&[Need::Tool("docker-registry"), Need::Tool("skopeo")]) {
        return;
    }
    let scratch = TempDir::new().unwrap();
    let layout = Layout::create(&scratch.path().join("plain")).unwrap();
    let layer = layout.layer(&varied_stream(), &Compression::Plain).unwrap();
    layout.image("plain", &[layer], json!({})).unwrap();
    let registry = Registry::start().unwrap();
    let reference = registry.push(layout.dir(), "plain", "skopeo").unwrap();
    let copy = scratch.path().join("copy");
    let copied = format!("oci:{}:copy", copy.display());
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--src-tls-verify=false", "--insecure-policy", &format!("docker://{reference}"), &copied]);
    clip_tests::process::run_ok(&mut skopeo).unwrap();
    let copied = Layout::open(&copy);
    let clip = Clip::new();
    let file = clip.index(&reference, "skopeo", &["--span-size", "256KiB"]).unwrap();
    assert_eq!(Parts::read(&file).unwrap().storage_info.layers[0].codec, clip_format::storage_info::Codec::Gzip, "skopeo compressed it");
    let entries = check_every_entry("skopeo", &file, |digest| std::fs::read(copied.blob_path(digest).unwrap()).unwrap());
    assert!(entries > 20, "only {entries} entries");
}
