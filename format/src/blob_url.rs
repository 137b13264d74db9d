//! An address outside the registry where a layer's blob may be had: what a manifest's `urls` say, checked.

use std::fmt;

use crate::{error::FormatError, limits::URL_BYTES_MAX};

/// An absolute http or https URL without user and password. Its text comes from a manifest, whose author may mean harm: it is printable
/// ASCII of at most `URL_BYTES_MAX` bytes. `Display` and `Debug` leave out query and fragment, for they may be a signature.
#[derive(Clone, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct BlobUrl(String);

impl BlobUrl {
    /// `text`, when it is such a URL.
    ///
    /// # Errors
    /// `Corrupt`; the message shows neither user, password nor query.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let wrong = |expected: &'static str| FormatError::Url { expected, found: open_part(text).chars().take(160).collect() };
        if text.len() > URL_BYTES_MAX {
            return Err(wrong("at most 2048 bytes"));
        }
        // A backslash is a slash to some parsers, so that one text could name two hosts.
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(wrong("printable ASCII without spaces and backslashes"));
        }
        let scheme_len = ["http://", "https://"].iter().find(|scheme| starts_with(text, scheme)).map(|scheme| scheme.len());
        let rest = &text[scheme_len.ok_or_else(|| wrong("http:// or https://"))?..];
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        match authority {
            "" => Err(wrong("a host")),
            _ if authority.contains('@') => Err(wrong("an address without user and password")),
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// All of it, also a query that may be secret: for requests, never for messages.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn starts_with(text: &str, scheme: &str) -> bool {
    text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// `text` without query, fragment, user and password.
fn open_part(text: &str) -> &str {
    let open = text.split(['?', '#']).next().unwrap_or_default();
    open.rsplit('@').next().unwrap_or_default()
}

impl fmt::Display for BlobUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(open_part(&self.0))
    }
}

impl fmt::Debug for BlobUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Claim: only http and https URLs with a host are taken, and no message and no text of one shows a secret.
    #[test]
    fn only_plain_web_addresses_are_taken() {
        for good in ["https://mcr.microsoft.com/v2/w/blobs/sha256:ab", "HTTP://[::1]:80", "http://h/a@b?c=d@e#f", "https://h?q"] {
            assert_eq!(BlobUrl::parse(good).unwrap().as_str(), good);
        }
        let signed = BlobUrl::parse("https://h.x/p?sig=s3cret#s3cret").unwrap();
        assert_eq!((format!("{signed}"), format!("{signed:?}")), ("https://h.x/p".to_owned(), "https://h.x/p".to_owned()));
        let long = format!("http://h/{}", "a".repeat(URL_BYTES_MAX));
        for bad in [
            "",
            "ftp://h/p",
            "file:///etc/passwd",
            "//h/p",
            "http:/h",
            "http://",
            "https:///p",
            "https://?q",
            "http://u:s3cret@h/p",
            "http://s3cret@h",
            "http://u:s3cret@h:99999/?s3cret",
            "http://h/a b",
            "http://h/\r\nHost: x",
            "http://h\\@x/",
            "http://h/é",
            &long,
        ] {
            let error = BlobUrl::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
