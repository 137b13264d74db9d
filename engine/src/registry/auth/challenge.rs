//! `WWW-Authenticate`: what a registry wants to see before it answers.

/// A challenge that clip can meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from `realm`.
    Bearer {
        /// Where tokens are given.
        realm: String,
        /// For whom the token is.
        service: Option<String>,
        /// What it allows.
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

impl Challenge {
    /// The same for whatever scope is asked for.
    pub(crate) fn without_scope(self) -> Self {
        match self {
            Challenge::Bearer { realm, service, scope: _ } => Challenge::Bearer { realm, service, scope: None },
            Challenge::Basic => Challenge::Basic,
        }
    }
}

/// The best challenge among the headers' values: Bearer before Basic, for a token can be had without credentials.
///
/// # Errors
/// The schemes that were offered, when none is usable.
///
/// Source: RFC 9110 section 11.6.1; distribution's token specification.
pub(crate) fn choose<'a>(values: impl Iterator<Item = &'a str>) -> Result<Challenge, String> {
    let offers: Vec<Offer> = values.flat_map(parse).collect();
    let mut basic = false;
    for offer in &offers {
        if offer.scheme == "bearer"
            && let Some(realm) = offer.get("realm")
        {
            let own = |name| offer.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
            return Ok(Challenge::Bearer { realm: realm.to_owned(), service: own("service"), scope: own("scope") });
        }
        basic |= offer.scheme == "basic";
    }
    if basic {
        return Ok(Challenge::Basic);
    }
    let schemes: Vec<_> = offers.iter().map(|offer| offer.scheme.chars().take(40).collect::<String>()).take(8).collect();
    Err(if schemes.is_empty() { "no usable WWW-Authenticate header".to_owned() } else { schemes.join(", ") })
}

/// Whether the headers' values say that a token was good but allows too little. Source: RFC 6750 section 3.1.
pub(crate) fn is_insufficient_scope<'a>(values: impl Iterator<Item = &'a str>) -> bool {
    values.flat_map(parse).any(|offer| offer.scheme == "bearer" && offer.get("error") == Some("insufficient_scope"))
}

struct Offer {
    /// Lower case.
    scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Offer {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Every challenge of one header value. A word before `=` is a parameter of the challenge so far, any other word begins one.
fn parse(value: &str) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',', '=']);
        let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // The end, or a stray quote, after which nothing can be told.
            return offers;
        }
        let after_spaces = after.trim_start_matches([' ', '\t']);
        match (after_spaces.strip_prefix('='), offers.last_mut()) {
            (Some(text), Some(offer)) => {
                let (text, left) = parameter_value(text.trim_start_matches([' ', '\t']));
                offer.parameters.push((word.to_ascii_lowercase(), text));
                rest = left;
            }
            _ => {
                offers.push(Offer { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

/// A token or quoted string at the start of `text`, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (token.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned), scope: scope.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read_in_every_form_that_registries_send() {
        let full = bearer("https://a.x/t", Some("r.x"), Some("repository:a/b:pull,push"));
        for (values, expected) in [
            (vec![r#"Bearer realm="https://a.x/t",service="r.x",scope="repository:a/b:pull,push""#], full.clone()),
            (vec![r#"bearer  realm = "https://a.x/t" , SERVICE=r.x ,, scope="repository:a/b:pull,push""#], full.clone()),
            (
                vec![r#"Basic realm="x, Bearer y", Bearer realm="https://a.x/t",service="r.x",scope="repository:a/b:pull,push""#],
                full.clone(),
            ),
            (vec!["Basic realm=\"a\"", r#"Bearer realm="https://a.x/t",service="r.x",scope="repository:a/b:pull,push""#], full),
            (vec![r#"Bearer realm="a\"b",scope="""#], bearer("a\"b", None, None)),
            (vec!["Negotiate abc==, Basic"], Challenge::Basic),
            (vec!["BASIC"], Challenge::Basic),
            (vec!["Bearer service=\"no realm\", Basic realm=x"], Challenge::Basic),
        ] {
            assert_eq!(choose(values.iter().copied()).unwrap(), expected, "{values:?}");
        }
    }

    /// Claim: only a Bearer challenge can say that the scope is too small.
    #[test]
    fn a_scope_that_is_too_small_is_told() {
        let told = |value| is_insufficient_scope(std::iter::once(value));
        assert!(told(r#"Bearer realm="x",scope="repository:a:pull",error="insufficient_scope""#));
        assert!(told("Basic realm=x, Bearer error=insufficient_scope"));
        assert!(!told(r#"Bearer realm="x",error="invalid_token""#) && !told("Basic error=insufficient_scope") && !told(""));
    }

    #[test]
    fn what_cannot_be_met_is_named() {
        assert_eq!(choose(["Negotiate", "NTLM"].into_iter()).unwrap_err(), "negotiate, ntlm");
        assert!(choose(std::iter::empty()).is_err());
        assert!(choose([""].into_iter()).is_err());
    }

    proptest! {
        #[test]
        fn no_header_panics(value in "\\PC{0,80}", wild in "[a-zB=\", \\\\]{0,60}") {
            let _ = choose([value.as_str(), wild.as_str()].into_iter());
        }

        #[test]
        fn quoted_parameters_come_back(realm in "\\PC{0,30}", scope in "[ -~]{1,30}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\", scope=\"{}\"", quote(&realm), quote(&scope));
            prop_assert_eq!(choose([header.as_str()].into_iter()).unwrap(), bearer(&realm, None, Some(&scope)));
        }
    }
}
