//! Mirrors and registries that fail for a while, with tries as by default: who is asked meanwhile, and who has the last word.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clip_engine::registry::{Client, ClientConfig};
use registry_script::{mirrors::*, *};

fn requests(servers: [&Server; 2]) -> [usize; 2] {
    servers.map(|server| server.seen().len())
}

/// Claim: a blob that the mirror lacks is fetched from the registry through a blip of it, and so are others while it rests: only the
/// registry can say that there is none.
#[tokio::test]
async fn only_the_registry_can_say_that_there_is_none() {
    let blobs = [pattern(5000), pattern(6000), pattern(7000)];
    let (poor, own) = (Server::start(|_| reply(404, "")).await, blobs.clone());
    let blips = Server::start(move |seen| match (seen.number, own.iter().find(|blob| seen.path.ends_with(&sha256(blob).to_string()))) {
        (0, _) => reply(200, "").then(Then::Hangup),
        (_, Some(blob)) => serve_blob(seen, blob),
        (_, None) => reply(404, ""),
    })
    .await;
    let settings = Settings::new("h.x", &format!("{}{}", origin(&blips), mirror(&poor)));
    let (client, reference) = (settings.client(), image("h.x/a/b"));
    for blob in &blobs {
        assert_eq!(read_of(&client, &reference, blob, 10..20).await.unwrap(), blob[10..20]);
    }
    let begun = Instant::now();
    let error = read_of(&client, &reference, &pattern(8000), 10..20).await.unwrap_err().to_string();
    assert!(error.contains("404") && begun.elapsed() < PATIENCE, "{error}");
}

/// Claim: of hosts that all have sent wrong bytes of a blob the one that did so longest ago is asked first, so that no try meets the host
/// of the one before.
#[tokio::test]
async fn hosts_that_are_all_wrong_take_turns() {
    let blob = pattern(1000);
    let servers = [registry(&[1; 1000]).await, registry(&[2; 1000]).await, registry(&[3; 1000]).await];
    let settings = Settings::new("h.x", &format!("{}{}{}", origin(&servers[2]), mirror(&servers[0]), mirror(&servers[1])));
    let client = settings.client();
    for turn in [1, 2, 3, 1, 2, 3, 1] {
        let mut reader = client.blob(&image("h.x/a/b"), &sha256(&blob), 1000, 0..10).await.unwrap();
        assert_eq!(reader.chunk().await.unwrap().unwrap(), [turn; 10].as_slice());
        reader.sender().unwrap().distrust();
    }
}

/// Claim: a mirror that sent wrong bytes is asked behind a registry that lacked the blob a moment ago, and behind one that blips or rests.
#[tokio::test]
async fn a_host_that_was_wrong_is_asked_behind_all_others() {
    let blob = pattern(1000);
    for first in [reply(404, ""), reply(200, "").then(Then::Hangup)] {
        let (wrong, own, lacks) = (registry(&[0; 1000]).await, blob.clone(), first.status == 404);
        let right = Server::start(move |seen| if seen.number == 0 { first.clone() } else { serve_blob(seen, &own) }).await;
        let settings = Settings::new("h.x", &format!("{}{}", origin(&right), mirror(&wrong)));
        let (client, reference) = (settings.client(), image("h.x/a/b"));
        let mut reader = client.blob(&reference, &sha256(&blob), 1000, 0..10).await.unwrap();
        reader.chunk().await.unwrap();
        reader.sender().unwrap().distrust();
        if lacks {
            // Its word is final, but the mark may be out of date: the wrong one is asked for want of another.
            assert_eq!(read_of(&client, &reference, &blob, 0..10).await.unwrap(), [0; 10]);
        }
        for _ in 0..2 {
            assert_eq!(read_of(&client, &reference, &blob, 5..15).await.unwrap(), blob[5..15]);
        }
        assert_eq!(requests([&wrong, &right]), if lacks { [2, 3] } else { [1, 3] });
    }
}

/// Claim: a mirror whose bodies stand still, from the start or after 64 KiB, costs one stall: the rest comes from the next host, and later
/// reads do not ask it.
#[tokio::test]
async fn a_mirror_whose_bodies_stand_still_is_dead() {
    let blob = pattern(300_000);
    for sent in [0, 1, 64 << 10] {
        let own = blob.clone();
        let hung = Server::start(move |seen| {
            let mut reply = serve_blob(seen, &own);
            reply.promised = Some(reply.body.len());
            reply.body.truncate(sent);
            reply.then(Then::Stall)
        })
        .await;
        let good = registry(&blob).await;
        let settings = Settings::new("h.x", &format!("{}{}", origin(&good), mirror(&hung)));
        let config = ClientConfig { progress_timeout: Duration::from_millis(300), ..settings.config() };
        let client = Client::new(config).unwrap();
        for _ in 0..3 {
            assert!(read_of(&client, &image("h.x/a/b"), &blob, 0..300_000).await.unwrap() == blob, "{sent}");
        }
        assert_eq!(requests([&hung, &good]), [1, 3], "{sent}");
    }
}

/// Claim: credentials of a mirror that cannot be read cost one request of a blob, not one of each read of it.
#[tokio::test]
async fn a_mirror_with_a_broken_login_is_passed_over() {
    let blob = pattern(5000);
    let wants = Server::start(|_| reply(401, "").header("www-authenticate", "Basic realm=x")).await;
    let good = registry(&blob).await;
    let docker = tempfile::tempdir().unwrap();
    std::fs::write(docker.path().join("config.json"), "{").unwrap();
    let settings = Settings::new("h.x", &format!("{}{}", origin(&good), mirror(&wants)));
    let client = Client::new(ClientConfig { login: config(docker.path()).login, ..settings.config() }).unwrap();
    for _ in 0..3 {
        assert_eq!(read_of(&client, &image("h.x/a/b"), &blob, 20..30).await.unwrap(), blob[20..30]);
    }
    assert_eq!(requests([&wants, &good]), [1, 3]);
}

/// Claim: several rounds of one outage of the registry are one outage: it serves at once when it is back, and the mirror is not asked more.
#[tokio::test]
async fn an_outage_that_is_over_is_over_at_once() {
    let blob = pattern(1000);
    let (own, back) = (blob.clone(), Arc::new(Mutex::new(false)));
    let is_back = Arc::clone(&back);
    let away =
        Server::start(move |seen| if *is_back.lock().unwrap() { serve_blob(seen, &own) } else { reply(200, "").then(Then::Hangup) }).await;
    let poor = Server::start(|_| reply(404, "")).await;
    let settings = Settings::new("h.x", &format!("{}{}", origin(&away), mirror(&poor)));
    let (client, reference) = (settings.client(), image("h.x/a/b"));
    let begun = Instant::now();
    let error = read_of(&client, &reference, &blob, 0..10).await.unwrap_err().to_string();
    assert!(begun.elapsed() > PATIENCE / 2, "{:?}: {error}", begun.elapsed());
    *back.lock().unwrap() = true;
    let begun = Instant::now();
    assert_eq!(read_of(&client, &reference, &blob, 0..10).await.unwrap(), blob[..10]);
    assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
}
