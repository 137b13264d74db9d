//! A registry on loopback that answers each request for a blob as a script says, and a listener to the log.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use clip_engine::{
    Engine, EngineConfig, Image, ImageOptions,
    registry::{Login, Reference},
};

use crate::sample::Node;

/// What the registry does about a request.
pub enum Answer {
    /// The range asked for.
    Bytes,
    /// The head and so many bytes of the range, then nothing more; the connection stays.
    Stall(usize),
    /// So many bytes at a time with a pause after each.
    Trickle(usize, Duration),
    /// A status and more of a head, without a body.
    Refuse(&'static str),
}

pub struct Registry {
    port: u16,
    /// First bytes of the ranges asked for, in order of arrival.
    pub asked: Arc<Mutex<Vec<usize>>>,
}

impl Registry {
    /// Serves `blob`; `script` is given the number of the request and its range. Its threads end with the process.
    pub fn start(blob: Vec<u8>, script: impl Fn(usize, &std::ops::Range<usize>) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self { port: listener.local_addr().unwrap().port(), asked: Arc::default() };
        let (asked, serve) = (registry.asked.clone(), Arc::new((blob, script)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, serve) = (asked.clone(), serve.clone());
                std::thread::spawn(move || converse(stream.unwrap(), &asked, &serve.0, &serve.1));
            }
        });
        registry
    }

    /// The node's image, read from here.
    pub fn open(&self, engine: &Engine, node: &Node) -> Arc<Image> {
        self.open_clip(engine, &node.clip())
    }

    /// Another image over the same blobs.
    pub fn open_clip(&self, engine: &Engine, clip: &std::path::Path) -> Arc<Image> {
        let registry = format!("127.0.0.1:{}", self.port);
        let store_ref = Some(Reference { registry, repository: "some/image".to_owned(), tag: None, digest: None });
        engine.open_image(clip, &ImageOptions { store_ref, ..ImageOptions::default() }).unwrap()
    }
}

/// An engine that reads no credentials of whoever runs the tests, and gives up after `read_timeout`.
pub fn start(node: &Node, read_timeout: Duration, settle: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = node.config();
    config.read_timeout = read_timeout;
    config.client.login = Login::anonymous();
    settle(&mut config);
    Engine::start(config).unwrap()
}

fn converse(
    mut stream: TcpStream,
    asked: &Mutex<Vec<usize>>,
    blob: &[u8],
    script: &impl Fn(usize, &std::ops::Range<usize>) -> Answer,
) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")).map_or(0..blob.len(), |range| {
            let (first, last) = range.split_once('-').unwrap();
            first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
        });
        let number = {
            let mut asked = asked.lock().unwrap();
            asked.push(range.start);
            asked.len() - 1
        };
        let (first, last, len) = (range.start, range.end - 1, blob.len());
        let status = if range.len() == len { "200 OK".to_owned() } else { format!("206 X\r\ncontent-range: bytes {first}-{last}/{len}") };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", range.len());
        let body = &blob[range.clone()];
        match script(number, &range) {
            Answer::Bytes => stream.write_all(&[head.as_bytes(), body].concat()).ok()?,
            Answer::Stall(bytes) => {
                stream.write_all(&[head.as_bytes(), &body[..bytes.min(body.len())]].concat()).ok()?;
                return stream.read(&mut [0]).ok().map(drop);
            }
            Answer::Trickle(bytes, pause) => {
                stream.write_all(head.as_bytes()).ok()?;
                for part in body.chunks(bytes) {
                    std::thread::sleep(pause);
                    stream.write_all(part).ok()?;
                }
            }
            Answer::Refuse(status) => stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).ok()?,
        }
    }
}

/// Every warning and error of the process, as text, from the first call on.
pub fn warnings() -> &'static Mutex<Vec<String>> {
    static LINES: OnceLock<&'static Mutex<Vec<String>>> = OnceLock::new();
    LINES.get_or_init(|| {
        let lines: &'static Mutex<Vec<String>> = Box::leak(Box::default());
        tracing::subscriber::set_global_default(Listener(lines)).unwrap();
        lines
    })
}

struct Listener(&'static Mutex<Vec<String>>);

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
