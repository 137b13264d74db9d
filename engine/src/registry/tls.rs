//! Whom TLS trusts, and who we say that we are: the system's roots, more of them, client certificates, hosts that are not verified.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio_rustls::TlsConnector;

use crate::error::EngineError;

/// A client certificate: its chain, and its key where that is a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyPair {
    pub certificate: PathBuf,
    pub key: Option<PathBuf>,
}

/// What one host wants besides the default. Those whom it names, for tokens and blobs, are asked in the course of it too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsSettings {
    /// Without brackets.
    pub host: String,
    /// More roots, PEM: of those whom it names, too.
    pub ca: Vec<PathBuf>,
    /// For the host alone.
    pub client: Vec<KeyPair>,
    /// The host's certificate is not verified; that of others is.
    pub skip_verify: bool,
}

/// TLS roots and client certificates: the extra ones at once, the system's at the first TLS connection.
pub(super) struct Tls {
    extra: Vec<CertificateDer<'static>>,
    /// Whom `client` and `skip_verify` are for; empty without settings.
    host: String,
    client: Vec<Arc<CertifiedKey>>,
    skip_verify: bool,
    to_host: OnceLock<Result<TlsConnector, String>>,
    to_others: OnceLock<Result<TlsConnector, String>>,
}

impl Tls {
    /// With the roots of `ca_file` (PEM) beside the system's.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, EngineError> {
        let extra = ca_file.map_or_else(|| Ok(Vec::new()), read_roots)?;
        Ok(Self::of(extra, String::new(), Vec::new(), false))
    }

    /// The same roots, and what `settings` add.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt`: a file cannot be used.
    pub fn with(&self, settings: &TlsSettings) -> Result<Self, EngineError> {
        let mut extra = self.extra.clone();
        for path in &settings.ca {
            extra.extend(read_roots(path)?);
        }
        let client = settings.client.iter().map(read_key_pair).collect::<Result<_, _>>()?;
        Ok(Self::of(extra, settings.host.clone(), client, settings.skip_verify))
    }

    fn of(extra: Vec<CertificateDer<'static>>, host: String, client: Vec<Arc<CertifiedKey>>, skip_verify: bool) -> Self {
        Self { extra, host, client, skip_verify, to_host: OnceLock::new(), to_others: OnceLock::new() }
    }

    /// What opens TLS connections to `host` (without brackets), or why there can be none.
    pub fn connector(&self, host: &str) -> Result<&TlsConnector, &str> {
        let is_own = (!self.client.is_empty() || self.skip_verify) && host.eq_ignore_ascii_case(&self.host);
        let connector = if is_own { &self.to_host } else { &self.to_others };
        connector.get_or_init(|| self.build(is_own)).as_ref().map_err(String::as_str)
    }

    /// With the client certificates and without verification, where the host wants that, for it alone: whoever it sends us to could ask
    /// for a certificate, and take what was meant for another.
    fn build(&self, is_own: bool) -> Result<TlsConnector, String> {
        let native = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(native.certs);
        roots.add_parsable_certificates(self.extra.iter().cloned());
        let is_lenient = is_own && self.skip_verify;
        if roots.is_empty() && !is_lenient {
            let why = native.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
            return Err(format!(
                "no trusted root certificates were found{why}; install ca-certificates, or set SSL_CERT_FILE or a CA file"
            ));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = if is_lenient {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { provider }))
        } else {
            builder.with_root_certificates(roots)
        };
        let mut config = if is_own && !self.client.is_empty() {
            builder.with_client_cert_resolver(Arc::new(ClientCertificates(self.client.clone())))
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn bad_file(operation: &'static str, path: &Path, why: String) -> EngineError {
    EngineError::io(operation, path, io::Error::new(io::ErrorKind::InvalidData, why))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EngineError> {
    let pem = std::fs::read(path).map_err(|error| EngineError::io("read", path, error))?;
    let bad = |why: String| bad_file("read certificates of", path, why);
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("expected certificates in PEM form, found none".to_owned()));
    }
    Ok(found)
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, EngineError> {
    let roots = read_certificates(path)?;
    let first = RootCertStore::empty().add(roots[0].clone());
    first.map_err(|error| bad_file("read certificates of", path, error.to_string()))?;
    Ok(roots)
}

fn read_key_pair(pair: &KeyPair) -> Result<Arc<CertifiedKey>, EngineError> {
    let chain = read_certificates(&pair.certificate)?;
    let path = pair.key.as_ref().unwrap_or(&pair.certificate);
    // Not the parser's own words: they may be of the key.
    let bad = |found: &str| bad_file("read the private key of", path, format!("expected a key in PEM form, {found}"));
    let pem = std::fs::read(path).map_err(|error| EngineError::io("read", path, error))?;
    let beside = pair.certificate.with_extension("key");
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| match pair.key {
        // Docker's layout has the key there.
        None if !beside.exists() => bad(&format!("found none, and {} is missing", beside.display())),
        _ => bad("found none"),
    })?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
    certified.map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => bad("found one of another certificate"),
        _ => bad("found one of a kind that TLS cannot use"),
    })
}

