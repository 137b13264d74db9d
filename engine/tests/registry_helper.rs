//! Credential helpers: found on the path, asked when needed.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::os::unix::fs::PermissionsExt as _;

use clip_engine::registry::Client;
use registry_script::*;

const MANIFEST: &str = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

/// A registry and its token server in one; the token server wants an OAuth2 POST.
async fn identity_registry() -> Server {
    Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) if seen.method == "POST" && seen.body.ends_with("&refresh_token=id%20%261") => reply(200, r#"{"access_token":"t"}"#),
        ("/token", _) => reply(401, ""),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        _ => {
            let realm = format!("http://{}/token", seen.header("host").unwrap());
            reply(401, "").header("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s v\""))
        }
    })
    .await
}

#[test]
fn an_identity_token_of_a_helper_is_posted_for_a_token_and_a_helper_that_knows_nothing_means_anonymous() {
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("docker-credential-clip-test");
    let script = "#!/bin/sh\nread host\ncase $host in\nlocalhost:*) echo '{\"Username\":\"<token>\",\"Secret\":\"id &1\"}';;\n\
        *) echo 'credentials not found in native keychain'; exit 1;;\nesac\n";
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"credsStore":"clip-test"}"#).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = identity_registry().await;
        let client = Client::new(config(dir.path())).unwrap();
        client.manifest(&server.reference()).await.unwrap();
        let posted = server.seen()[1].body.clone();
        assert_eq!(posted, "grant_type=refresh_token&client_id=clip&scope=repository%3Aa%2Fb%3Apull&service=s%20v&refresh_token=id%20%261");
        let unknown = format!("127.0.0.1:{}/a/b", server.port).parse().unwrap();
        let error = client.manifest(&unknown).await.unwrap_err().to_string();
        assert!(error.contains("GET") && error.contains("token server gives nothing without credentials"), "{error}");
    });
}
