//! The registry of one cell: it fails as the row's plan says, for as long as that says.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use clip_tests::{
    clip::{Clip, Mount, text},
    faults::{Fault, Gate, Seen, Server},
    holes::Hole,
    process::{wait_until, with_hosts},
    tls::{Scheme, TlsFront},
};

use super::{
    Image,
    cell::{Behind, HANG},
    rows::{Name, Plan, Row},
};

/// A registry that fails as its row says, and the image at it.
pub struct Bench<'a> {
    /// What it serves.
    pub image: &'a Image,
    row: &'static Row,
    server: Arc<Mutex<Server>>,
    front: Option<Front>,
    port: u16,
    /// A place for files.
    pub clip: Clip,
    /// Counts what was begun, so that a registry is not revived by an earlier plan.
    turn: Arc<Mutex<u64>>,
}

/// What is asked instead of the registry.
enum Front {
    Tls(TlsFront),
    Hole(Hole),
}

impl Front {
    fn port(&self) -> u16 {
        match self {
            Self::Tls(front) => front.authority().rsplit_once(':').unwrap().1.parse().unwrap(),
            Self::Hole(hole) => hole.port(),
        }
    }
}

impl<'a> Bench<'a> {
    pub fn new(image: &'a Image, row: &'static Row, behind: Behind) -> Self {
        let server = match behind {
            Behind::Layout => Server::start(&image.layout).unwrap(),
            Behind::Registry(port) => Server::before_registry(port).unwrap(),
        };
        server.set_gate(row.gate);
        let front = match row.at {
            Name::Tls => Some(Front::Tls(TlsFront::start(&server, Scheme::Basic).unwrap())),
            Name::Hole(step) => Some(Front::Hole(Hole::start(step).unwrap())),
            Name::Address | Name::Unknown => None,
        };
        let port = server.port();
        Self { image, row, server: Arc::new(Mutex::new(server)), front, port, clip: Clip::new(), turn: Arc::default() }
    }

    pub fn reference(&self) -> String {
        format!("127.0.0.1:{}/test/table:t", self.port)
    }

    /// Under the name that the row is about.
    pub fn faulty_reference(&self) -> String {
        match (&self.front, self.row.at) {
            (_, Name::Unknown) => format!("clip-fault.invalid:{}/test/table:t", self.port),
            // No loopback address by its looks, and one all the same.
            (Some(front), _) => format!("0.0.0.0:{}/test/table:t", front.port()),
            _ => self.reference(),
        }
    }

