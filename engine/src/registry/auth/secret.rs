//! Text that must not be seen.

use std::fmt;

/// A password or token. `Debug` shows nothing of it, there is no `Display`, and it cannot be serialised: what sends it somewhere calls
/// [`Secret::reveal`], which is easy to find.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` out of sight.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the one who is to accept it, and for a process of the same user over a channel that nobody else can read.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What a registry or its token server accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// For Basic.
    Password { user: String, password: Secret },
    /// An OAuth2 refresh token, for which a token server gives tokens.
    IdentityToken(Secret),
    /// A token for the registry itself.
    RegistryToken(Secret),
}

/// The user name by which a helper or a file says that the secret is an identity token. Source: docker-credential-helpers, README.
const TOKEN_USER: &str = "<token>";

impl Credentials {
    pub fn of_pair(user: &str, secret: &str) -> Self {
        if user == TOKEN_USER {
            Credentials::IdentityToken(Secret::new(secret))
        } else {
            Credentials::Password { user: user.to_owned(), password: Secret::new(secret) }
        }
    }

    /// Whether `text` repeats the secret.
    pub fn is_in(&self, text: &str) -> bool {
        let (Credentials::Password { password: secret, .. } | Credentials::IdentityToken(secret) | Credentials::RegistryToken(secret)) =
            self;
        !secret.reveal().is_empty() && text.contains(secret.reveal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: no way of showing credentials shows the secret.
    #[test]
    fn credentials_do_not_show() {
        let shown = [("u", "s3cret"), ("<token>", "s3cret")].map(|(user, secret)| format!("{:?}", Credentials::of_pair(user, secret)));
        assert!(shown.iter().all(|shown| shown.contains("hidden") && !shown.contains("s3cret")), "{shown:?}");
        assert!(!format!("{:#?}", Credentials::RegistryToken(Secret::new("s3cret"))).contains("s3cret"));
    }

    /// Claim: an answer that repeats the secret is noticed, and an empty password is in no text.
    #[test]
    fn repeated_secrets_are_noticed() {
        assert!(Credentials::of_pair("u", "s3cret").is_in("no such user u:s3cret"));
        assert!(!Credentials::of_pair("u", "").is_in("anything"));
    }
}