/// Takes any certificate.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificates that a server may ask for.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientCertificates {
    /// The first that one of the wanted authorities has issued and that can sign as wanted.
    ///
    /// Source: RFC 8446 sections 4.2.3 and 4.2.4; an empty list of authorities wants any.
    fn resolve(&self, root_hint_subjects: &[&[u8]], sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let wanted = |key: &&Arc<CertifiedKey>| {
            let issued = |cert: &CertificateDer<'_>| issuer(cert).is_some_and(|issuer| root_hint_subjects.contains(&issuer));
            let by_them = root_hint_subjects.is_empty() || key.cert.iter().any(issued);
            by_them && key.key.choose_scheme(sigschemes).is_some()
        };
        self.0.iter().find(wanted).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The DER of the name of who issued `certificate`, as servers list it.
///
/// Source: RFC 5280 section 4.1: Certificate { TBSCertificate { [0] version OPTIONAL, serialNumber, signature, issuer ...
fn issuer<'a>(certificate: &'a CertificateDer<'_>) -> Option<&'a [u8]> {
    let (_, certificate, _) = der_element(certificate.as_ref())?;
    let (_, fields, _) = der_element(certificate)?;
    let (tag, _, after) = der_element(fields)?;
    let serial = if tag == 0xa0 { after } else { fields };
    let (_, _, signature) = der_element(serial)?;
    let (_, _, issuer) = der_element(signature)?;
    let (_, _, rest) = der_element(issuer)?;
    issuer.get(..issuer.len() - rest.len())
}

/// Tag, contents and what follows the first DER element of `bytes`. Source: X.690 section 8.1, definite lengths.
fn der_element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        (digits.iter().fold(0_usize, |len, digit| len << 8 | usize::from(*digit)), rest)
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use rustls::DistinguishedName;

    use super::*;

    /// A certificate that signed itself, and its key, which are of nobody. Made by `openssl req -x509 -newkey ec -pkeyopt
    /// ec_paramgen_curve:P-256 -nodes -days 36500 -keyout k -out c -subj /CN=who-issued-it`.
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS2gAwIBAgIUUfwSW7VQTUsKmzVJAMLIfvPggZ8wCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNd2hvLWlzc3VlZC1pdDAgFw0yNjExMjMyMzQ3NTVaGA8yMTI2
MTAzMDIzNDc1NVowGDEWMBQGA1UEAwwNd2hvLWlzc3VlZC1pdDBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABEAo3YWX9xK9zuCmCq7FLVvU3QnGA1pLRYYxa9huLqxZ
tN5iw4UH5D2KGVMtnLJItEl/J1VVvOiJqc9HAPzSd6GjUzBRMB0GA1UdDgQWBBTt
Wvk8es60DIeA22/gneoBs/lhhDAfBgNVHSMEGDAWgBTtWvk8es60DIeA22/gneoB
s/lhhDAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDE1A1gHSi0
xv3p1RJuA7FVlVdJ9SJ6eTy7rVjKoG+ixgIhAPgDuSq0RFKxD1MVJ8vqkx2IXNaw
ZkQAMk0bU7pRsE6s
-----END CERTIFICATE-----
";
    const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgshBE8qbCDx9wg8np
/nSrAoD0BMZpdC9SOHfKSZLm4MyhRANCAARAKN2Fl/cSvc7gpgquxS1b1N0JxgNa
S0WGMWvYbi6sWbTeYsOFB+Q9ihlTLZyySLRJfydVVbzoianPRwD80neh
-----END PRIVATE KEY-----
";

    /// Claim: a host's client certificates are shown to that host, by whatever case its name is written in, and to none that it names; whom
    /// it names is trusted by the same roots.
    #[test]
    fn client_certificates_are_for_their_own_host() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c"), [CERTIFICATE, KEY].concat()).unwrap();
        let path = dir.path().join("c");
        let client = vec![KeyPair { certificate: path.clone(), key: None }];
        let settings = TlsSettings { host: "mirror.example".to_owned(), ca: vec![path], client, skip_verify: false };
        let tls = Tls::new(None).unwrap().with(&settings).unwrap();
        let shows = |host: &str| tls.connector(host).unwrap().config().client_auth_cert_resolver.has_certs();
        assert!(shows("mirror.example") && shows("Mirror.Example"));
        assert!(!shows("storage.example") && !shows("mirror.example.evil.example") && !shows(""));
    }

    /// Claim: the issuer is the DER name as the certificate holds it; cut certificates have none and never panic.
    #[test]
    fn the_issuer_of_a_certificate_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c"), CERTIFICATE).unwrap();
        std::fs::write(dir.path().join("k"), KEY).unwrap();
        let certificate = read_certificates(&dir.path().join("c")).unwrap().remove(0);
        let found = issuer(&certificate).unwrap();
        assert_eq!((found[0], found[1] as usize), (0x30, found.len() - 2));
        assert!(found.ends_with(b"who-issued-it"));
        let roots = read_roots(&dir.path().join("c")).unwrap();
        let mut store = RootCertStore::empty();
        store.add(roots[0].clone()).unwrap();
        let hints: Vec<DistinguishedName> = store.subjects();
        assert_eq!(hints[0].as_ref(), found, "what a server lists");
        for len in 0..certificate.len() {
            let _ = issuer(&CertificateDer::from(certificate[..len].to_vec()));
        }
        let pair = KeyPair { certificate: dir.path().join("c"), key: Some(dir.path().join("k")) };
        let resolver = ClientCertificates(vec![read_key_pair(&pair).unwrap()]);
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        assert!(resolver.resolve(&[], &schemes).is_some() && resolver.resolve(&[found], &schemes).is_some());
        assert!(resolver.resolve(&[b"another"], &schemes).is_none());
        assert!(resolver.resolve(&[], &[SignatureScheme::ED25519]).is_none());
        let keyless = KeyPair { key: None, ..pair };
        let missing = format!("found none, and {} is missing", dir.path().join("c.key").display());
        assert!(read_key_pair(&keyless).unwrap_err().to_string().contains(&missing));
        let swapped = KeyPair { certificate: dir.path().join("c"), key: Some(dir.path().join("c")) };
        assert!(read_key_pair(&swapped).unwrap_err().to_string().ends_with("found none"));
    }

    proptest! {
        /// Claim: no bytes panic.
        #[test]
        fn no_certificate_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = issuer(&CertificateDer::from(bytes));
        }
    }
}
