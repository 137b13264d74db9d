//! Debian's docker-registry, filled by skopeo: what foreign tools serve is read as they meant it.
#![allow(clippy::unwrap_used)]

mod registry_script;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use clip_engine::{
    ErrorKind,
    registry::{Client, ClientConfig, Reference},
};
use clip_format::digest::Digest;
use registry_script::*;

/// bcrypt of the password `p`, the only form that docker-registry takes. Made by apache2-utils' `htpasswd -Bbn u p`.
const HTPASSWD: &str = "u:$2y$05$z7HUU9QJlG9uiLcfTPmNXO0RWIJ6xiSVpMMFaYK3HlRM/l0TZqMjW\n";

struct Registry {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// With one user, `u` and `p`.
fn start_registry() -> Registry {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n\
         auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n",
        root = dir.path().display()
    );
    let config = dir.path().join("config.yml");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let process = command.spawn().unwrap();
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Registry { process, port, dir }
}

/// An OCI layout with one layer of `layer`, written by hand so that its bytes are known.
fn write_layout(dir: &Path, layer: &[u8]) -> Digest {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = sha256(bytes);
        std::fs::write(blobs.join(digest.to_hex()), bytes).unwrap();
        digest
    };
    let config = format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#, sha256(layer));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        put(config.as_bytes()),
        config.len(),
        put(layer),
        layer.len()
    );
    let digest = put(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"t"}}}}]}}"#,
        manifest.len()
    );
    std::fs::write(dir.join("index.json"), index).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    digest
}

#[tokio::test]
async fn an_image_that_skopeo_pushed_is_read_with_basic_credentials() {
    if lacks(&["docker-registry", "skopeo"]) {
        return;
    }
    let registry = start_registry();
    let layer = pattern(700_000);
    let layout = registry.dir.path().join("layout");
    let manifest_digest = write_layout(&layout, &layer);
    let name = format!("localhost:{}/a/b:t", registry.port);
    let (from, to) = (format!("oci:{}:t", layout.display()), format!("docker://{name}"));
    let copy =
        ["copy", "-q", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", "--dest-oci-accept-uncompressed-layers"];
    run("skopeo", &[&copy[..], &["--dest-creds=u:p", &from, &to]].concat());

    let docker = tempfile::tempdir().unwrap();
    let login = format!(r#"{{"auths":{{"localhost:{}":{{"auth":"dTpw"}}}}}}"#, registry.port);
    std::fs::write(docker.path().join("config.json"), login).unwrap();
    let client = Client::new(ClientConfig { ..config(docker.path()) }).unwrap();
    let reference: Reference = name.parse().unwrap();
    client.ping(&reference).await.unwrap();
    let manifest = client.manifest(&reference).await.unwrap();
    assert_eq!((manifest.digest, manifest.media_type.as_str()), (manifest_digest, "application/vnd.oci.image.manifest.v1+json"));
    let size = layer.len() as u64;
    for range in [0..size, 0..1, 1000..400_000, size - 5..size] {
        let mut reader = client.blob(&reference, &sha256(&layer), size, range.clone()).await.unwrap();
        let mut all = Vec::new();
        while let Some(bytes) = reader.chunk().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        assert!(all == layer[range.start as usize..range.end as usize], "{range:?}");
    }
    assert_eq!(client.traffic().connections, 1);

    assert_eq!(anonymous().manifest(&reference).await.unwrap_err().kind(), ErrorKind::Denied);
    let missing = client.manifest(&format!("localhost:{}/a/b:none", registry.port).parse().unwrap()).await.unwrap_err();
    assert!(missing.to_string().contains("status 404: MANIFEST_UNKNOWN"), "{missing}");
}
