//! A small Debian image of three layers, each written and compressed by somebody else's program (mmdebstrap, umoci).
//!
//! Made once per machine: kept in the target directory under a name that changes with the recipe.

use std::{ffi::OsStr, path::PathBuf, sync::OnceLock};

use anyhow::{Context, Result};

use super::Layout;
use crate::{clip::target_dir, machine::Need, process::shell};

/// Changes whenever a recipe below does.
const VERSION: &str = "debian-1";

/// What making or unpacking the image needs.
pub const NEEDS: &[Need] = &[Need::Root, Need::Tool("mmdebstrap"), Need::Tool("umoci")];

/// Tag of the base layer alone.
pub const BASE: &str = "base";
/// Tag of the base and the layer that changes it.
pub const CHANGED: &str = "changed";
/// Tag of all three layers.
pub const APP: &str = "app";
/// Tag of the image that buildah made of [`CHANGED`], in the layout of [`built`].
pub const BUILT: &str = "built";
/// Contents of a file that layer 1 adds and layer 2 deletes.
pub const SECRET: &str = "clip-test-secret-that-was-deleted";

/// mmdebstrap: essential packages and a Python without documentation, 127 MB.
const BASE_RECIPE: &str = r#"
cd "$1"
mmdebstrap --quiet --variant=essential --include=python3-minimal \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Languages "none"' \
    bookworm base.tar
umoci init --layout layout
umoci new --image layout:base
umoci raw add-layer --image layout:base base.tar
umoci config --image layout:base --config.env PATH=/usr/local/bin:/usr/bin:/bin --config.cmd /bin/sh
rm base.tar
"#;

/// umoci unpacks, the tree changes as trees do, umoci writes the difference as a layer.
const CHANGED_RECIPE: &str = r#"
cd "$1"
umoci unpack --image layout:base bundle
cd bundle/rootfs
printf '%s\n' "$2" > root/secret
mkdir -p etc/secrets.d && printf '%s\n' "$2" > etc/secrets.d/key
printf 'root:*:1::::::\n' > etc/shadow && chmod 0600 etc/shadow
printf 'app:x:1000:1000:App:/home/app:/bin/sh\n' >> etc/passwd
printf 'app:x:1000:\n' >> etc/group
mkdir -p home/app && chown 1000:1000 home/app && chmod 0750 home/app
printf 'hello from layer 1\n' > home/app/hello && chown 1000:1000 home/app/hello
cp usr/bin/id usr/local/bin/suid-id && chmod 4755 usr/local/bin/suid-id
cp usr/bin/cat usr/local/bin/cap-cat
setcap cap_net_raw+ep usr/local/bin/cap-cat
setfattr -n user.origin -v mmdebstrap usr/local/bin/cap-cat
rm -rf usr/share/zoneinfo usr/share/bash-completion
rm -f usr/bin/perl
ln usr/bin/cat usr/local/bin/cat-link
ln -s /nowhere/at/all usr/local/dangling
chmod 0700 root
touch -d '2001-02-03 04:05:06.789012345' etc/hostname
cd ../.. && umoci repack --image layout:changed bundle && rm -rf bundle
"#;

/// Deletes, replaces and re-adds what the layers below have.
const APP_RECIPE: &str = r#"
cd "$1"
umoci unpack --image layout:changed bundle
cd bundle/rootfs
rm -rf root/secret etc/secrets.d
rm -rf usr/share/perl5 && printf 'a file where a directory was\n' > usr/share/perl5
rm -f usr/local/dangling && mkdir usr/local/dangling && printf 'in a directory where a link was\n' > usr/local/dangling/file
rm -rf home/app && ln -s /root home/app
mkdir -p usr/share/zoneinfo && printf 'again\n' > usr/share/zoneinfo/again
printf 'hello from layer 2\n' >> etc/motd
python3 -c 'open("opt/big", "wb").write(bytes((i * 2654435761 >> 13) & 255 for i in range(3000000)))'
chmod 4711 usr/bin/su
cd ../.. && umoci repack --image layout:app bundle && rm -rf bundle
umoci config --image layout:app --config.user app --config.workingdir /opt --config.env GREETING=hi \
    --config.entrypoint /usr/bin/python3 --config.cmd -c --config.cmd 'print(6*7)'
"#;

/// buildah takes the changed image, runs a shell in it and commits: every layer is written and compressed anew by its own tar and gzip.
const BUILT_RECIPE: &str = r#"
cd "$1"
cp -al "$2" layout
tool() { buildah --root "$PWD/storage" --runroot "$PWD/run" --storage-driver vfs --log-level error "$@"; }
export BUILDAH_ISOLATION=chroot
container=$(tool from --quiet --pull-never oci:layout:changed)
tool run "$container" -- /bin/sh -c 'echo built > /opt/by-buildah; rm /usr/bin/env; rm -rf /usr/share/perl5
    mkdir /usr/share/perl5; chmod 4755 /usr/bin/cmp; ln /usr/bin/cmp /opt/cmp; mkfifo /opt/fifo; ln -s ../etc /opt/link'
tool config --label made=buildah "$container"
tool commit --quiet --rm "$container" oci:layout:built >/dev/null
rm -rf storage run
"#;

/// A layout with [`BUILT`] beside the three images, made on the first call of this machine. `None`, after saying why, where buildah
/// cannot work: it needs namespaces and mounts that some containers bar.
///
/// # Errors
/// When the base images cannot be made.
pub fn built() -> Result<Option<Layout>> {
    let base = layout()?;
    let home = target_dir()?.join("test-images");
    let finished = home.join(format!("{VERSION}-built-1"));
    let lock = std::fs::File::create(home.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("lock the test images")?;
    if !finished.exists() {
        let work = tempfile::Builder::new().prefix("building-").tempdir_in(&home)?;
        if let Err(error) = shell(BUILT_RECIPE, &[work.path().as_os_str(), base.dir().as_os_str()]) {
            eprintln!("skipped: buildah does not work here: {error:#}");
            return Ok(None);
        }
        std::fs::rename(work.path().join("layout"), &finished)?;
    }
    Ok(Some(Layout::open(&finished)))
}

/// The layout with the three images, made on the first call of this machine.
///
/// # Errors
/// When a tool fails.
pub fn layout() -> Result<&'static Layout> {
    static LAYOUT: OnceLock<Result<Layout, String>> = OnceLock::new();
    let made = LAYOUT.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow::anyhow!("the Debian image: {error}"))
}

fn make() -> Result<Layout> {
    let home = target_dir()?.join("test-images");
    std::fs::create_dir_all(&home)?;
    let finished = home.join(VERSION);
    // Two test programs at once must not both make it.
    let lock = std::fs::File::create(home.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("lock the test images")?;
    if !finished.exists() {
        let work = tempfile::Builder::new().prefix("making-").tempdir_in(&home)?;
        for recipe in [BASE_RECIPE, CHANGED_RECIPE, APP_RECIPE] {
            shell(recipe, &[work.path().as_os_str(), OsStr::new(SECRET)])?;
        }
        std::fs::rename(work.path().join("layout"), &finished)?;
    }
    Ok(Layout::open(&finished))
}

/// A fresh unpacked tree of `tag`, made by `umoci unpack` below `dir`.
///
/// # Errors
/// umoci's own.
pub fn umoci_tree(layout: &Layout, tag: &str, dir: &std::path::Path) -> Result<PathBuf> {
    let image = format!("{}:{tag}", layout.dir().display());
    shell(r#"umoci unpack --image "$1" "$2""#, &[OsStr::new(&image), dir.as_os_str()])?;
    Ok(dir.join("rootfs"))
}
