//! The addresses of a name, by the system's resolver, which blocks: on threads of its own, one a name, of which there are never many.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

/// Names that are looked up at once, each on a thread that may hang. Source: judgement, not measured: an image has a registry, some mirrors, a
/// token server, storage and a proxy; this many names hang only where no name can be looked up.
const NAMES_MAX: usize = 64;

/// Of this process: a resolver that hangs does so for every client.
static LOOKUPS: Lookups = Lookups { under_way: Mutex::new(BTreeMap::new()) };

/// What one look-up came to; `None`: it is under way.
type Answer = watch::Receiver<Option<Result<Vec<IpAddr>, Arc<io::Error>>>>;

struct Lookups {
    under_way: Mutex<BTreeMap<String, Answer>>,
}

/// The addresses of `host`, a name or an address, with `port`. Who asks for a name that is being looked up waits for that answer: on the
/// runtime's blocking threads a resolver that hangs would hold up the writes of the cache, and the runtime's end, and with a thread for
/// each caller they would pile up, for a thread outlives its caller by the resolver's own timeouts, 30 s or so.
///
/// # Errors
/// The resolver's; at once, while too many names are being looked up.
pub(super) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => came(LOOKUPS.join(host, resolve)?).await?,
    };
    Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

async fn came(mut answer: Answer) -> io::Result<Vec<IpAddr>> {
    let ended = |_| io::Error::other("the thread that looked up the name ended");
    let came = answer.wait_for(Option::is_some).await.map_err(ended)?;
    match came.as_ref() {
        Some(Ok(found)) => Ok(found.clone()),
        Some(Err(error)) => Err(io::Error::new(error.kind(), Arc::clone(error))),
        None => Ok(Vec::new()),
    }
}

impl Lookups {
    /// The look-up of `name` that is under way, or a new one by `resolve`.
    fn join(&'static self, name: &str, resolve: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static) -> io::Result<Answer> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that ended without an answer has closed its channel.
        under_way.retain(|_, answer| answer.has_changed().is_ok());
        if let Some(answer) = under_way.get(name) {
            return Ok(answer.clone());
        }
        if under_way.len() >= NAMES_MAX {
            return Err(io::Error::other(format!("{NAMES_MAX} other names are being looked up, and none has an answer")));
        }
        let (sender, answer) = watch::channel(None);
        let owned = name.to_owned();
        let look_up = move || {
            let found = resolve(&owned).map_err(Arc::new);
            // Who comes from now on has it looked up anew.
            self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&owned);
            sender.send_replace(Some(found));
        };
        std::thread::Builder::new().name("clip-resolve".to_owned()).spawn(look_up)?;
        under_way.insert(name.to_owned(), answer.clone());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;

    /// Claim: callers of one name share one thread and its answer, the next look-up is a new one; past the limit another name is an error at
    /// once, and one that is under way is not.
    #[tokio::test]
    async fn a_name_is_looked_up_by_one_thread() {
        static HANGING: Lookups = Lookups { under_way: Mutex::new(BTreeMap::new()) };
        let (let_go, held) = mpsc::channel::<()>();
        let found = |last: u8| Ok(vec![IpAddr::from([127, 0, 0, last])]);
        let hang = move |_: &str| {
            held.recv().ok();
            found(1)
        };
        let first = HANGING.join("a", hang).unwrap();
        let second = HANGING.join("a", move |_| found(2)).unwrap();
        let others: Vec<_> = (1..NAMES_MAX)
            .map(|at| {
                let (let_go, held) = mpsc::channel::<()>();
                let hang = move |_: &str| held.recv().map_err(io::Error::other).and_then(|()| found(3));
                (let_go, HANGING.join(&format!("b{at}"), hang).unwrap())
            })
            .collect();
        let error = HANGING.join("c", move |_| found(4)).unwrap_err();
        assert!(error.to_string().contains("64 other names"), "{error}");
        let third = HANGING.join("a", move |_| found(5)).unwrap();
        let_go.send(()).unwrap();
        for answer in [first, second, third] {
            assert_eq!(came(answer).await.unwrap(), found(1).unwrap());
        }
        for (let_go, answer) in others {
            drop(let_go);
            assert!(came(answer).await.is_err());
        }
        assert_eq!(came(HANGING.join("a", move |_| found(6)).unwrap()).await.unwrap(), found(6).unwrap());
    }

    /// Claim: names, IPv4 and IPv6 addresses become addresses with their port.
    #[tokio::test]
    async fn names_and_addresses_are_looked_up() {
        assert!(addresses("localhost", 80).await.unwrap().iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        assert_eq!(addresses("::1", 443).await.unwrap(), ["[::1]:443".parse().unwrap()]);
        assert!(addresses("clip-has-no-such.invalid", 80).await.is_err());
    }
}
