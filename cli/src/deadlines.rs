//! How long registries are waited for, and how often they are asked: typed, passed to an owner, compared, and made settings.

use std::time::Duration;

use clap::Args;
use clip_engine::registry::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::exit::UsageError;
use crate::values::{parse_rate_min, parse_retries, parse_timeout, size, typed_time};

/// The options of every command that reaches a registry, beside `--read-timeout`. `None`: not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct Deadlines {
    /// How often a request that failed in a way that may pass is sent again without progress [default: as often as --read-timeout has
    /// time for, after waits that double from 0.2s to a twelfth of it, 5s at most]
    #[arg(long, value_name = "N", value_parser = parse_retries)]
    pub retries: Option<u32>,
    /// For a registry's name and TCP connection; as the next three at most --read-timeout [default: a third of that, 10s at most]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub connect_timeout: Option<Duration>,
    /// For the TLS handshake [default: a third of --read-timeout, 10s at most]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub tls_timeout: Option<Duration>,
    /// From a request to the head of its answer [default: half of --read-timeout]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub first_byte_timeout: Option<Duration>,
    /// After this long below --min-rate the rest of a body is asked for over another connection [default: a third of --read-timeout]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub stall_timeout: Option<Duration>,
    /// Bytes a second of one body below which it stalls and is no progress; 0: any byte is [default: 1KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_rate_min)]
    pub min_rate: Option<u64>,
}

impl Deadlines {
    /// No step may be waited for longer than a read goes without progress.
    ///
    /// # Errors
    /// A usage error that names the option that is longer than `read_timeout`, and what to type.
    pub fn check(&self, read_timeout: Duration) -> Result<(), UsageError> {
        let steps = [
            ("--connect-timeout", self.connect_timeout),
            ("--tls-timeout", self.tls_timeout),
            ("--first-byte-timeout", self.first_byte_timeout),
            ("--stall-timeout", self.stall_timeout),
        ];
        let too_long = steps.into_iter().find_map(|(option, typed)| Some((option, typed.filter(|typed| *typed > read_timeout)?)));
        too_long.map_or(Ok(()), |(option, typed)| {
            let (typed, read_timeout) = (typed_time(typed), typed_time(read_timeout));
            Err(UsageError(format!("{option} {typed}: a read gives up after {read_timeout} without progress; raise --read-timeout, too")))
        })
    }

    /// `client` gives up after `read_timeout` without progress, and waits within that as was typed. None of its waits is longer.
    pub fn apply(&self, client: &mut ClientConfig, read_timeout: Duration) {
        client.set_patience(read_timeout);
        client.tries_max = self.retries.map_or(client.tries_max, |retries| retries.saturating_add(1));
        client.rate_min = self.min_rate.unwrap_or(client.rate_min);
        for (typed, wait) in [
            (self.connect_timeout, &mut client.connect_timeout),
            (self.tls_timeout, &mut client.tls_timeout),
            (self.first_byte_timeout, &mut client.first_byte_timeout),
            (self.stall_timeout, &mut client.progress_timeout),
        ] {
            *wait = typed.unwrap_or(*wait).min(read_timeout);
        }
    }

    /// Each option with what was typed, if it was, and what `client` has.
    pub fn compared(&self, client: &ClientConfig) -> [(&'static str, Option<String>, String); 6] {
        let time = |option, typed: Option<Duration>, owner: Duration| (option, typed.map(typed_time), typed_time(owner));
        let retries = if client.tries_max == u32::MAX { "no limit".to_owned() } else { client.tries_max.saturating_sub(1).to_string() };
        [
            ("--retries", self.retries.map(|retries| retries.to_string()), retries),
            time("--connect-timeout", self.connect_timeout, client.connect_timeout),
            time("--tls-timeout", self.tls_timeout, client.tls_timeout),
            time("--first-byte-timeout", self.first_byte_timeout, client.first_byte_timeout),
            time("--stall-timeout", self.stall_timeout, client.progress_timeout),
            ("--min-rate", self.min_rate.map(size), size(client.rate_min)),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn applied(deadlines: &Deadlines, read_timeout: u64) -> ClientConfig {
        let mut client = ClientConfig::default();
        deadlines.apply(&mut client, Duration::from_secs(read_timeout));
        client
    }

    /// Claim: every step leaves time for another try unless it was typed otherwise, and nothing waits longer than a read.
    #[test]
    fn steps_are_parts_of_the_read_timeout() {
        let steps = |client: ClientConfig| {
            [client.connect_timeout, client.tls_timeout, client.first_byte_timeout, client.progress_timeout].map(|wait| wait.as_secs())
        };
        assert_eq!(steps(applied(&Deadlines::default(), 30)), [10, 10, 15, 10]);
        assert_eq!(steps(applied(&Deadlines::default(), 300)), [10, 10, 150, 100]);
        assert_eq!(steps(applied(&Deadlines::default(), 6)), [2, 2, 3, 2]);
        let typed = Deadlines {
            connect_timeout: Some(Duration::from_secs(60)),
            stall_timeout: Some(Duration::from_secs(5)),
            ..Deadlines::default()
        };
        assert_eq!(steps(applied(&typed, 30)), [30, 10, 15, 5]);
        assert_eq!(applied(&Deadlines::default(), 30), ClientConfig::default());
    }

    /// Claim: a step that is longer than a read may wait is refused, with the option and what to do; one as long is not.
    #[test]
    fn a_step_longer_than_the_read_is_refused() {
        let typed = Deadlines { first_byte_timeout: Some(Duration::from_secs(120)), ..Deadlines::default() };
        assert!(typed.check(Duration::from_secs(120)).is_ok());
        let UsageError(text) = typed.check(Duration::from_secs(30)).unwrap_err();
        assert_eq!(text, "--first-byte-timeout 120s: a read gives up after 30s without progress; raise --read-timeout, too");
    }

    /// Claim: the number of retries is as skopeo's: 0 is one try, none typed is no limit; what differs is told in words that can be typed.
    #[test]
    fn retries_are_tries_but_the_first() {
        let none = Deadlines { retries: Some(0), min_rate: Some(0), ..Deadlines::default() };
        let client = applied(&none, 30);
        assert_eq!((client.tries_max, client.rate_min), (1, 0));
        assert_eq!(applied(&Deadlines::default(), 30).tries_max, u32::MAX);
        let compared = none.compared(&ClientConfig::default());
        assert_eq!(compared[0], ("--retries", Some("0".to_owned()), "no limit".to_owned()));
        assert_eq!(compared[5], ("--min-rate", Some("0 B".to_owned()), "1.0 KiB".to_owned()));
    }
}