    pub fn patience(&self) -> Vec<&'static str> {
        self.row.patience.map_or_else(Vec::new, |time| vec!["--read-timeout", time])
    }

    pub fn index(&self, clip: &Clip, reference: &str, output: &Path) {
        clip.ok(&["index", reference, "-o", text(output).unwrap(), "--quiet", "--span-size", "64KiB"]).unwrap();
    }

    pub fn index_command(&self, clip: &Clip, reference: &str, output: &Path) -> Command {
        let mut arguments = vec!["index", reference, "-o", text(output).unwrap(), "--quiet", "--span-size", "64KiB"];
        arguments.extend(self.patience());
        clip.command(&arguments)
    }

    /// As [`Self::index_command`], in a mount namespace whose /etc/hosts has the registry's name after `time` only.
    pub fn index_when_named(&self, clip: &Clip, output: &Path, time: Duration) -> Command {
        let hosts = clip.path("hosts");
        std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let mut index = self.index_command(clip, &self.faulty_reference(), output);
        let command = with_hosts(index.arg("--plain-http"), &hosts);
        thread::spawn(move || {
            thread::sleep(time);
            let _ = std::fs::write(&hosts, "127.0.0.1 localhost clip-fault.invalid\n");
        });
        command
    }

    pub fn mount<'c>(&self, clip: &'c Clip, file: &Path, more: &[&str]) -> Mount<'c> {
        let store = self.faulty_reference();
        let mut options = self.patience();
        options.extend_from_slice(more);
        if self.row.at != Name::Address {
            options.extend(["--store-ref", store.as_str()]);
        }
        clip.mount(file, &options).unwrap()
    }

    pub fn well_mount<'c>(&self, clip: &'c Clip, file: &Path) -> Mount<'c> {
        clip.mount(file, &self.patience()).unwrap()
    }

    /// The registry fails by `plan` from now on; its requests are counted from here.
    pub fn begin(&self, plan: Plan) {
        let mut turn = self.turn.lock().unwrap();
        *turn += 1;
        let mut server = self.server.lock().unwrap();
        server.forget();
        let (layer, storage) = (self.image.layer.clone(), self.row.gate == Gate::Redirects);
        let is_layer = move |seen: &Seen| seen.path.ends_with(&layer) && (!storage || seen.path.starts_with("/storage/"));
        let counted = |count: u64, fault: Fault, is_meant: Box<dyn Fn(&Seen) -> bool + Send + Sync>| {
            let left = Mutex::new(count);
            move |_: u64, seen: &Seen| {
                let mut left = left.lock().unwrap();
                if !is_meant(seen) || *left == 0 {
                    return Fault::None;
                }
                *left -= 1;
                fault
            }
        };
        match plan {
            Plan::First(count, fault) => server.script(counted(count, fault, Box::new(is_layer))),
            Plan::Always(fault) => server.script(move |_, seen| if is_layer(seen) { fault } else { Fault::None }),
            Plan::FirstOfAny(count, fault) => server.script(counted(count, fault, Box::new(|_| true))),
            Plan::Any(fault) => server.script(move |_, _| fault),
            Plan::Nameless(_) => server.script(|_, _| Fault::None),
            Plan::Closed(time) => {
                server.script(|_, _| Fault::None);
                server.die();
                self.revive_after(time, *turn);
            }
            Plan::Outages(count, time) => {
                let (sender, receiver) = mpsc::sync_channel(64);
                server.script(move |_, seen| {
                    if !is_layer(seen) {
                        return Fault::None;
                    }
                    let _ = sender.try_send(());
                    Fault::SilentAfter(20_000)
                });
                let (shared, current, own) = (self.server.clone(), self.turn.clone(), *turn);
                thread::spawn(move || (1..=count).all(|round| outage(&shared, &current, &receiver, time, own, round == count)));
            }
        }
    }

    pub fn revive_after(&self, time: Duration, own: u64) {
        let (shared, current) = (self.server.clone(), self.turn.clone());
        thread::spawn(move || revive_after(&shared, &current, time, own));
    }

    pub fn heal(&self) {
        *self.turn.lock().unwrap() += 1;
        let mut server = self.server.lock().unwrap();
        server.script(|_, _| Fault::None);
        if !server.is_alive() {
            server.revive().unwrap();
        }
    }

    pub fn requests(&self) -> usize {
        self.server.lock().unwrap().seen().len()
    }

    /// Connections that programs which have ended left open.
    pub fn left(&self) -> usize {
        let open = || self.server.lock().unwrap().open_connections();
        let _ = wait_until("connections close", Duration::from_secs(2), || open() == 0);
        open()
    }

    /// What an error has to name of what failed by `plan`: the layer where requests for that failed, else the registry.
    pub fn culprit(&self, plan: Plan) -> String {
        match plan {
            Plan::First(..) | Plan::Always(_) | Plan::Outages(..) => self.image.layer.clone(),
            _ => self.faulty_reference().split('/').next().unwrap().to_owned(),
        }
    }
}

/// One outage after the next body of the layer has begun. False: another plan was begun meanwhile.
fn outage(server: &Mutex<Server>, turn: &Mutex<u64>, asked: &mpsc::Receiver<()>, time: Duration, own: u64, is_last: bool) -> bool {
    if asked.recv_timeout(HANG).is_err() {
        return false;
    }
    thread::sleep(Duration::from_millis(50));
    {
        let turn = turn.lock().unwrap();
        if *turn != own {
            return false;
        }
        let mut server = server.lock().unwrap();
        server.die();
        while asked.try_recv().is_ok() {}
        if is_last {
            server.script(|_, _| Fault::None);
        }
    }
    revive_after(server, turn, time, own)
}

/// Revives the registry after `time`, unless another plan was begun meanwhile.
fn revive_after(server: &Mutex<Server>, turn: &Mutex<u64>, time: Duration, own: u64) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
        if *turn.lock().unwrap() != own {
            return false;
        }
    }
    let turn = turn.lock().unwrap();
    let is_meant = *turn == own;
    if is_meant {
        server.lock().unwrap().revive().unwrap();
    }
    is_meant
}
